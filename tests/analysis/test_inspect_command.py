"""The commands inspect, predict and convert, on files of anybody's."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analysis.__main__ import main
from auglocal.__main__ import main as train_main
from auglocal.backbones.registry import build_meta_backbone
from auglocal.checkpoint import load_checkpoint
from auglocal.foreign.recognise import recognise
from tests.auglocal.foreign.wild.residual import ResidualNetwork
from tests.auglocal.foreign.wild.weights import fill

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
# The keys that an inspection has by the project's contract.
KEYS = (
    "architecture family variant num_classes input_size parameters layers wrapped_in "
    "prefixes_stripped auxiliary_networks rule rule_evidence dtype sha256 alternatives warnings"
).split()


def akamaster() -> nn.Module:
    return ResidualNetwork((3, 3, 3), 4, shortcut="zeros", classifier="linear")


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run a command that succeeds; its JSON document."""

    def run_command(*arguments: object):
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run_command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run a command that refuses its input; its sentence."""

    def run_command(*arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.endswith(".\n")
        return said.err

    return run_command


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    """A network of another code, as it saves them."""
    path = tmp_path / "model.th"
    state = prefixed("module.", fill(akamaster()))
    torch.save({"state_dict": state, "best_prec1": 91.7, "epoch": 7}, path)
    return path


def test_inspect_says_what_a_file_of_ours_is(run) -> None:
    path = SHIPPED / "digits-auglocal.safetensors"
    document = run("inspect", path)
    metadata = load_checkpoint(path).metadata
    assert [key for key in document if key in KEYS] == KEYS
    assert document["architecture"] == metadata.architecture == "resnet20"
    assert document["rule"] == "auglocal"
    assert document["rule_evidence"].endswith("copied layers: AugLocal")
    assert document["auxiliary_networks"][0] == document["layers"][0] == "stem"
    assert (document["variant"], document["assumed"]) == ("ours", [])


def test_inspect_says_what_a_wrapped_state_dict_is(run, wrapped: Path) -> None:
    document = run("inspect", wrapped)
    assert [key for key in document if key in KEYS] == KEYS
    assert document["parameters"] == sum(each.numel() for each in akamaster().parameters())
    assert document["wrapped_in"] == "state_dict"
    assert document["prefixes_stripped"] == ["module."]
    assert (document["family"], document["num_classes"]) == ("CIFAR ResNet", 10)
    assert document["input_size"] == [3, 32, 32]
    assert document["alternatives"] == ["resnet20-option-a-end"]
    assert document["rule"] == "unknown"
    assert "does not mean BP" in document["rule_evidence"]
    assert document["beside"] == {"best_prec1": 91.7, "epoch": 7}


@pytest.mark.parametrize("name", ["plain.safetensors", "last.ckpt"])
def test_inspect_reads_every_container(name: str, run, tmp_path: Path) -> None:
    path, state = tmp_path / name, fill(akamaster())
    if name == "last.ckpt":
        torch.save({"state_dict": prefixed("model.", state), "loops": {}, "epoch": 1}, path)
    else:
        save_file(state, path)
    document = run("inspect", path)
    assert document["architecture"] == "resnet20-option-a"
    assert document["dtype"] == "F32"


def test_inspect_says_what_a_published_architecture_is(run, tmp_path: Path) -> None:
    network, path = torchvision.models.densenet121(weights=None, num_classes=4), tmp_path / "d.pth"
    torch.save(prefixed("module.", network.state_dict()), path)
    document = run("inspect", path)
    assert [key for key in document if key in KEYS] == KEYS
    assert document["architecture"] == "torchvision:densenet121"
    assert (document["family"], document["variant"]) == ("torchvision", "densenet121")
    assert document["parameters"] == sum(each.numel() for each in network.parameters())
    assert document["prefixes_stripped"] == ["module."]
    assert document["layers"][-1] == "features.denseblock4"
    assert "4 classes instead of 1,000" in document["warnings"][0]


def test_inspect_prints_lines_and_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"net": fill(akamaster()), "note": "\x1b[31mred\x07\n"}, path)
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["architecture", "resnet20-option-a"]
    (beside,) = (line for line in lines if line.startswith("beside"))
    assert "red" in beside
    assert all(line.isprintable() for line in lines)


def unknown_network() -> dict[str, Tensor]:
    return {"mix.weight": torch.ones(9, 8), "encode.weight": torch.ones(8, 3, 3, 3)}


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("command", ["inspect", "predict", "convert"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no file"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "a regular file|There is no file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("hello"), "is a text file"),
        (lambda path: path.write_bytes(os.urandom(64) + b"\xff"), "was not opened"),
        (lambda path: torch.save(Touch(path.parent / "ran"), path), "contains code"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "holds no state dict"),
        (lambda path: torch.save(unknown_network(), path), "nearest to .*from_module"),
        (
            lambda path: torch.save(
                {key: value / 0 for key, value in fill(akamaster()).items()}, path
            ),
            "NaN or infinity",
        ),
    ],
    ids="missing folder pipe empty text noise code plain unknown nan".split(),
)
def test_a_bad_file_ends_every_command_with_one_sentence(
    command: str, make, words: str, refused, tmp_path: Path
) -> None:
    path, out = tmp_path / "weights.pth", tmp_path / "new.safetensors"
    make(path)
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    more = {"inspect": [], "predict": [tmp_path / "image.png"], "convert": ["--out", out]}
    sentence = refused(command, path, *more[command])
    assert re.search(words, sentence)
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_inspect_refuses_what_is_larger_than_asked_for(refused, wrapped: Path) -> None:
    assert "larger --max-bytes" in refused("inspect", wrapped, "--max-bytes", "10K")
    assert "--samples must be at least 1" in refused(
        "inspect", wrapped, "--dataset", "digits", "--samples", "0"
    )


# ------------------------------------------------------------------------- predict


def test_predict_reads_a_foreign_file(run, refused, wrapped: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    image = tmp_path / "image.png"
    document = run("predict", wrapped, image, "--mean", "0.5", "--std", "0.25")
    network = akamaster()
    fill(network)
    values = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
    expected = network(values)[0]
    row = document["images"][0]
    np.testing.assert_allclose(row["logits"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(row["probabilities"], expected.softmax(0), atol=1e-5)
    assert row["top"][0]["class"] == str(int(expected.argmax()))
    assert "NaN or infinity" in refused("predict", wrapped, image, "--std", "1e-43")


def test_predict_refuses_a_network_without_a_classifier(refused, tmp_path: Path) -> None:
    state = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    path, image = tmp_path / "trunk.pth", tmp_path / "image.png"
    torch.save({key: value for key, value in state.items() if not key.startswith("fc.")}, path)
    Image.new("RGB", (64, 64)).save(image)
    assert "trunk has no classifier" in refused("predict", path, image)


# ------------------------------------------------------------------------- convert


def test_convert_writes_what_is_said(run, wrapped: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    said = ["--mean", "0.5,0.4,0.3", "--std", "0.2", "--rule", "bp", "--classes-from", "digits"]
    document = run("convert", wrapped, "--out", out, *said, "--image-size", 40)
    metadata = load_checkpoint(out).metadata
    assert (metadata.mean, metadata.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert (metadata.rule, metadata.epoch, metadata.input_size) == ("bp", 7, (3, 40, 40))
    assert document["out"] == str(out)
    assert document["assumed"] == []
    assert document["rule_evidence"] == "as the file or its user says"
    inspected = run("inspect", out)
    assert inspected["sha256"] == document["out_sha256"]
    assert inspected["layers"] == document["layers"]


@pytest.mark.parametrize("network", ["digits-auglocal", "torchvision"])
def test_convert_makes_a_checkpoint_of_this_project_smaller(
    network: str, run, refused, tmp_path: Path
) -> None:
    path, out = SHIPPED / f"{network}.safetensors", tmp_path / "small.safetensors"
    if network == "torchvision":
        foreign = tmp_path / "squeezenet.pth"
        torch.save(torchvision.models.squeezenet1_1().state_dict(), foreign)
        path = tmp_path / "own.safetensors"
        run("convert", foreign, "--out", path)
    assert "leave out --mean" in refused(
        *("convert", path, "--out", out, "--weights-dtype", "fp16", "--mean", "0", "--std", "1")
    )
    assert "leave out --channel-order" in refused(
        *("convert", path, "--out", out, "--weights-dtype", "fp16", "--channel-order", "BGR")
    )
    assert not out.exists()
    document = run("convert", path, "--out", out, "--weights-dtype", "fp16")
    assert document["out"] == str(out)
    assert document["dtype"] == "F16"
    assert out.stat().st_size < 0.6 * path.stat().st_size
    before, after = load_file(path), load_file(out)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    for key, tensor in before.items():
        same = key.rpartition(".")[2] in statistics
        assert after[key].dtype == (tensor.dtype if same else torch.float16)
        error = 0.0 if same else 2.0**-11
        torch.testing.assert_close(after[key].to(tensor), tensor, rtol=error, atol=error / 2**10)
    old, new = (run("inspect", each) for each in (path, out))
    assert new["auxiliary_networks"] == old["auxiliary_networks"]
    assert new["layers"] == old["layers"]


def test_convert_leaves_out_auxiliary_networks_where_asked(run, tmp_path: Path) -> None:
    path, out = SHIPPED / "digits-auglocal.safetensors", tmp_path / "backbone.safetensors"
    document = run("convert", path, "--out", out, "--backbone-only")
    assert document["auxiliary_networks"] == []
    assert document["warnings"] == []
    assert document["sha256"] == document["out_sha256"]  # it tells of what was written
    assert document["out_bytes"] == out.stat().st_size
    before, after = load_checkpoint(path), load_checkpoint(out)
    assert before.auxiliary
    assert not after.auxiliary
    assert after.metadata == before.metadata
    assert set(after.backbone) == set(before.backbone)
    for key, tensor in before.backbone.items():
        torch.testing.assert_close(after.backbone[key], tensor, rtol=0, atol=0)


def test_convert_refuses_what_it_cannot_write(refused, run, wrapped: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    out.write_text("mine")
    assert "give another --out, or --overwrite" in refused("convert", wrapped, "--out", out)
    assert out.read_text() == "mine"
    run("convert", wrapped, "--out", out, "--overwrite")
    again = ["--out", tmp_path / "other.safetensors"]
    assert "a checkpoint of this project already" in refused("convert", out, *again)
    assert "the file to convert" in refused("convert", out, "--out", out, "--overwrite")
    assert "ends in .safetensors" in refused("convert", wrapped, "--out", tmp_path / "new.pth")
    nowhere = tmp_path / "no" / "new.safetensors"
    assert "There is no folder" in refused("convert", wrapped, "--out", nowhere)
    for options, words in (
        (["--mean", "0.5"], "give both --mean and --std"),
        (["--classes", "a,b"], "has 10 classes, not 2"),
        (["--mean", "1,2", "--std", "1,2"], "3 numbers each"),
        (["--classes-from", "nowhere"], "nowhere"),
        (["--architecture", "vgg11"], "choose one of resnet20-option-a"),
        (["--state", "ema"], "no state dict named 'ema'"),
    ):
        assert words in refused("convert", wrapped, *again, *options)
    with pytest.raises(SystemExit):
        main(["convert", str(wrapped), "--out", "x.safetensors", "--channel-order", "GBR"])


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The shipped network for digits, as another code would have saved it, its outputs shuffled."""
    checkpoint = load_checkpoint(SHIPPED / "digits-bp.safetensors")
    state = dict(checkpoint.backbone)
    for key in ("head.linear.weight", "head.linear.bias"):
        state[key] = state[key].flip(0)
    theirs = ResidualNetwork((3, 3, 3), 16, shortcut="downsample", classifier="fc")
    keys = recognise(theirs.state_dict()).keys
    assert keys.keys() == build_meta_backbone("resnet20").state_dict().keys()
    path = tmp_path / "digits.pth"
    torch.save({"model": {keys[key]: value for key, value in state.items()}}, path)
    return path


def test_convert_finds_out_what_the_file_does_not_say(
    digits: Path, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.safetensors"
    mean = ["--mean", "0.5", "--std", "0.5", "--channel-order", "RGB"]
    evidence = ["--dataset", "digits", "--samples", "120"]
    document = run("convert", digits, "--out", out, *mean, *evidence)
    assert [trial["name"] for trial in document["preprocessing"]["trials"]] == ["as given"]
    assert document["preprocessing"]["tells"]
    assert document["classes"] == list("9876543210")
    assert (document["assumed"], document["dataset"]) == ([], "scikit-learn digits")
    shipped = load_checkpoint(SHIPPED / "digits-bp.safetensors")
    written = load_checkpoint(out)
    weight = "head.linear.weight"
    assert torch.equal(written.backbone[weight].flip(0), shipped.backbone[weight])
    assert written.metadata.config["dataset"] == "digits"


def test_what_is_converted_has_the_accuracy_of_the_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = load_checkpoint(SHIPPED / "digits-bp.safetensors")
    plain, out = tmp_path / "weights.safetensors", tmp_path / "new.safetensors"
    save_file(shipped.backbone, plain)
    said = ["--mean", "0.5", "--std", "0.5", "--classes-from", "digits"]
    assert main(["convert", str(plain), "--out", str(out), *said]) == 0
    capsys.readouterr()
    assert train_main(["evaluate", str(out), "--dataset", "digits", "--json"]) == 0
    assert shipped.metadata.accuracy is not None
    measured = json.loads(capsys.readouterr().out)["accuracy"]
    assert measured == pytest.approx(shipped.metadata.accuracy["value"], abs=0.0021)


def test_images_that_tell_nothing_leave_the_usual_assumed(
    wrapped: Path, run, tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    said = ["--dataset", "digits", "--samples", "40", "--channel-order", "RGB"]
    document = run("convert", wrapped, "--out", out, *said)
    assert not document["preprocessing"]["tells"]
    assert document["assumed"] == ["preprocessing", "classes"]
    assert document["dataset"] == "unknown"
