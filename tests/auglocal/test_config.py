"""The configuration: its round trip, and what it refuses."""

from __future__ import annotations

from dataclasses import fields

import pytest

from auglocal.config import TrainConfig, config_from_json
from auglocal.errors import InputError


def test_every_field_has_a_default_and_a_line_of_documentation() -> None:
    for item in fields(TrainConfig):
        assert item.metadata["doc"]
        assert "\n" not in item.metadata["doc"]
    assert TrainConfig().dataset == "digits"


def test_json_brings_back_an_equal_record() -> None:
    config = TrainConfig(rule="bp", seed=7, tail=2, augment=False, snapshot_epochs=(0, 4))
    assert config_from_json(config.to_json()) == config


def test_a_portable_record_names_no_place_on_this_machine() -> None:
    config = TrainConfig(dataset="imagefolder:/home/somebody/shades", data_folder="/mnt/data")
    values = config.portable()
    assert values["dataset"] == "imagefolder:shades"
    assert not values.keys() & {"device", "data_folder", "stream", "workers"}
    assert "/" not in str(values)


def test_only_the_rules_own_options_are_its_options() -> None:
    assert TrainConfig(rule="bp").rule_options() == {}
    assert TrainConfig(rule="dgl", auxiliary_depth=3).rule_options() == {"modules": None}
    weights = {"reconstruction_first", "reconstruction_last"}
    weights |= {"cross_entropy_first", "cross_entropy_last"}
    assert TrainConfig(rule="infopro").rule_options().keys() == weights | {"modules"}
    own = {"auxiliary_depth", "pyramid", "tail", "modules", "local_loss"}
    own |= {"selection", "selection_seed"}
    assert TrainConfig().rule_options().keys() == weights | own


def test_a_record_from_before_the_newer_options_still_opens() -> None:
    assert config_from_json('{"rule": "auglocal", "tail": 3}') == TrainConfig(tail=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architecture", "alexnet", "no architecture 'alexnet'"),
        ("dataset", "mnist", "no data set 'mnist'"),
        ("rule", "hebb", "no rule 'hebb'"),
        ("schedule", "step", "no schedule 'step'; choose one of cosine, published"),
        ("precision", "fp8", "no precision 'fp8'"),
        ("device", "tpu", "no device 'tpu'; choose one of auto, cpu, cuda, mps"),
        ("epochs", 0, "epochs must be at least 1, not 0; give --epochs 1 or more"),
        ("batch_size", 1, "batch size must be at least 2"),
        ("learning_rate", 0.0, "learning rate must be above 0"),
        ("learning_rate", float("nan"), "learning rate must be above 0"),
        ("momentum", 1.0, "momentum must be below 1"),
        ("weight_decay", -1e-4, "weight decay must be at least 0"),
        ("validation_samples", -1, "validation samples must be at least 0"),
        ("image_size", 4, "image size must be at least 8"),
        ("augmentation", "mixup", "no augmentation 'mixup'; choose one of data-set, crop-and-flip"),
        ("workers", -1, "workers must be at least 0, not -1; give --workers 0 or more"),
        ("seed", -1, "seed must be at least 0"),
        ("snapshot_epochs", (2, 1, 1), "must rise, each once; give --snapshot-epochs 1,2"),
        ("snapshot_epochs", (3, 3), "must rise, each once; give --snapshot-epochs 3"),
        ("snapshot_epochs", (0, 16), "between 0 and the run's 15 epochs, not 16"),
        ("snapshot_epochs", (-1, 2), "between 0 and the run's 15 epochs, not -1"),
        ("snapshot_dtype", "fp8", "no snapshot dtype 'fp8'; choose one of fp32, bf16, fp16"),
        ("pyramid", -0.1, "pyramid coefficient must lie between 0 and 1"),
        ("auxiliary_depth", 0, "auxiliary depth must be at least 1"),
        ("local_loss", "mse", "no local loss 'mse'"),
        ("modules", 11, "10 layers has 1 to 10 modules, not 11"),
        ("reconstruction_first", -1.0, "weight reconstruction first must be at least 0"),
        ("width", 0.0, "width must be above 0"),
        ("width", float("nan"), "width must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"colour": "red"}', '{"epochs": "ten"}'])
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        config_from_json(text)
