"""Opening checkpoints for reading."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from analysis.errors import InputError
from analysis.features import visit_features
from analysis.gram import has_fast_bf16
from analysis.models import (
    common_dataset,
    computes_bf16,
    describe_device,
    open_model,
    short_name,
    unique_names,
    untrained,
    weights_sha256,
)
from auglocal.batches import Normalisation
from auglocal.checkpoint import load_checkpoint, save_checkpoint
from auglocal.config import TrainConfig
from auglocal.material import prepare_material
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.bp import BP
from auglocal.rules.registry import build_network
from auglocal.runs import create_run
from auglocal.training import Listener, train
from tests.analysis.conftest import DIGITS


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


# ------------------------------------------------------------------------ untrained


def test_an_untrained_network_is_what_a_run_of_its_seed_starts_from(checkpoints):
    model = open_model(checkpoints[0])
    floor = untrained(model, seed=5)
    for rule in (BP(), AugLocal()):
        start = build_network("resnet20", rule, 10, (3, 32, 32), 5).backbone.state_dict()
        weights = floor.backbone.state_dict()
        assert start.keys() == weights.keys()
        assert all(torch.equal(start[key], value) for key, value in weights.items())


def test_an_untrained_network_equals_the_snapshot_of_a_run_at_epoch_0(tmp_path, image_folder):
    config = TrainConfig(
        dataset=f"imagefolder:{image_folder}",
        width=0.5,
        seed=3,
        batch_size=10,
        epochs=1,
        snapshot_epochs=(0,),
        device="cpu",
    )
    folder = create_run(tmp_path / "run", config, overwrite=False)
    material = prepare_material(config, download=False)
    assert not train(config, material, folder, Listener(should_stop=lambda: True))
    snapshot = open_model(folder.snapshot(0))
    floor = untrained(snapshot, seed=3)
    assert floor.sha256 == weights_sha256(snapshot.backbone)
    assert floor.metadata.width == 0.5
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    logits = [visit_features(model, images, lambda *_: None) for model in (snapshot, floor)]
    torch.testing.assert_close(*logits)


def test_an_untrained_network_says_so_and_keeps_how_images_are_read(checkpoints):
    model = open_model(checkpoints[0])
    floor = untrained(model, seed=2)
    assert floor.name == "resnet20 untrained, seed 2"
    assert floor.path is None
    metadata = floor.metadata
    assert (metadata.rule, metadata.accuracy, metadata.epoch, metadata.seed) == (
        *("untrained", None, 0),
        2,
    )
    assert (metadata.mean, metadata.classes) == (model.metadata.mean, model.metadata.classes)
    assert floor.dataset_name() == "digits"
    assert not any(parameter.requires_grad for parameter in floor.backbone.parameters())
    norms = [part for part in floor.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(not part.running_mean.any() and (part.running_var == 1).all() for part in norms)
    assert not floor.backbone.training


def test_the_seed_decides_the_untrained_network_and_nothing_else_does(checkpoints):
    model = open_model(checkpoints[0])
    state = torch.get_rng_state()
    first, again, other = (untrained(model, seed).sha256 for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match="seed must be 0 or more, not -1"):
        untrained(model, -1)


def test_the_checksum_of_weights_is_what_its_description_says():
    net = nn.Linear(2, 1)
    net.register_buffer("count", torch.tensor(7))
    content = b""
    for key in ("bias", "count", "weight"):
        values = net.state_dict()[key]
        content += f"{key} {values.dtype} {tuple(values.shape)}\n".encode()
        content += values.numpy().tobytes()
    assert weights_sha256(net) == hashlib.sha256(content).hexdigest()
    convolution = nn.Conv2d(4, 4, 3)
    expected = weights_sha256(convolution)
    assert weights_sha256(convolution.to(memory_format=torch.channels_last)) == expected


# ------------------------------------------------------------------------ auxiliary networks


@pytest.fixture(scope="module")
def save_trained(tmp_path_factory):
    """Write a checkpoint of a network of a rule, auxiliary networks and all."""

    def save(name, options, **changes):
        config = TrainConfig(rule=name, **options)
        network = build_network(
            "resnet20", config.make_rule(), 10, (3, 32, 32), 4,
            normalisation=Normalisation(DIGITS.mean, DIGITS.std),
        )  # fmt: skip
        network.train()
        with torch.no_grad():  # so that the statistics of BatchNorm are not the usual ones
            for _ in network.local_losses(torch.randn(8, 3, 32, 32), torch.arange(8)):
                pass
        path = tmp_path_factory.mktemp(name) / "net.safetensors"
        metadata = replace(DIGITS, rule=name, rule_options=config.rule_options(), **changes)
        save_checkpoint(path, network, metadata)
        return path, network.eval()

    return save


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("auglocal", {"auxiliary_depth": 3, "pyramid": 0.2}),
        ("auglocal", {"modules": 4, "local_loss": "predsim"}),
        ("dgl", {"modules": 3}),
        ("predsim", {}),
        ("infopro", {}),
        ("linear", {}),
    ],
)
def test_auxiliary_networks_are_those_of_the_trained_network(save_trained, name, options):
    path, network = save_trained(name, options)
    model = open_model(path, auxiliaries=True)
    assert model.auxiliary_layers == network.block_names[:-1]
    features = {}
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for layer, output in network.backbone.forward_layers(model.preprocess(images)):
        features[layer] = output.detach().clone()
    for layer in model.auxiliary_layers:
        classifier = model.auxiliaries[layer]
        expected = network.auxiliaries[layer].logits(features[layer])
        torch.testing.assert_close(classifier.logits(features[layer]), expected)
        assert not any(part.training for part in classifier.modules())
        assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_auxiliary_networks_are_opened_only_where_asked_for_and_there(save_trained, checkpoints):
    path, _ = save_trained("linear", {})
    assert open_model(path).auxiliary_layers == ()
    assert open_model(checkpoints[1], auxiliaries=True).auxiliary_layers == ()


def test_options_that_an_older_file_does_not_name_have_their_defaults(save_trained):
    path, network = save_trained("auglocal", {})
    checkpoint = load_checkpoint(path)
    older = {key: checkpoint.metadata.rule_options[key] for key in ("auxiliary_depth", "pyramid")}
    save_checkpoint(path, network, replace(checkpoint.metadata, rule_options=older))
    assert open_model(path, auxiliaries=True).auxiliary_layers == network.block_names[:-1]


@pytest.mark.parametrize(
    "change",
    [
        {"rule_options": {"auxiliary_depth": 4}},
        {"rule_options": {"auxiliary_depth": "deep"}},
        {"rule_options": {"auxiliary_depth": [1]}},
        {"rule": "a later rule"},
        {"rule": "bp"},
    ],
    ids=str,
)
def test_auxiliary_networks_of_another_rule_than_the_file_names_are_refused(save_trained, change):
    path, network = save_trained("auglocal", {})
    save_checkpoint(path, network, replace(load_checkpoint(path).metadata, **change))
    assert open_model(path).auxiliary_layers == ()
    with pytest.raises(InputError, match="not those that its rule and options build"):
        open_model(path, auxiliaries=True)


# ------------------------------------------------------------------------ precision


def test_a_precision_that_is_none_is_refused(checkpoints):
    with pytest.raises(InputError, match="must be one of fp32, bf16, not 'fp8'"):
        open_model(checkpoints[0], precision="fp8")


def test_bf16_is_refused_where_it_would_be_slower(checkpoints, monkeypatch):
    monkeypatch.setattr("analysis.models.has_fast_bf16", lambda: False)
    with pytest.raises(InputError, match="does not compute in bf16 itself.*--precision fp32"):
        open_model(checkpoints[0], precision="bf16")
    assert not computes_bf16(torch.device("mps"))


def test_in_bf16_features_come_in_float32_with_the_error_of_bf16(checkpoints, monkeypatch):
    monkeypatch.setattr("analysis.models.has_fast_bf16", lambda: True)  # emulated, it is the same
    plain, half = (open_model(checkpoints[0], precision=name) for name in ("fp32", "bf16"))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    features = []
    for model in (plain, half):
        seen = {}
        logits = visit_features(
            model, images, lambda name, part, seen=seen: seen.update({name: part})
        )
        features.append([*seen.values(), logits])
    assert {part.dtype for part in features[1]} == {torch.float32}
    for first, second in zip(*features):
        error = (first - second).norm() / first.norm()
        assert 2**-14 < error < 0.05  # bf16 rounds by up to 2**-9, and here it adds up over layers


@pytest.mark.skipif(not has_fast_bf16(), reason="needs a processor with bf16")
def test_bf16_is_there_where_the_processor_has_it(checkpoints):
    assert open_model(checkpoints[0], precision="bf16").precision == "bf16"


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
    with pytest.raises(InputError, match="is a text file, not a checkpoint"):
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
