"""A network of the user's own in, a read-only model out, as `open_model` makes of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from analysis.errors import InputError
from analysis.models import Model, device_named, module_metadata, weights_sha256
from analysis.module_reader import ModuleReader, TrialError, unwrapped

# Heights and widths of images that a module of unknown input is tried on.
TRIAL_SIZES = (32, 64, 224)


def from_module(
    torch_module: nn.Module,
    layer_names: Sequence[str] | None = None,
    *,
    name: str = "model",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    input_size: tuple[int, int, int] | None = None,
    device: str | None = None,
    channel_axes: Mapping[str, int] | None = None,
) -> Model:
    """Read a network of your own, which is left as it is: weights, gradients, modes, hooks.

    It runs once on images of zeros, which finds the order of its layers. Features are handed over
    as (N, D) or (N, C, H, W), whatever order of axes the network has; tokens as (N, C, T, 1).

    Args:
        torch_module: takes normalised images (N, C, H, W).
        layer_names: as `named_modules` calls them, or ends of such names that are enough to tell
            them apart; None chooses blocks, see `analysis.module_layers.block_names`. They are
            read in the order in which they run; one that runs twice is "name" and "name#2".
        name: for people.
        mean: of pixel values in [0, 1], by channel; None leaves pixel values in [0, 1].
        std: likewise.
        classes: names of its K outputs; without them its own answers are not scored.
        input_size: (C, H, W) of an image; None tries 32, 64 and 224 pixels, and takes any size.
        device: None reads it where it is; another than that reads a copy there.
        channel_axes: axis of the channels in a layer's output, by layer name, where it is not the
            one that has as many entries as the layer's last weights have outputs.

    Returns:
        a model. Its checksum is of the weights as they are now (`weights_sha256`): once they have
        changed, call this again.

    Raises:
        InputError: the module cannot be read so; the message says why.

    Example:
        >>> model = from_module(net, ["layer1", "layer2"], input_size=(3, 32, 32))
    """
    if not isinstance(torch_module, nn.Module):
        raise InputError(
            f"from_module takes a torch.nn.Module, not a {type(torch_module).__name__}; give the "
            "network itself, or open a file by open_model."
        )
    module = unwrapped(torch_module)
    where = next(module.parameters(), torch.empty(0)).device
    if device is not None:
        chosen = device_named(device)
        if chosen.type != where.type:
            module, where = copy.deepcopy(module).to(chosen), chosen
    size, reader = _open_reader(module, layer_names, input_size, channel_axes)
    mean, std = _normalisation(mean, std, size[0])
    if classes is not None and len(classes) != reader.num_outputs:
        raise InputError(
            f"{len(classes)} classes were named, but the module gives {reader.num_outputs} values "
            "an image; name one class for each."
            if reader.num_outputs
            else "Classes were named, but the module does not give one row of values an image; "
            "leave classes out."
        )
    metadata = module_metadata(
        architecture=type(module).__name__,
        num_classes=reader.num_outputs,
        input_size=size,
        mean=mean,
        std=std,
        classes=tuple(classes or ()),
    )
    return Model(
        name=name,
        path=None,
        sha256=weights_sha256(module),
        metadata=metadata,
        backbone=reader,
        device=where,
        takes_any_size=input_size is None,
    )


def _open_reader(
    module: nn.Module,
    layer_names: Sequence[str] | None,
    input_size: tuple[int, int, int] | None,
    channel_axes: Mapping[str, int] | None,
) -> tuple[tuple[int, int, int], ModuleReader]:
    """Make a reader with images of the size given, or of the first that the module takes."""
    sizes = _usual_sizes(module) if input_size is None else [input_size]
    failures = []
    for size in sizes:
        try:
            return size, ModuleReader(module, layer_names, size, channel_axes)
        except TrialError as error:
            failures.append(error)
    raise failures[0]


def _usual_sizes(module: nn.Module) -> list[tuple[int, int, int]]:
    """Sizes of images to try; the convolution defined first need not be the one that runs first."""
    convolutions = (part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
    channels = dict.fromkeys([next(convolutions, 3), 3, 1])
    return [(count, side, side) for count in channels for side in TRIAL_SIZES]


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Check mean and deviation, of which none is given or both."""
    if mean is None and std is None:
        return (0.0,) * channels, (1.0,) * channels
    if mean is None or std is None or not len(mean) == len(std) == channels or min(std) <= 0:
        raise InputError(
            f"The mean and std of images with {channels} channels are {channels} numbers each, std "
            f"above 0, not {mean} and {std}; give both or neither."
        )
    return tuple(mean), tuple(std)
