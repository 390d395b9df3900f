"""Accuracies of blocks: each classifier's own, of evaluation mode, whatever the batches."""

from __future__ import annotations

import pytest
import torch

from auglocal.batches import ResidentSplit, normalise
from auglocal.evaluation import evaluate, evaluate_blocks
from auglocal.rules.registry import RULES, build_network

MEAN = STD = (0.5, 0.5, 0.5)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.randint(0, 3, (30,), generator=GENERATOR)
SPLIT = ResidentSplit(IMAGES, LABELS)


@pytest.mark.parametrize("rule", RULES)
def test_a_blocks_accuracy_is_that_of_its_own_logits(rule: str) -> None:
    network = build_network("resnet20", RULES[rule](), 3, (3, 16, 16), 0, width=0.5).eval()
    measured = evaluate_blocks(network, SPLIT, MEAN, STD, batch_size=7)
    assert tuple(measured) == network.block_names
    with torch.no_grad():
        images = normalise(IMAGES, MEAN, STD)
        expected = {
            name: int((logits.argmax(dim=1) == LABELS).sum())
            for name, _, logits in network.local_losses(images, LABELS)
        }
    assert {name: accuracy.correct for name, accuracy in measured.items()} == expected
    assert {accuracy.samples for accuracy in measured.values()} == {30}


def test_the_last_blocks_accuracy_is_the_backbones_and_nothing_changes() -> None:
    network = build_network("resnet20", RULES["auglocal"](), 3, (3, 16, 16), 0, width=0.5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measured = evaluate_blocks(network, SPLIT, MEAN, STD)
    assert measured["head"] == evaluate(network.backbone, SPLIT, MEAN, STD)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
