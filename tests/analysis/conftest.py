"""Tiny checkpoints with random weights, written by auglocal itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from auglocal.backbones.registry import build_backbone
from auglocal.checkpoint import CheckpointMetadata, save_checkpoint
from auglocal.network import LocalNetwork

DIGITS = CheckpointMetadata(
    architecture="resnet20",
    num_classes=10,
    input_size=(3, 32, 32),
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.25, 0.2),
    classes=tuple("0123456789"),
    dataset="scikit-learn digits",
    rule="auglocal",
    rule_options={"auxiliary_depth": 2, "pyramid": 0.5},
    epoch=3,
    accuracy={"value": 0.5, "split": "test", "samples": 1000},
    resize=32,
    interpolation="bilinear",
    seed=7,
    config={"dataset": "digits"},
    versions={"torch": "2.10"},
)

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """Write a checkpoint with random weights to a path; other keywords change its metadata."""

    def make(path: Path, *, weights_seed: int = 0, **changes: object) -> Path:
        metadata = replace(DIGITS, **changes)
        with torch.random.fork_rng():
            torch.manual_seed(weights_seed)
            backbone = build_backbone(
                metadata.architecture, metadata.num_classes, metadata.input_size
            )
        network = LocalNetwork(backbone, [range(len(backbone.layers))], [])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, network, metadata)
        return path

    return make


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint
) -> tuple[Path, Path]:
    """Two ResNet-20 for digits that differ in their weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return (
        make_checkpoint(folder / "first.safetensors", weights_seed=1),
        make_checkpoint(folder / "second.safetensors", weights_seed=2, rule="bp", rule_options={}),
    )
