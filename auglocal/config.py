"""What a training run is: one frozen, validated record, from which the command line is made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import PurePath
from typing import Any, get_args, get_type_hints

import torch

from auglocal.backbones.registry import build_backbone
from auglocal.data import AUGMENTATIONS, check_dataset_name
from auglocal.errors import InputError
from auglocal.rules.registry import Rule, make_rule
from auglocal.schedule import SCHEDULES


def option(default: Any, doc: str) -> Any:
    """A field with its default and its line of documentation."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run. Each field's doc is its command-line help."""

    architecture: str = option("resnet20", "backbone to train")
    width: float = option(1.0, "multiplies the backbone's channels")
    dataset: str = option("digits", "data to train on; imagefolder:PATH for a folder tree")
    rule: str = option("auglocal", "learning rule")
    auxiliary_depth: int = option(2, "auglocal: layers in the first auxiliary network")
    pyramid: float = option(0.5, "auglocal: 0 keeps that depth everywhere, 1 falls to one layer")
    selection: str = option(
        "uniform", "auglocal: which later layers it copies: uniform, next or random ones"
    )
    selection_seed: int = option(0, "auglocal: decides which layers --selection random takes")
    tail: int | None = option(
        None, "auglocal: layers that train with the classifier (depth + 1; ImageNet forms: 1)"
    )
    modules: int | None = option(
        None, "all but bp: blocks of layers that learn by themselves (a block a layer); 1 is bp"
    )
    local_loss: str = option("cross-entropy", "auglocal: what its auxiliary networks learn from")
    reconstruction_first: float | None = option(
        None, "infopro: weight of its reconstruction loss at the first block (5)"
    )
    reconstruction_last: float | None = option(
        None, "infopro: the same at the last hidden block (0.2; from 30 layers on 0.5)"
    )
    cross_entropy_first: float | None = option(
        None, "infopro: weight of its cross-entropy at the first block (0.05; from 30 layers on 0)"
    )
    cross_entropy_last: float | None = option(
        None, "infopro: the same at the last hidden block (0.5; from 30 layers on 1)"
    )
    epochs: int = option(15, "passes over the training images")
    batch_size: int = option(32, "images a step")
    learning_rate: float = option(0.05, "peak learning rate")
    schedule: str = option(
        "cosine",
        "learning rate over time: cosine (with a warm-up), published (for 400 epochs), or "
        "cosine-no-warmup (published for ImageNet)",
    )
    momentum: float = option(0.9, "Nesterov momentum")
    weight_decay: float = option(1e-4, "L2 penalty on every parameter")
    augment: bool = option(True, "change training images at random; how is the next option")
    augmentation: str = option(
        "data-set", "data-set: as its recipe says; crop-and-flip; random-resized-crop of files"
    )
    validation_samples: int | None = option(
        None, "training images held out to choose best.safetensors (digits 100, others 0)"
    )
    image_size: int | None = option(None, "resize the images of a folder to this many pixels")
    dataset_title: str | None = option(None, "what to call the data of a folder")
    skip_corrupt: bool = option(
        False, "leave out images of a folder that cannot be read; each is decoded twice then"
    )
    precision: str = option("fp32", "arithmetic of a training step: fp32, or bf16 under autocast")
    channels_last: bool = option(True, "memory layout of images; usually the faster one")
    snapshot_epochs: tuple[int, ...] = option(
        (), "epochs after which the backbone is kept in snapshots/; 0 is the untrained network"
    )
    snapshot_dtype: str = option("fp32", "weights of snapshots: fp32, or half the size: bf16, fp16")
    recompute: bool = option(False, "run each block twice, and hold less: the same result, slower")
    step_per_block: bool = option(
        False,
        "step a block's weights right after its backward, and free its gradients: same result",
    )
    accumulate: int = option(
        1, "parts that a batch is worked through in, one after the other; their gradients add up"
    )
    sync_batch_norm: bool = option(
        False, "--parallel data=N: BatchNorm sees the whole batch, not a rank's share of it"
    )
    compile: bool = option(False, "compile blocks with torch.compile (a minute or more at first)")
    cuda_graph: bool = option(True, "CUDA: record a training step once, and replay it")
    block_threads: int = option(
        1, "CPU: train so many blocks at the same time, a thread each; more memory, the same result"
    )
    seed: int = option(0, "decides weights, order and augmentation")
    pretrained: str | None = option(
        None,
        "start from these weights: a checkpoint, anybody's file of the same architecture, or fetch "
        "torchvision's: torchvision:IMAGENET1K_V1, say",
    )
    data_folder: str = option("data", "where downloaded data sets lie")
    stream: bool | None = option(
        None, "decode image files while training; otherwise they are held in memory if they fit"
    )
    workers: int | None = option(
        None, "processes that decode (one a core, at most 8); 0 decodes in this one"
    )
    device: str = option("auto", "auto, cpu, cuda or mps")

    def __post_init__(self) -> None:
        check_dataset_name(self.dataset)
        with torch.device("meta"):  # no weights: does the rule fit the backbone?
            self.make_rule().build(build_backbone(self.architecture, width=self.width))
        if self.rule == "bp" and self.modules not in (None, 1):
            raise InputError(
                f"bp trains all layers as one block, not as {self.modules}; leave --modules out, "
                "or choose another --rule."
            )
        _require_choice("augmentation", self.augmentation, tuple(AUGMENTATIONS))
        _require_choice("schedule", self.schedule, tuple(SCHEDULES))
        _require_choice("precision", self.precision, PRECISION_NAMES)
        _require_choice("snapshot dtype", self.snapshot_dtype, tuple(WEIGHT_TYPES))
        _require_choice("device", self.device, DEVICE_NAMES)
        for name, smallest in SMALLEST.items():
            _require_at_least(name, getattr(self, name), smallest)
        if not self.learning_rate > 0:
            raise InputError(f"The learning rate must be above 0, not {self.learning_rate:g}.")
        if self.momentum >= 1:
            raise InputError(f"The momentum must be below 1, not {self.momentum:g}.")
        _require_snapshot_epochs(self.snapshot_epochs, self.epochs)

    def make_rule(self) -> Rule:
        """The learning rule with this run's options."""
        return make_rule(self.rule, self)

    def rule_options(self) -> dict[str, Any]:
        """The options that this run's rule knows, by name."""
        rule = self.make_rule()
        return {item.name: getattr(rule, item.name) for item in fields(rule)}

    def portable(self) -> dict[str, Any]:
        """The record as plain values for a checkpoint: no machine's paths or devices in it."""
        values = asdict(self)
        for name in OF_THIS_MACHINE:
            del values[name]
        kind, separator, path = self.dataset.partition(":")
        values["dataset"] = f"{kind}{separator}{PurePath(path).name}"
        if self.pretrained is not None:
            values["pretrained"] = PurePath(self.pretrained).name
        return values

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


# What the weights of a checkpoint file may be; `auglocal.checkpoint` reads all of them.
WEIGHT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What may differ when a run goes on: where and in how much memory it computes, and where its data
# lies and who decodes it, not what it learns.
OF_THIS_MACHINE = (
    "data_folder",
    "device",
    "stream",
    "workers",
    "compile",
    "cuda_graph",
    "block_threads",
)
MAY_CHANGE = (*OF_THIS_MACHINE, "recompute", "step_per_block")
PRECISION_NAMES = ("fp32", "bf16")
DEVICE_NAMES = ("auto", "cpu", "cuda", "mps")
SMALLEST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 1,
    "block_threads": 1,
    "momentum": 0,
    "weight_decay": 0,
    "validation_samples": 0,
    "image_size": 8,
    "seed": 0,
    "selection_seed": 0,
    "workers": 0,
}


def config_from_json(text: str, **changes: Any) -> TrainConfig:
    """Read a record back, with some fields changed.

    Raises:
        InputError: the text is no such record.
    """
    try:
        return replace(TrainConfig(**typed_values(json.loads(text))), **changes)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The run's config.json is damaged ({error}); start a new run.") from error


def typed_values(values: object) -> dict[str, Any]:
    """Fields read from JSON or TOML, as `TrainConfig` takes them: lists become tuples.

    Raises:
        TypeError: a name is no field, or a value has the wrong type; the message says which.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"it holds {type(values).__name__} where options with names should be")
    kinds = get_type_hints(TrainConfig)
    unknown = [name for name in values if name not in kinds]
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}")
    return {name: _typed_value(name, kinds[name], value) for name, value in values.items()}


def _typed_value(name: str, kind: Any, value: Any) -> Any:
    """`value` if it is of a field's type; a whole number will do where any number will."""
    if kind == tuple[int, ...]:
        if isinstance(value, list) and all(type(item) is int for item in value):
            return tuple(value)
        raise TypeError(f"{name} must be a list of whole numbers, not {value!r}")
    allowed = get_args(kind) or (kind,)
    if type(value) in allowed:
        return value
    if type(value) is int and float in allowed:
        return float(value)
    raise TypeError(f"{name} must be {TYPE_WORDS[allowed[0]]}, not {value!r}")


TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
}


def _require_snapshot_epochs(snapshot_epochs: tuple[int, ...], epochs: int) -> None:
    """Refuse epochs that are not in order, come twice, or that the run does not have."""
    if any(later <= earlier for earlier, later in pairwise(snapshot_epochs)):
        wanted = ",".join(str(epoch) for epoch in sorted(set(snapshot_epochs)))
        raise InputError(
            f"The snapshot epochs must rise, each once; give --snapshot-epochs {wanted}."
        )
    outside = [epoch for epoch in snapshot_epochs if not 0 <= epoch <= epochs]
    if outside:
        raise InputError(
            f"The snapshot epochs must lie between 0 and the run's {epochs} epochs, not "
            f"{outside[0]}; leave it out, or give more --epochs."
        )


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"There is no {name} {value!r}; choose one of {', '.join(choices)}.")


def _require_at_least(name: str, value: float | None, smallest: int) -> None:
    """Refuse numbers below `smallest`, and NaN."""
    if value is not None and not smallest <= value < math.inf:
        words = name.replace("_", " ")
        flag = name.replace("_", "-")
        raise InputError(
            f"The {words} must be at least {smallest}, not {value:g}; give --{flag} {smallest} "
            "or more."
        )
