"""What the names in a pickle mean: the few that stand for values, and which are refused.

Three kinds of names:
- those of `CALLS` have a meaning written here, in plain Python: containers, tensors, NumPy values;
- an instance of any other class becomes an `Opaque`, which is safe, since it is never imported,
  called or looked into: it may stand beside the weights (a configuration, an optimizer), not hold
  them; so does what a class of a known package is called with (`PACKAGES`);
- everything else that is called, and whatever comes from a module that reaches the system
  (`DENIED`), even uncalled, is refused by name. That is not needed for safety, as nothing runs
  either way; but whoever made such a file wanted something run, and its owner should know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from auglocal.foreign import names_of_containers, names_of_numpy, names_of_tensors
from auglocal.foreign.refusal import CodeRefusal
from auglocal.foreign.tensors import Storage, Unsupported, View
from auglocal.foreign.values import Budget, Name, NumpyArray, NumpyType, Opaque

RENAMED = {  # modules of Python 2 and NumPy 2
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}
DENIED_PARTS = frozenset(
    "os posix nt sys subprocess builtins shutil socket importlib ctypes runpy pty commands "
    "webbrowser eval exec system popen __import__ __globals__ __subclasses__".split()
)
DENIED_ROOTS = frozenset(
    "_io asyncio atexit bdb cProfile code codeop codecs _codecs dill cloudpickle doctest ensurepip "
    "ftplib gc http idlelib imaplib inspect io joblib linecache mailcap marshal mmap "
    "multiprocessing operator _operator pdb pickle _pickle pip pkgutil platform poplib posixpath "
    "profile pydoc requests select shelve signal site smtplib ssl tarfile telnetlib tempfile test "
    "threading _thread timeit trace turtle types unittest urllib "
    "venv xmlrpc zipfile zipimport".split()
)
TYPES = frozenset(
    "int float str bytes bool list dict tuple set frozenset object complex type bytearray slice "
    "range NoneType unicode long Ellipsis NotImplementedType".split()
)
PACKAGES = (
    "accelerate addict argparse collections decimal easydict enum fractions fvcore hydra "
    "lightning lightning_fabric lightning_utilities ml_collections mmcls mmcv mmengine mmpretrain "
    "omegaconf pathlib pytorch_lightning timm tokenizers torchmetrics torchvision transformers "
    "typing uuid yacs"
).split()
CLASSES_OF_TORCH = ("torch.optim.", "torch.nn.", "torch.amp.", "torch.cuda.amp.", "torch.utils.")
CALLS: dict[str, Callable[[Meanings, tuple[Any, ...]], Any]] = {
    **names_of_containers.CALLS,
    **names_of_tensors.CALLS,
    **names_of_numpy.CALLS,
}


@dataclass(frozen=True)
class Meanings:
    """What a file's pickles may refer to.

    Attributes:
        budget: what they may still take.
        storage: the value of a persistent identifier.
        nested: the storage in a whole legacy file inside a pickle, given as bytes.
    """

    budget: Budget
    storage: Callable[[Any], Any]
    nested: Callable[[memoryview], Storage]

    def admit(self, named: Name) -> None:
        """Refuse names from modules that reach the system, even if nothing calls them."""
        named = canonical(named)
        full = str(named)
        if full in CALLS or (named.module == "builtins" and named.name in TYPES):
            return
        parts = full.split(".")
        if parts[0] in DENIED_ROOTS or not DENIED_PARTS.isdisjoint(parts):
            raise CodeRefusal(full)

    def call(self, named: Name, arguments: tuple[Any, ...], is_new: bool) -> Any:
        """What stands for a call with these arguments; `is_new` where it makes an instance."""
        named = canonical(named)
        full = str(named)
        if full in CALLS:
            return CALLS[full](self, arguments)
        if is_new or _is_known_class(named):
            return self.opaque(full)
        raise CodeRefusal(full)

    def opaque(self, name: str) -> Opaque:
        """A stand-in for an instance."""
        if name != names_of_containers.NAMESPACE:
            self.budget.opaque[name] = None
        return Opaque(name)

    def build(self, target: Any, state: Any) -> Any:
        """Set an instance's state; tensors and containers have none that is read."""
        if isinstance(target, Opaque):
            target.state = state
        elif isinstance(target, NumpyType):
            names_of_numpy.set_type(target, state)
        elif isinstance(target, NumpyArray):
            names_of_numpy.set_array(self, target, state)
        elif not isinstance(target, (dict, View, Unsupported)):
            raise TypeError("no state")
        return target


def canonical(named: Name) -> Name:
    """A name under its module's present name."""
    return Name(RENAMED.get(named.module, named.module), named.name)


def _is_known_class(named: Name) -> bool:
    """Whether a name looks like a class of a package known to stand beside weights."""
    if named.module.startswith("numpy.random") or named.module == "datetime":
        return True  # whose classes, or what makes them, have small letters
    is_known = named.module.split(".")[0] in PACKAGES or f"{named.module}.".startswith(
        CLASSES_OF_TORCH
    )
    return is_known and named.name.split(".")[-1].lstrip("_")[:1].isupper()
