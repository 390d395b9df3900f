"""What wrappers put before keys goes, and nothing else."""

from __future__ import annotations

import pytest
from torch import nn
from torch.optim.swa_utils import AveragedModel

from auglocal.foreign.prefixes import strip_prefixes

KEYS = ("conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias")


@pytest.mark.parametrize(
    "prefixes",
    [
        (),
        ("module.",),
        ("_orig_mod.",),
        ("model.",),
        ("net.",),
        ("backbone.",),
        ("module.", "_orig_mod."),
        ("_orig_mod.", "module.", "model.", "backbone."),
        ("model.", "model."),
    ],
)
def test_prefixes_that_all_keys_share_go_outermost_first(prefixes: tuple[str, ...]) -> None:
    keys = ["".join(prefixes) + key for key in KEYS]
    names, stripped = strip_prefixes(keys)
    assert names == dict(zip(keys, KEYS))
    assert stripped == prefixes


def test_wrappers_of_pytorch_itself_go() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    names, stripped = strip_prefixes(nn.DataParallel(network).state_dict())
    assert tuple(names.values()) == tuple(network.state_dict())
    assert stripped == ("module.",)
    averaged = AveragedModel(network)
    names, stripped = strip_prefixes(averaged.state_dict())
    assert tuple(names.values()) == tuple(network.state_dict())
    assert "n_averaged" not in names
    assert stripped == ("module.",)


@pytest.mark.parametrize("prefix", ["model.", "net."])
def test_what_stands_beside_a_lightning_modules_network_is_left(prefix: str) -> None:
    beside = ["criterion.weight", "train_accuracy.tp"]
    keys = [*(prefix + key for key in KEYS), *beside]
    names, stripped = strip_prefixes(keys)
    assert tuple(names.values()) == KEYS
    assert not set(beside) & set(names)
    assert stripped == (prefix,)


def test_parts_of_a_network_are_no_wrapper() -> None:
    keys = ["backbone.conv1.weight", "backbone.bn1.weight", "head.weight"]
    assert strip_prefixes(keys) == ({key: key for key in keys}, ())
    few = ["model.0.weight", "fc.weight", "fc.bias", "conv1.weight"]
    assert strip_prefixes(few) == ({key: key for key in few}, ())


def test_weights_come_before_their_average_unless_it_is_asked_for() -> None:
    keys = [
        *(f"model.{key}" for key in KEYS),
        "ema_model.n_averaged",
        *(f"ema_model.module.{key}" for key in KEYS),
    ]
    names, stripped = strip_prefixes(keys)
    assert (tuple(names.values()), stripped) == (KEYS, ("model.",))
    names, stripped = strip_prefixes(keys, "ema_model.")
    assert (tuple(names.values()), stripped) == (KEYS, ("ema_model.", "module."))


def test_no_keys_have_no_prefix() -> None:
    assert strip_prefixes([]) == ({}, ())
    assert strip_prefixes(["module."]) == ({}, ("module.",))
