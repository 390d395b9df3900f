"""What the names of PyTorch's storages and tensors mean in a pickle: views of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from auglocal.foreign.refusal import Damage
from auglocal.foreign.tensors import Storage, Unsupported, View
from auglocal.foreign.values import Name, raw

if TYPE_CHECKING:
    from auglocal.foreign.names import Meanings

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


def storage_type(named: Any) -> str:
    """PyTorch's dtype name of the elements of a storage type."""
    if (
        type(named) is not Name
        or named.module.split(".")[0] != "torch"
        or named.name not in STORAGES
    ):
        raise Damage("it refers to a storage of no known type")
    return STORAGES[named.name]


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
    return meanings.nested(raw(meanings.budget, arguments[0]))


CALLS: dict[str, Callable[[Meanings, tuple[Any, ...]], Any]] = {
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
}
