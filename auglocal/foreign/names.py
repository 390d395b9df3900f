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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from auglocal.foreign.refusal import CodeRefusal, Damage
from auglocal.foreign.tensors import BIT_TYPES, Storage, Unsupported, View
from auglocal.foreign.values import Budget, Name, NumpyArray, NumpyType, Opaque, checked_key

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
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "bytes",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
NUMPY_TYPES = {
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "u8": "uint64",
    "b1": "bool",
}
UNSUPPORTED = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantised",
    "_rebuild_meta_tensor_no_storage": "meta (without values)",
    "_rebuild_wrapper_subclass": "wrapped",
    "_rebuild_device_tensor_from_numpy": "other device's",
    "_rebuild_device_tensor_from_cpu_tensor": "other device's",
}
TENSOR_STEPS = 20  # what a tensor takes beside its instructions
ATTRIBUTES = ("argparse.Namespace", "types.SimpleNamespace")


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
        if name not in ATTRIBUTES:
            self.budget.opaque[name] = None
        return Opaque(name)

    def build(self, target: Any, state: Any) -> Any:
        """Set an instance's state; tensors and containers have none that is read."""
        if isinstance(target, Opaque):
            target.state = state
        elif isinstance(target, NumpyType):
            _set_type(target, state)
        elif isinstance(target, NumpyArray):
            _set_array(self, target, state)
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


def storage_type(named: Any) -> str:
    """PyTorch's dtype name of the elements of a storage type."""
    if (
        type(named) is not Name
        or named.module.split(".")[0] != "torch"
        or named.name not in STORAGES
    ):
        raise Damage("it refers to a storage of no known type")
    return STORAGES[named.name]


# Containers


def _dictionary(meanings: Meanings, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict and its like: empty, or of pairs."""
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        meanings.budget.charge(len(pairs))
        return dict(pairs)
    if not isinstance(pairs, (list, tuple)):
        raise TypeError("no pairs")
    meanings.budget.charge(len(pairs))
    return {checked_key(key): value for key, value in pairs}


def _default_dictionary(meanings: Meanings, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Made with a factory, which is left out."""
    return _dictionary(meanings, arguments[1:])


def _set(meanings: Meanings, arguments: tuple[Any, ...]) -> set[Any]:
    values = arguments[0] if arguments else []
    if not isinstance(values, (list, tuple)):
        raise TypeError("no list")
    meanings.budget.charge(len(values))
    return {checked_key(value) for value in values}


def _sequence(meanings: Meanings, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list, tuple or torch.Size."""
    values = arguments[0] if arguments else ()
    if not isinstance(values, (list, tuple)):
        raise TypeError("no list")
    meanings.budget.charge(len(values))
    return tuple(values)


def _encoded(meanings: Meanings, arguments: tuple[Any, ...]) -> bytes:
    """Bytes as protocol 2 writes them: a text to be encoded."""
    text, encoding = arguments if len(arguments) == 2 else (*arguments, "utf-8")
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError("no text")
    meanings.budget.charge_text(len(text))
    return text.encode(encoding)


def _bytes(meanings: Meanings, arguments: tuple[Any, ...]) -> bytes:
    """bytes() or bytearray(), empty, of bytes, or of a text and its encoding."""
    if not arguments:
        return b""
    if isinstance(arguments[0], str):
        return _encoded(meanings, arguments)
    content = _raw(meanings, arguments[0])
    meanings.budget.charge_text(len(content))
    return bytes(content)


def _joined(meanings: Meanings, arguments: tuple[Any, ...], separator: str) -> str:
    """Texts and numbers as one text."""
    if not all(isinstance(each, str) or type(each) is int for each in arguments):
        raise TypeError("no texts")
    meanings.budget.charge_text(sum(len(each) for each in arguments if isinstance(each, str)))
    return separator.join(str(each) for each in arguments)


def _path(meanings: Meanings, arguments: tuple[Any, ...]) -> str:
    """A path as text; one from the root has it as its first part."""
    joined = _joined(meanings, arguments, "/")
    return joined[1:] if joined.startswith("//") else joined


def _device(meanings: Meanings, arguments: tuple[Any, ...]) -> str:
    """A device, its kind and index, as text; a memory layout likewise."""
    return _joined(meanings, arguments, ":")


def _attributes(meanings: Meanings, arguments: tuple[Any, ...]) -> Opaque:
    """A Namespace, whose state is read as a dictionary."""
    return meanings.opaque(ATTRIBUTES[0])


def _reconstructed(meanings: Meanings, arguments: tuple[Any, ...]) -> Any:
    """An instance of a class: the class comes first."""
    named = arguments[0]
    if type(named) is not Name:
        raise TypeError("no class")
    return meanings.call(named, (), is_new=True)


def _partial(meanings: Meanings, arguments: tuple[Any, ...]) -> Opaque:
    """A function with arguments, called later: stays inert."""
    return meanings.opaque("functools.partial")


# Tensors


def _tensor(meanings: Meanings, arguments: tuple[Any, ...]) -> View:
    """_rebuild_tensor and _rebuild_tensor_v2."""
    meanings.budget.charge(TENSOR_STEPS)
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("no storage")
    return View(storage, offset, shape, stride, storage.dtype)


def _tensor_with_type(meanings: Meanings, arguments: tuple[Any, ...]) -> View:
    """_rebuild_tensor_v3: of untyped bytes, the type named beside."""
    storage, offset, shape, stride, _, _, named = arguments[:7]
    if not isinstance(storage, Storage) or type(named) is not Name or storage.dtype != "bytes":
        raise TypeError("no storage")
    size = {"uint16": 2, "uint32": 4, "uint64": 8}.get(named.name, 1)
    typed = Storage(named.name, storage.num_elements // size, storage.content)
    return View(typed, offset, shape, stride, named.name)


def _parameter(meanings: Meanings, arguments: tuple[Any, ...]) -> Any:
    """A Parameter is its data."""
    if not isinstance(arguments[0], (View, Unsupported)):
        raise TypeError("no tensor")
    return arguments[0]


def _subclass(meanings: Meanings, arguments: tuple[Any, ...]) -> Any:
    """A tensor of a subclass: the function that makes it, the class, its arguments."""
    function, _, inner = arguments[:3]
    if type(function) is not Name or type(inner) is not tuple or "_rebuild_" not in function.name:
        raise TypeError("no tensor")
    if function.name == "_rebuild_from_type_v2":
        raise TypeError("nested")
    return meanings.call(function, inner, is_new=False)


def _unsupported(kind: str) -> Callable[[Meanings, tuple[Any, ...]], Unsupported]:
    return lambda meanings, arguments: Unsupported(kind)


def _nested(meanings: Meanings, arguments: tuple[Any, ...]) -> Storage:
    """A storage that was pickled outside torch.save: a whole legacy file as bytes."""
    return meanings.nested(_raw(meanings, arguments[0]))


# NumPy


def _numpy_type(meanings: Meanings, arguments: tuple[Any, ...]) -> NumpyType:
    code = arguments[0]
    if not isinstance(code, str) or len(code) > 8:
        raise TypeError("no dtype")
    return NumpyType(code)


def _set_type(target: NumpyType, state: Any) -> None:
    """State: version, byte order, and what only structured types have."""
    target.order = ">" if state[1] == ">" else "<"


def _numpy_scalar(meanings: Meanings, arguments: tuple[Any, ...]) -> Any:
    """One number as a plain one."""
    kind, content = arguments
    view = _array(meanings, kind, content, (), False)
    if view.dtype not in NUMPY_TYPES.values():
        return Opaque("numpy scalar")
    numbers = np.frombuffer(view.storage.content(), np.dtype(f"<{kind.code}"), count=1)
    return numbers[0].item()


def _empty_array(meanings: Meanings, arguments: tuple[Any, ...]) -> NumpyArray:
    return NumpyArray()


def _set_array(meanings: Meanings, target: NumpyArray, state: Any) -> None:
    """State: version, shape, dtype, whether in Fortran's order, bytes."""
    _, shape, kind, is_fortran, content = state
    target.view = _array(meanings, kind, content, shape, bool(is_fortran))


def _buffer_array(meanings: Meanings, arguments: tuple[Any, ...]) -> NumpyArray:
    """Protocol 5: bytes, dtype, shape, order."""
    content, kind, shape, order = arguments
    return NumpyArray(_array(meanings, kind, content, shape, order == "F"))


def _array(meanings: Meanings, kind: Any, content: Any, shape: Any, is_fortran: bool) -> View:
    """An array as a view of its bytes."""
    if not isinstance(kind, NumpyType) or not isinstance(shape, (tuple, list)) or len(shape) > 32:
        raise TypeError("no array")
    dtype = NUMPY_TYPES.get(kind.code) if kind.order == "<" else None
    if dtype is None or not all(type(each) is int for each in shape):
        return View(Storage("object", 0, lambda: memoryview(b"")), 0, shape, shape, "object")
    data = _raw(meanings, content)
    size = int(kind.code[1:])
    storage = Storage(dtype, len(data) // BIT_TYPES[size].itemsize, lambda: data)
    order = shape if is_fortran else shape[::-1]
    steps = [math.prod(order[:index]) for index in range(len(order))]
    return View(storage, 0, tuple(shape), steps if is_fortran else steps[::-1], dtype)


def _raw(meanings: Meanings, content: Any) -> memoryview:
    """Bytes, also those that a Python 2 pickle holds as text."""
    if isinstance(content, str):
        meanings.budget.charge_text(len(content))
        content = content.encode("latin-1")
    if not isinstance(content, (bytes, memoryview)):
        raise TypeError("no bytes")
    return memoryview(content)


CALLS: dict[str, Callable[[Meanings, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "builtins.dict": _dictionary,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.list": _sequence,
    "builtins.tuple": _sequence,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _reconstructed,
    "functools.partial": _partial,
    "argparse.Namespace": _attributes,
    "types.SimpleNamespace": _attributes,
    **{
        f"pathlib.{kind}{name}": _path
        for kind in ("", "Pure")
        for name in ("Path", "PosixPath", "WindowsPath")
    },
    "torch.Size": _sequence,
    "torch.device": _device,
    "torch.serialization._get_layout": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.storage._load_from_bytes": _nested,
    **{f"torch._utils.{name}": _unsupported(kind) for name, kind in UNSUPPORTED.items()},
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.numeric._frombuffer": _buffer_array,
}
