"""Networks and images for the CKA benchmarks: checkpoints named on the command line, or fresh ones.

Fresh networks have random weights. Their images are random too, but smooth, so that layers resemble
each other more and less as they do on photographs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from analysis.models import Model, open_model
from auglocal.backbones.registry import build_backbone
from auglocal.checkpoint import CheckpointMetadata, save_checkpoint
from auglocal.network import LocalNetwork

PAIR = ("resnet56", "resnet20")


def make_models(architectures: Sequence[str]) -> list[Model]:
    """Open fresh networks, each of another seed."""
    models = []
    with tempfile.TemporaryDirectory() as folder:
        for seed, architecture in enumerate(architectures):
            path = Path(folder) / f"{architecture}-{seed}.safetensors"
            torch.manual_seed(seed)
            backbone = build_backbone(architecture, 10, (3, 32, 32))
            network = LocalNetwork(backbone, [range(len(backbone.layers))], [])
            save_checkpoint(path, network, _metadata(architecture))
            models.append(open_model(path))
    return models


def make_images(samples: int) -> torch.Tensor:
    """Draw smooth images: uint8, (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((samples, 3, 6, 6), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return (128 + 60 * fine).clamp(0, 255).to(torch.uint8)


def _metadata(architecture: str) -> CheckpointMetadata:
    return CheckpointMetadata(
        architecture=architecture,
        num_classes=10,
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        classes=tuple("0123456789"),
        dataset="none",
        rule="bp",
        rule_options={},
        epoch=0,
        accuracy=None,
        resize=32,
        interpolation="bilinear",
        seed=0,
        config={},
        versions={},
    )
