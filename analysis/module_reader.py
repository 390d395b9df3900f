"""A network of the user's own in, the outputs of its layers in the order in which they run out.

Any `torch.nn.Module` is read by forward hooks, which are there only while it runs, and is left as
it was: weights, gradients, and which of its parts are in training mode. This file knows torch and
nothing of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from analysis.errors import InputError
from analysis.module_layers import block_names, find_layers, listed, without_layer

Visit = Callable[[str, Tensor], None]

# Images of the trial run that finds the order; few networks have so many channels or tokens.
TRIAL_IMAGES = 5
# Parts whose channels are on axis 1 of their output; those of other parts come last.
CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


class TrialError(InputError):
    """The module cannot run on images of this size."""


class UnreadableError(InputError):
    """A layer's output has no row an image."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class ModuleReader:
    """A module and which of its layers are read.

    Args:
        module: any network that takes a batch of images; it is not copied.
        layer_names: layers as `named_modules` calls them, or the end of such a name where no other
            layer ends so; None chooses blocks, see `block_names`.
        input_size: (C, H, W) of the images of a trial run of zeros, which finds the order.
        channel_axes: axis of the channels in a layer's output, by the layer's name, where it is
            not what `channel_axis` finds.

    Attributes:
        layer_names: in the order in which they run. A layer that runs more than once is there with
            every run: "name", "name#2", "name#3".
        num_outputs: K, columns of the network's output; 0 where it is not (N, K).

    Raises:
        InputError: a name is unknown, ambiguous or a layer does not run; the module cannot take
            such images; a layer's output is not a tensor with one row an image.
    """

    def __init__(
        self,
        module: nn.Module,
        layer_names: Sequence[str] | None,
        input_size: tuple[int, int, int],
        channel_axes: Mapping[str, int] | None = None,
    ) -> None:
        self.module = unwrapped(module)
        axes = find_layers(self.module, list(channel_axes or {}))
        self._axes = dict(zip(axes, (channel_axes or {}).values()))
        self.layer_names: tuple[str, ...] = ()
        if layer_names is None:
            self._choose(input_size)
        else:
            self._set_layers(layer_names)
            self._try(input_size, drop_output=False)
        self._parameters = list(self.module.parameters())
        self._versions = self._count_changes()

    def _set_layers(self, names: Sequence[str]) -> None:
        self._layers = find_layers(self.module, names)
        widths = _widths(self.module)
        self._widths = {name: widths.get(layer) for name, layer in self._layers.items()}

    def _choose(self, input_size: tuple[int, int, int]) -> None:
        """Choose blocks; of one whose output has no row an image, what it lies in is read."""
        names = block_names(self.module)
        while True:
            self._set_layers(names)
            try:
                self._try(input_size, drop_output=True)
                return
            except UnreadableError as error:
                names = without_layer(self.module, names, error.name)

    def _try(self, input_size: tuple[int, int, int], *, drop_output: bool) -> None:
        """Run once on zeros, to see which layers run, in which order, and what comes out."""
        place = next(self.module.parameters(), torch.empty(0)).device
        calls: list[str] = []
        last: list[Tensor] = []

        def note(name: str, features: Tensor) -> None:
            calls.append(name)
            last[:] = [features]

        try:
            output = self._run(torch.zeros(TRIAL_IMAGES, *input_size, device=place), note)
        except InputError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise TrialError(
                f"The module cannot run on images of {' x '.join(map(str, input_size))} ({reason});"
                " give input_size=(C, H, W) of the images that it takes."
            ) from error
        logits = _logits(output, TRIAL_IMAGES)
        self.num_outputs = 0 if logits is None else logits.shape[1]
        if drop_output:
            # What the automatic choice should not show: branches that run in training only, and
            # the network's answer.
            answers = logits is not None and any(_share_memory(logits, part) for part in last)
            if answers and len(calls) > 1 and calls[-1] in self._layers:
                calls.pop()
            self._layers = {name: self._layers[name] for name in self._layers if name in calls}
        idle = [name for name in self._layers if name not in calls]
        if idle or not calls:
            raise InputError(
                f"Of the layers asked for, {listed(idle)} did not run when the module did; choose "
                "others with layer_names."
                if idle
                else "No layer of the module could be chosen; name some with layer_names."
            )
        self.layer_names = tuple(calls)

    def visit(self, images: Tensor, visit: Visit) -> Tensor | None:
        """Run the module on images and hand over each layer's output as it is computed.

        Args:
            images: normalised, float, (N, C, H, W), on the module's device.
            visit: called with a layer's name and its features, (N, D) or (N, C, H, W) whatever
                order of axes the network uses, see `channels_first`; within `torch.no_grad`,
                without autocast. It must copy what it keeps: what runs next may work in place.

        Returns:
            the network's output (N, K), float32, or None where it has none of that shape.

        Raises:
            InputError: a layer did not run, or ran more often than on the trial; or the weights
                have changed since this reader was made.
        """
        if self._count_changes() != self._versions:
            raise InputError(
                "The module's weights have changed since it was opened, so results would be kept "
                "under the wrong checksum; call from_module again."
            )
        seen: list[str] = []

        def check_and_visit(name: str, features: Tensor) -> None:
            if name not in self.layer_names:
                raise InputError(
                    f"The module ran {name!r} for these images, which it did not for others; leave "
                    "the layer out of layer_names."
                )
            seen.append(name)
            visit(name, features)

        output = self._run(images, check_and_visit)
        if len(seen) < len(self.layer_names):
            raise InputError(
                f"The module did not run {listed(sorted({*self.layer_names} - {*seen}))} for these "
                "images, but did for others; leave it out of layer_names."
            )
        logits = _logits(output, len(images))
        return None if logits is None else logits.float()

    def _count_changes(self) -> list[tuple[int, int]]:
        """Tell apart the states of the weights; every change in place counts one up."""
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._parameters]

    def _run(self, images: Tensor, visit: Visit) -> Any:
        """Run the module with hooks, which are gone afterwards whatever happens."""
        counts: Counter[str] = Counter()
        num_images = len(images)

        def hook_of(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, arguments: Any, output: Any) -> None:
                counts[name] += 1
                call = name if counts[name] == 1 else f"{name}#{counts[name]}"
                features = self._features(name, call, output, num_images)
                # The network's autocast is not for what is computed from its features.
                with torch.autocast(features.device.type, enabled=False):
                    visit(call, features)

            return hook

        kind = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), None)
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.module))
            for name, layer in self._layers.items():
                stack.callback(layer.register_forward_hook(hook_of(name)).remove)
            return self.module(images if kind is None else images.to(kind))

    def _features(self, name: str, call: str, output: Any, num_images: int) -> Tensor:
        """Give a layer's output as (N, C, ...)."""
        features = _tensor_of_images(output, num_images)
        if features is None:
            raise UnreadableError(
                name,
                f"The layer {call!r} gives a {type(output).__name__} in which no tensor of numbers "
                "was found; choose a layer within it.",
            )
        if features.dim() < 2 or len(features) != num_images:
            raise UnreadableError(
                name,
                f"The layer {call!r} gives {tuple(features.shape)} for {num_images} images, and "
                "not one row an image; choose another layer, or wrap it in a module that puts the "
                "images on the first axis.",
            )
        axis = self._axes.get(name)
        if axis is None:
            axis = channel_axis(features.shape, self._widths[name])
        return channels_first(features.detach(), axis)


def unwrapped(module: nn.Module) -> nn.Module:
    """Give the network inside `torch.compile` and data-parallel wrappers, which hide its layers."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(module, parallel) or hasattr(module, "_orig_mod"):
        module = module.module if isinstance(module, parallel) else module._orig_mod  # type: ignore[assignment]
    return module


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set every part to evaluation mode, without gradients; each part's own mode comes back."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        # Not eval(), which a network may have made to do more than this.
        for part, _ in modes:
            part.training = False
        # Not inference mode: what a network keeps of a run could not be trained with later.
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


# ------------------------------------------------------------------------------------- outputs


def first_tensor(output: Any) -> Tensor | None:
    """Find the first tensor of floating point numbers in tensors, tuples, lists and dicts."""
    return next(_tensors(output), None)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Find all tensors of floating point numbers in tensors, tuples, lists and dicts."""
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def _tensor_of_images(output: Any, num_images: int) -> Tensor | None:
    """Find the first tensor with a row for each image; where none has, the first of all."""
    found = list(_tensors(output))
    fitting = (part for part in found if part.dim() > 1 and len(part) == num_images)
    return next(fitting, found[0] if found else None)


def _logits(output: Any, num_images: int) -> Tensor | None:
    """Give the network's answer (N, K): its entry "logits", or its first tensor."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    logits = first_tensor(output)
    if logits is None or logits.dim() != 2 or len(logits) != num_images:
        return None
    return logits.detach()


def _share_memory(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors lie in the same memory; both must be alive."""
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def channel_axis(shape: Sequence[int], width: tuple[int, bool] | None) -> int:
    """Say which axis of a layer's output holds its channels.

    Args:
        shape: (N, ...), with one axis or more after N.
        width: (channels, whether they come last) of the last part with weights in the layer or
            before it: convolutions and batch norms have their channels on axis 1, linear layers
            and layer norms on the last. None if there is none.

    Returns:
        the only axis of that many channels; where no axis or more than one has them, the one on
        which such a part puts them.
    """
    channels, last = width or (0, False)
    fitting = [axis for axis in range(1, len(shape)) if shape[axis] == channels]
    if len(fitting) == 1:
        return fitting[0]
    return len(shape) - 1 if last else 1


def channels_first(features: Tensor, axis: int) -> Tensor:
    """Give features as (N, C, ...), a view: what is pooled is all that comes after C.

    A sequence (N, T, C) or (N, C, T) becomes (N, C, T, 1), an image of T x 1 pixels, so that every
    measure pools it alike: over all tokens, class tokens among them.
    """
    features = features.movedim(axis, 1)
    return features.unsqueeze(-1) if features.dim() == 3 else features


def _widths(module: nn.Module) -> dict[nn.Module, tuple[int, bool]]:
    """Find each part's last part with weights: its channels, and whether they come last.

    A part without weights has those of the part defined before it.
    """
    own = {part: width for part in module.modules() if (width := _own_width(part)) is not None}
    widths: dict[nn.Module, tuple[int, bool]] = {}
    before: tuple[int, bool] | None = None
    for part in module.modules():
        inside = [own[child] for child in part.modules() if child in own]
        found = inside[-1] if inside else before
        if found is not None:
            widths[part] = found
        before = own.get(part, before)
    return widths


def _own_width(part: nn.Module) -> tuple[int, bool] | None:
    """Give a part's output channels, and whether they come last; None if it does not say."""
    for name in ("out_channels", "num_features", "num_channels", "out_features", "embedding_dim"):
        channels = getattr(part, name, None)
        if isinstance(channels, int):
            return channels, not isinstance(part, CONVOLUTIONS)
    shape = getattr(part, "normalized_shape", None)
    # torchvision's LayerNorm2d is a LayerNorm over axis 1; the count of channels finds it.
    return (shape[-1], True) if isinstance(shape, (tuple, list)) and shape else None
