"""A published architecture and a file's tensors in, a network of torchvision or timm out.

Nothing is downloaded: networks are built without weights, and the file's take their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from analysis.errors import InputError
from analysis.fingerprints import MOST_MISFITS, Published, current_key, is_computed
from analysis.models import Model
from analysis.module_reader import evaluating
from analysis.modules import from_module

# Smaller tensors are made, since networks compute tables of positions in some of them.
MOST_FILLED = 2**16
# Architectures of torchvision with classifiers beside the trunk: the keys of these begin so.
AUXILIARY_KEYS = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}


# --------------------------------------------------------------------------- with a file's weights


def open_published(
    published: Published,
    tensors: Mapping[str, Tensor],
    *,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
) -> Model:
    """Open a file of a published architecture for reading.

    Its layers are the blocks, in the order in which they run: residual and inverted residual
    blocks, transformer layers, inception modules, dense blocks (not the layers in them, each of
    which adds a few channels only) and transitions, patch mergings; of plain chains, convolutions
    and hidden linear layers. Features are (N, C, H, W), channels-last networks' too, and tokens
    (N, C, T, 1).

    Args:
        published: one of those that `find_published` found in the shapes of the tensors.
        tensors: of the file, by key.
        name: for people; None takes the architecture's.
        mean: of pixel values in [0, 1], by channel; None takes the published weights'.
        std: likewise.
        classes: names of its K outputs.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        a model, whose metadata have the architecture as "torchvision:densenet121".

    Raises:
        InputError: timm is needed and not installed, or the tensors are not this network's.
    """
    module = build_published(published, tensors)
    model = from_module(
        module,
        name=name or published.name,
        mean=mean or published.mean,
        std=std or published.std,
        classes=classes,
        input_size=published.input_size,
        device=device,
    )
    architecture = f"{published.library}:{published.name}"
    return replace(
        model,
        metadata=replace(model.metadata, architecture=architecture),
        takes_any_size=not published.sized and _takes_half_size(module, published.input_size),
    )


def _takes_half_size(module: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Try images of half the size; that others fit as well is likely, but not certain."""
    channels, height, width = input_size
    try:
        with evaluating(module):
            weight = next(module.parameters())
            module(torch.zeros(1, channels, height // 2, width // 2, device=weight.device))
    except Exception:  # whatever it says, the size is not for it
        return False
    return True


def build_published(published: Published, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a published architecture with the weights of a file.

    Args:
        published: one of those that `find_published` found in the shapes of the tensors.
        tensors: of the file, by key, on one device; half precision becomes float32. Counters of
            BatchNorm, and tables that the network computes itself, may be missing.

    Returns:
        the network, in evaluation mode, which shares the memory of the tensors.

    Raises:
        InputError: timm is needed and not installed, or the tensors are not this network's.
    """
    given = {current_key(key): tensor for key, tensor in tensors.items()}
    prefix = AUXILIARY_KEYS.get(published.name, "no key begins so")
    module = build_unfilled(
        lambda: make_network(
            published.library,
            published.name,
            num_classes=published.num_classes or 1000,
            in_channels=published.in_channels,
            image_size=published.input_size[1] if published.sized else None,
            auxiliary=any(key.startswith(prefix) for key in given),
        )
    )
    if published.num_classes == 0:
        _drop_classifier(module, given)
    expected = module.state_dict()  # with the versions of its parts, on which loading depends
    _check_shapes(published, expected, given)
    for key, tensor in given.items():
        if not is_computed(key):
            expected[key] = tensor.float() if tensor.is_floating_point() else tensor
    module.load_state_dict(expected, assign=True)
    return module.requires_grad_(False).eval()


def _drop_classifier(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Take out the layers of which a file without classifier has no weights."""
    missing = [key for key in module.state_dict() if key not in given and not is_computed(key)]
    for name in {key.rpartition(".")[0] for key in missing}:
        module.set_submodule(name, nn.Identity())


def _check_shapes(
    published: Published, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not this network's; what it computes itself does not matter."""
    shapes, found = (
        {key: tuple(tensor.shape) for key, tensor in tensors.items() if not is_computed(key)}
        for tensors in (expected, given)
    )
    misfits = [key for key in {**found, **shapes} if found.get(key) != shapes.get(key)]
    if misfits:
        raise InputError(
            f"The tensors are not those of {published.name} ({published.library}): "
            f"{len(misfits):,} keys do not fit, first {', '.join(misfits[:MOST_MISFITS])}; "
            "choose another architecture."
        )


# --------------------------------------------------------------------------- without weights


class _Unfilled(TorchFunctionMode):
    """Draw no weights: parameters are not filled, and large ones take no memory.

    It holds for the calling thread only. What a network computes for itself (tables of relative
    positions, masks, depths) is computed.
    """

    def __init__(self, *, on_meta: bool) -> None:
        super().__init__()
        self.on_meta = on_meta

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Leave out what changes parameters in place, do the rest."""
        options = kwargs or {}
        filled = args[0] if args else options.get("tensor")  # as torch.nn.init passes it on
        if _is_weight(filled) and _works_in_place(getattr(func, "__name__", "")):
            return filled
        result = func(*args, **options)
        if self.on_meta and func is torch.empty and _is_large(result):
            return result.to("meta")
        return result


def _works_in_place(name: str) -> bool:
    """Tell whether a function of this name fills its first argument."""
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def _is_weight(value: object) -> bool:
    """Tell whether a tensor is a parameter, or the inside of one."""
    return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value.is_meta)


def _is_large(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() >= MOST_FILLED


def build_unfilled(make: Callable[[], nn.Module], *, complete: bool = True) -> nn.Module:
    """Build a network without drawing its weights, which a state dict then replaces.

    Args:
        make: builds it.
        complete: what is not in the state dict (masks, tables of positions) must be computed;
            without, it may be missing where only keys and shapes are asked for.

    Returns:
        the network, in evaluation mode; its parameters are on the meta device or not filled.
    """
    try:
        with _Unfilled(on_meta=True):
            module = make()
        if not complete or not _lacks_buffers(module):
            return module.eval()
    except (RuntimeError, NotImplementedError):
        pass  # It computes with its weights, or reads them, when it is built.
    with _Unfilled(on_meta=False):
        return make().eval()


def _lacks_buffers(module: nn.Module) -> bool:
    """Tell whether a buffer that a state dict need not bring is on the meta device."""
    brought = {key for key in module.state_dict() if not is_computed(key)}
    return any(part.is_meta for name, part in module.named_buffers() if name not in brought)


def make_network(
    library: str,
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    auxiliary: bool = False,
) -> nn.Module:
    """Build a published architecture by its library, without pretrained weights.

    Args:
        library: "torchvision" or "timm".
        name: as the library lists it.
        num_classes: K.
        in_channels: C of the images.
        image_size: pixels, where the network's tensors depend on it; else None.
        auxiliary: with classifiers beside the trunk, where it can have some.

    Raises:
        InputError: timm is not installed, or the library here has no such architecture.
    """
    return LIBRARIES[library](name, num_classes, in_channels, image_size, auxiliary)


def _make_torchvision(
    name: str, num_classes: int, in_channels: int, image_size: int | None, auxiliary: bool
) -> nn.Module:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise _unknown("torchvision", torchvision.__version__, name)
    options: dict[str, Any] = {}
    if name in AUXILIARY_KEYS:
        options = {"init_weights": False, "aux_logits": auxiliary}
    if image_size is not None:
        options["image_size"] = image_size
    module: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **options
    )
    if in_channels != 3:
        _widen_input(module, in_channels)
    return module


def _widen_input(module: nn.Module, in_channels: int) -> None:
    """Let the first convolution take other channels than red, green and blue."""
    first = next(
        part for part in module.modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3
    )
    first.in_channels = in_channels
    shape = (first.out_channels, in_channels, *first.kernel_size)
    first.weight = nn.Parameter(torch.empty(shape))


def _make_timm(
    name: str, num_classes: int, in_channels: int, image_size: int | None, auxiliary: bool
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"The file holds {name}, an architecture of timm, which is not installed here; "
            "`pip install timm`, and open it again."
        ) from error
    if not timm.is_model(name):
        raise _unknown("timm", timm.__version__, name)
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    module: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options
    )
    return module


def _unknown(library: str, version: str, name: str) -> InputError:
    return InputError(
        f"The file holds {name} of {library}, which version {version} installed here does not "
        f"have; `pip install --upgrade {library}`, and open it again."
    )


LIBRARIES = {"torchvision": _make_torchvision, "timm": _make_timm}
