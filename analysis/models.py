"""A checkpoint file in, a read-only model out: named, ordered layers and their preprocessing.

An untrained network (`untrained`) comes out the same, and so does one of the user's own
(`analysis.modules.from_module`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from analysis.choices import Choices
from analysis.errors import InputError
from analysis.gram import PRECISIONS, has_fast_bf16
from analysis.module_reader import ModuleReader
from auglocal.backbones.backbone import Backbone
from auglocal.backbones.registry import build_meta_backbone
from auglocal.batches import normalise
from auglocal.checkpoint import (
    AUXILIARY_PREFIX,
    MAX_FILE_BYTES,
    Checkpoint,
    CheckpointMetadata,
    check_file,
    is_published,
    load_checkpoint,
    package_versions,
    read_metadata,
)
from auglocal.data import FOLDER_PREFIX, SOURCES
from auglocal.device import choose_device
from auglocal.errors import InputError as AuglocalInputError
from auglocal.local_loss import CombinedLoss, LocalClassifier
from auglocal.network import LocalNetwork
from auglocal.rules.bp import BP
from auglocal.rules.registry import RULES, build_network, make_rule

# File and folder names that every run has, so that they name no run.
COMMON_NAMES = ("checkpoint", "best", "snapshots")
UNKNOWN = "unknown"
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Model:
    """A network, ready to be read and not to be changed.

    Attributes:
        name: short, for people.
        path: as it was given; None for a network that came from no file.
        sha256: of the file, or of the weights (`weights_sha256`) where there is no file.
        metadata: what is known about it.
        backbone: on `device`. Of a checkpoint: in evaluation mode, without gradients. Of a module
            of the user's own: what reads it.
        device: where it computes.
        precision: "fp32", or "bf16" to compute layers under autocast; features and logits are
            handed over in float32 all the same.
        auxiliaries: auxiliary networks by the layer that they read, where they were opened.
        takes_any_size: images of another height and width than `metadata.input_size` may fit.
    """

    name: str
    path: Path | None
    sha256: str
    metadata: CheckpointMetadata
    backbone: Backbone | ModuleReader
    device: torch.device
    precision: str = "fp32"
    auxiliaries: Mapping[str, LocalClassifier] = field(default_factory=dict)
    takes_any_size: bool = False

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, from input to output."""
        return self.backbone.layer_names

    @property
    def assumed(self) -> tuple[str, ...]:
        """What neither its file nor its user says: of "preprocessing" and "classes"."""
        source = self.metadata.config.get("opened_from")
        return tuple(source.get("assumed", ())) if isinstance(source, dict) else ()

    @property
    def auxiliary_layers(self) -> tuple[str, ...]:
        """Names of the layers whose auxiliary networks were opened, from input to output."""
        return tuple(self.auxiliaries)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients, in the model's precision."""
        bf16 = self.precision == "bf16"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            yield

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise as in training.

        Args:
            images: uint8, (N, C, H, W), on any device.

        Returns:
            float32, (N, C, H, W), on the model's device.
        """
        return normalise(images.to(self.device), self.metadata.mean, self.metadata.std)

    def dataset_name(self) -> str | None:
        """Name the data set this model was trained on, where it can be loaded by name."""
        name = self.metadata.config.get("dataset")
        return name if isinstance(name, str) and name in SOURCES else None


def open_model(
    path: Path | str,
    device: str = "cpu",
    *,
    auxiliaries: bool = False,
    precision: str = "fp32",
    max_bytes: int = MAX_FILE_BYTES,
    choices: Choices | None = None,
) -> Model:
    """Open a checkpoint of any origin for reading; no code of the file runs.

    A file that this project did not write is told from its keys and shapes, see
    `analysis.opening`; what it does not say is assumed, and named in the model's `assumed`.

    Args:
        path: a file of weights: .safetensors, .pt, .pth, .th, .tar, .ckpt, .bin.
        device: "auto", "cpu", "cuda" or "mps".
        auxiliaries: open its auxiliary networks too, where the file carries any; see
            `analysis.features.auxiliary_logits`.
        precision: "fp32", or "bf16" on a device that computes in bf16 itself.
        max_bytes: larger files, and files of larger tensors, are refused.
        choices: what you say about a file that this project did not write, or of which it assumes
            something.

    Returns:
        the model, on the device.

    Raises:
        InputError: the file is missing, damaged, or holds no network that is known; its auxiliary
            networks are not what its rule builds; or the device is not there or has no such
            precision.
    """
    from analysis import opening  # it makes models too

    path = Path(path)
    with translated_errors():
        check_file(path, max_bytes)
        _check_precision(precision, choose_device(device))
        if not opening.is_own(path):
            return opening.open_foreign(
                path,
                device,
                auxiliaries=auxiliaries,
                precision=precision,
                choices=choices,
                max_bytes=max_bytes,
            )
        if is_published(read_metadata(path)):
            return opening.open_adopted(path, device, choices)
        checkpoint = opening.settle(load_checkpoint(path), choices)
    return model_of_checkpoint(
        checkpoint, path, device, auxiliaries=auxiliaries, precision=precision
    )


def model_of_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    device: str = "cpu",
    *,
    auxiliaries: bool = False,
    precision: str = "fp32",
) -> Model:
    """Make a model of a checkpoint that was loaded; the arguments are those of `open_model`."""
    with translated_errors():
        where = choose_device(device)
        backbone = checkpoint.build_backbone()
    classifiers = _build_auxiliaries(path, checkpoint) if auxiliaries else {}
    return Model(
        name=short_name(path),
        path=path,
        sha256=checkpoint.sha256,
        metadata=checkpoint.metadata,
        backbone=_ready(backbone, where),
        device=where,
        precision=precision,
        auxiliaries={name: _ready(part, where) for name, part in classifiers.items()},
    )


def _ready(module: Network, device: torch.device) -> Network:
    """Put a network of ours on a device, to be read only."""
    module = module.requires_grad_(False).eval().to(device)
    # Channels-last runs in three quarters of the time here, Grams included.
    return module.to(memory_format=torch.channels_last)


def _check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that is none, or that would be slower than fp32 on this device."""
    if precision not in PRECISIONS:
        raise InputError(
            f"The precision must be one of {', '.join(PRECISIONS)}, not {precision!r}; choose one."
        )
    if precision == "bf16" and not computes_bf16(device):
        raise InputError(
            f"This {device.type} does not compute in bf16 itself, so that bf16 would be slower; "
            "give --precision fp32."
        )


def computes_bf16(device: torch.device) -> bool:
    """Tell whether a device has arithmetic in bf16 of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and has_fast_bf16()


# ------------------------------------------------------------------------- auxiliary networks


def _build_auxiliaries(path: Path, checkpoint: Checkpoint) -> dict[str, LocalClassifier]:
    """Rebuild the auxiliary networks of a checkpoint by its rule, of their own memory only.

    What a rule adds to the classifiers for training (decoders, similarity losses) is left out.

    Raises:
        InputError: the rule builds others.
    """
    if not checkpoint.auxiliary:
        return {}
    # No weights are drawn, those of the file take their places.
    with translated_errors(), torch.device("meta"):
        network = _build_meta_network(path, checkpoint.metadata)
    expected = network.auxiliaries.state_dict(prefix=AUXILIARY_PREFIX)
    shapes = {key: tensor.shape for key, tensor in checkpoint.auxiliary.items()}
    if shapes != {key: tensor.shape for key, tensor in expected.items()}:
        raise _other_auxiliaries(path)
    classifiers: dict[str, LocalClassifier] = {}
    for name, trainer in network.auxiliaries.items():
        classifier, prefix = cast(LocalClassifier, trainer), f"{AUXILIARY_PREFIX}{name}."
        if isinstance(trainer, CombinedLoss):
            classifier, prefix = trainer.classifier, f"{prefix}classifier."
        weights = {
            key.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in checkpoint.auxiliary.items()
            if key.startswith(prefix)
        }
        classifier.load_state_dict(weights, assign=True)
        classifiers[name] = classifier
    return classifiers


def _build_meta_network(path: Path, metadata: CheckpointMetadata) -> LocalNetwork:
    """Build the network that a checkpoint's rule trained, without weights."""
    if metadata.rule not in RULES:
        raise _other_auxiliaries(path)
    # Files from before an option existed mean its default.
    defaults = {item.name: item.default for item in fields(RULES[metadata.rule])}
    try:
        rule = make_rule(metadata.rule, SimpleNamespace(**{**defaults, **metadata.rule_options}))
        backbone = build_meta_backbone(
            metadata.architecture, metadata.num_classes, metadata.input_size, metadata.width
        )
        return rule.build(backbone)
    except (TypeError, ArithmeticError) as error:
        raise _other_auxiliaries(path) from error


def _other_auxiliaries(path: Path) -> InputError:
    return InputError(
        f"The auxiliary networks in {path.name} are not those that its rule and options build, so "
        "they were not opened; open it without them."
    )


# ------------------------------------------------------------------------- without a file


def untrained(model: Model, seed: int = 0) -> Model:
    """Make the floor of a comparison: the network that a run with this seed starts from.

    Equal to a run's snapshot at epoch 0, whatever its rule (unless the run started from pretrained
    weights): BatchNorm has a mean of 0 and a variance of 1 on record, so that in evaluation mode,
    in which every model is read, it changes nothing, and features grow or shrink with depth.

    Args:
        model: whose architecture, width, classes, images, device and precision it has.
        seed: of the weights, 0 or more.

    Returns:
        a model with the rule "untrained", no accuracy, and the checksum of its weights.

    Raises:
        InputError: the model is a module of the user's own, which cannot be built anew.
    """
    metadata = model.metadata
    if isinstance(model.backbone, ModuleReader):
        raise InputError(
            f"{model.name} is a module of your own, of which an untrained one cannot be made here; "
            "build it anew without weights and give it to from_module."
        )
    if seed < 0:
        raise InputError(f"The seed must be 0 or more, not {seed}; give another.")
    with translated_errors():
        backbone = build_network(
            metadata.architecture,
            BP(),
            metadata.num_classes,
            metadata.input_size,
            seed,
            width=metadata.width,
        ).backbone
    data = {key: metadata.config[key] for key in ("dataset",) if key in metadata.config}
    return replace(
        model,
        name=f"{metadata.architecture} untrained, seed {seed}",
        path=None,
        sha256=weights_sha256(backbone),
        metadata=replace(
            metadata,
            rule="untrained",
            rule_options={},
            epoch=0,
            accuracy=None,
            local_accuracies=None,
            seed=seed,
            config=data,
            versions=package_versions(),
            weights_dtype="fp32",
        ),
        backbone=_ready(backbone, model.device),
        auxiliaries={},
    )


def module_metadata(
    *,
    architecture: str,
    num_classes: int,
    input_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
) -> CheckpointMetadata:
    """Say what is known about a network that came from no checkpoint; nobody knows its training."""
    return CheckpointMetadata(
        architecture=architecture,
        num_classes=num_classes,
        input_size=input_size,
        mean=mean,
        std=std,
        classes=classes,
        dataset=UNKNOWN,
        rule=UNKNOWN,
        rule_options={},
        epoch=0,
        accuracy=None,
        resize=None,
        interpolation=None,
        seed=0,
        config={},
        versions=package_versions(),
    )


def weights_sha256(module: nn.Module) -> str:
    """Checksum of a network's weights, the same on every device and whatever their memory layout.

    SHA-256 over its `state_dict` in the order of its sorted keys: for each tensor the text
    "key dtype shape" and a line feed, then its values in row-major order, little-endian.

    Args:
        module: any network.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------- names


def num_parameters(model: Model) -> int:
    """Weights of a checkpoint's backbone; 0 for a module of the user's own."""
    if not isinstance(model.backbone, nn.Module):
        return 0
    return sum(parameter.numel() for parameter in model.backbone.parameters())


def short_name(path: Path) -> str:
    """Name a checkpoint after its file, and after its run where every run has such a file.

    "shipped/bp.safetensors" is "bp", "runs/bp/checkpoint.safetensors" is "bp",
    "runs/bp/best.safetensors" is "bp-best", "runs/bp/snapshots/epoch-3.safetensors" "bp-epoch-3".
    """
    folders = [folder for folder in path.resolve().parts[:-1] if folder not in COMMON_NAMES]
    in_run = path.stem in COMMON_NAMES or path.resolve().parent.name in COMMON_NAMES
    if not in_run or not folders:
        return path.stem
    return folders[-1] if path.stem == "checkpoint" else f"{folders[-1]}-{path.stem}"


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Add "-2", "-3" and so on to names that came before."""
    unique: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in unique:
            count += 1
            candidate = f"{name}-{count}"
        unique.append(candidate)
    return tuple(unique)


def common_dataset(models: Sequence[Model]) -> str:
    """Name the data set that all models were trained on.

    Raises:
        InputError: they differ, or it cannot be loaded by name.
    """
    names = {model.dataset_name() for model in models}
    name = next(iter(names)) if len(names) == 1 else None
    if name is None:
        known = ", ".join((*SOURCES, f"{FOLDER_PREFIX}PATH"))
        titles = sorted({model.metadata.dataset for model in models})
        raise InputError(
            f"The checkpoints do not name one data set that can be loaded (they were trained on "
            f"{' and '.join(titles)}); give --dataset one of {known}."
        )
    return name


def device_named(name: str) -> torch.device:
    """Find a device: "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: it is not there.
    """
    with translated_errors():
        return choose_device(name)


def describe_device(device: torch.device) -> str:
    """Name a device as people do."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn auglocal's complaints about input into ours, so that the rest need not know it."""
    try:
        yield
    except AuglocalInputError as error:
        raise InputError(str(error)) from error
