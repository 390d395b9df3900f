"""Opening checkpoints for reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.errors import InputError
from analysis.models import common_dataset, describe_device, open_model, short_name, unique_names
from auglocal.checkpoint import load_checkpoint


def test_a_model_is_read_only_and_in_evaluation_mode(checkpoints):
    model = open_model(checkpoints[0])
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not any(module.training for module in model.backbone.modules())


def test_a_model_holds_the_files_weights_layers_and_checksum(checkpoints):
    model, checkpoint = open_model(checkpoints[0]), load_checkpoint(checkpoints[0])
    weights = model.backbone.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in checkpoint.backbone.items())
    assert model.layer_names[0] == "stem"
    assert len(model.layer_names) == 10
    assert model.sha256 == checkpoint.sha256
    assert model.metadata.rule == "auglocal"
    assert model.name == "first"


def test_preprocessing_uses_the_mean_and_deviation_of_the_file(checkpoints):
    model = open_model(checkpoints[0])
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    values = model.preprocess(images)[0, :, 0, 0]
    torch.testing.assert_close(values, torch.tensor([1.0, 2.4, 3.5]))
    assert images.dtype == torch.uint8


# ------------------------------------------------------------------------ refusals


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        open_model(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        open_model(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "letter.safetensors"
    path.write_text("Dear reader")
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        open_model(path)


def test_a_device_that_is_not_there_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no cuda; give --device cpu"):
        open_model(checkpoints[0], "cuda")
    with pytest.raises(InputError, match="no device 'tpu'"):
        open_model(checkpoints[0], "tpu")


# ------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("shipped/bp-digits.safetensors", "bp-digits"),
        ("runs/bp/checkpoint.safetensors", "bp"),
        ("runs/bp/best.safetensors", "bp-best"),
        ("runs/bp/snapshots/epoch-003.safetensors", "bp-epoch-003"),
    ],
)
def test_a_checkpoint_is_named_after_its_file_or_its_run(path, name):
    assert short_name(Path(path)) == name


def test_names_that_came_before_get_a_suffix():
    assert unique_names(["a", "a-2", "a", "b", "a"]) == ("a", "a-2", "a-3", "b", "a-4")


# ------------------------------------------------------------------------ data set and device


def test_models_of_one_known_data_set_name_it(checkpoints):
    assert common_dataset([open_model(path) for path in checkpoints]) == "digits"


@pytest.mark.parametrize("own", ["cifar10", "imagefolder:jpegs", None, 5])
def test_models_of_different_or_unnamed_data_sets_ask_for_the_option(checkpoints, own):
    digits = open_model(checkpoints[0])
    metadata = replace(digits.metadata, dataset="Other pictures", config={"dataset": own})
    other = replace(digits, metadata=metadata)
    with pytest.raises(InputError, match=r"Other pictures and scikit-learn digits.*--dataset one"):
        common_dataset([digits, other])


def test_the_cpu_is_called_cpu():
    assert describe_device(torch.device("cpu")) == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_called_by_its_model():
    name = torch.cuda.get_device_name()
    assert describe_device(torch.device("cuda")) == f"cuda ({name})"
