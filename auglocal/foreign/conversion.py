"""A recognised state dict in, a checkpoint of ours out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from auglocal.checkpoint import Checkpoint, CheckpointMetadata
from auglocal.errors import InputError
from auglocal.foreign.candidates import Candidate
from auglocal.foreign.recognise import COUNTER, Recognition, outline

UNKNOWN = "unknown"


def to_checkpoint(
    tensors: Mapping[str, Tensor],
    recognition: Recognition,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    dataset: str = UNKNOWN,
    rule: str | None = None,
    epoch: int = 0,
    resize: int | None = None,
    interpolation: str | None = None,
    config: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Checkpoint:
    """Put tensors under our keys, with metadata about them.

    Args:
        tensors: those that were recognised.
        recognition: of them.
        mean: of pixel values in [0, 1], by channel.
        std: likewise.
        classes: K names in the order of the logits; None calls them "0", "1" and so on.
        dataset: what people call the data it was trained on.
        rule: what trained it, where the user says so; None is what the file shows.
        epoch: epochs completed.
        resize: what was done to stored images, None for nothing.
        interpolation: likewise.
        image_size: (H, W) of its images, where the user says so; None is the usual one.
        config: such as {"dataset": "cifar10"}.

    Returns:
        a checkpoint whose trained values are float32 and whose checksum is empty, since it is that
        of no file; its auxiliary networks are there where the rule is the one that the file shows.

    Raises:
        InputError: there are not C values in `mean` and `std`, or not K classes.
    """
    names = tuple(classes or (str(index) for index in range(recognition.num_classes)))
    _check(recognition, mean, std, names)
    if image_size is not None:
        input_size = (recognition.input_size[0], *image_size)
        recognition = replace(recognition, input_size=input_size)
    backbone = outline(_candidate(recognition))
    assert backbone is not None  # it was recognised
    backbone_tensors = _under_our_keys(tensors, recognition.keys, backbone.state_dict())
    auxiliary: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    if recognition.rule is not None and rule in (None, recognition.rule):
        options = recognition.rule_options
        auxiliary = _under_our_keys(tensors, recognition.auxiliary_keys, {})
    metadata = CheckpointMetadata(
        architecture=recognition.architecture,
        num_classes=recognition.num_classes,
        input_size=recognition.input_size,
        mean=tuple(mean),
        std=tuple(std),
        classes=names,
        dataset=dataset,
        rule=rule or recognition.rule or UNKNOWN,
        rule_options=options,
        epoch=epoch,
        accuracy=None,
        resize=resize,
        interpolation=interpolation,
        seed=0,
        config=dict(config or {}),
        versions={},
        width=recognition.width,
    )
    return Checkpoint(metadata, backbone_tensors, auxiliary, "")


def _candidate(recognition: Recognition) -> Candidate:
    return Candidate(
        recognition.architecture,
        recognition.family,
        recognition.why,
        recognition.width,
        recognition.num_classes,
        recognition.input_size,
    )


def _check(
    recognition: Recognition,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> None:
    """Refuse a normalisation or names that do not fit the network."""
    channels = recognition.input_size[0]
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"The network takes images of {channels} channels, so that the mean and the std have "
            f"{channels} values each, not {len(mean)} and {len(std)}; give as many."
        )
    if len(classes) != recognition.num_classes:
        raise InputError(
            f"The network has {recognition.num_classes} classes, not {len(classes)}; give "
            f"{recognition.num_classes} names, or none."
        )


def _under_our_keys(
    tensors: Mapping[str, Tensor], keys: Mapping[str, str], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors by our keys, in float32; counters that a file lacks start at 0.

    Args:
        tensors: by the file's keys.
        keys: the file's key by ours.
        expected: what the backbone has, for shapes that a file writes otherwise; not needed of
            auxiliary networks.
    """
    ours = {}
    for key, name in keys.items():
        tensor = tensors[name].detach()
        if key.endswith(COUNTER):
            tensor = tensor.to(torch.int64)
        elif tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        ours[key] = tensor.reshape(expected[key].shape) if key in expected else tensor
    # A BatchNorm has a mean on record; its counter stands beside it.
    for key in [key for key in ours if key.endswith(".running_mean")]:
        counter = key.removesuffix(".running_mean") + COUNTER
        ours.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return ours
