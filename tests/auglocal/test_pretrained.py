"""Weights to start from: what fits, what starts fresh, and what is refused."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from auglocal import pretrained
from auglocal.__main__ import main
from auglocal.backbones.registry import (
    BACKBONES,
    IMAGENET,
    build_backbone,
    build_meta_backbone,
)
from auglocal.checkpoint import load_checkpoint, save_checkpoint
from auglocal.errors import InputError, WorkError
from auglocal.network import LocalNetwork
from auglocal.pretrained import (
    Pretrained,
    load_pretrained,
    load_torchvision_state,
    read_pretrained,
)
from auglocal.rules.registry import RULES, build_network
from tests.auglocal.foreign.corpus import Runs
from tests.auglocal.foreign.test_recognise_local_learning import augmented
from tests.auglocal.foreign.wild.residual import ResidualNetwork, augmented_head
from tests.auglocal.foreign.wild.straight import KuangliuVGG
from tests.auglocal.foreign.wild.weights import fill, random_images

ZEROS = {"shortcut": "zeros", "classifier": "linear"}
TINY = ["--epochs", "1", "--batch-size", "12", "--device", "cpu", "--rule", "bp"]
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "digits-bp.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A state dict as torchvision publishes it, of 6 classes."""
    return torchvision.models.mobilenet_v2(weights=None, num_classes=6).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_with_torchvisions_keys_loads(
    suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    backbone = build_backbone("mobilenetv2-imagenet", num_classes=6)
    assert load_pretrained(backbone, "mobilenetv2-imagenet", path).has_classifier
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[backbone.key_map.to_torchvision(key)])


def test_the_classifier_alone_stays_fresh_with_other_classes(state: dict[str, Tensor]) -> None:
    backbone = build_backbone("mobilenetv2-imagenet", num_classes=4)
    fresh = backbone.head.linear.weight.detach().clone()
    assert not load_torchvision_state(backbone, state)
    assert torch.equal(backbone.head.linear.weight, fresh)
    assert torch.equal(backbone.head.conv[0].weight, state["features.18.0.weight"])


def test_an_old_file_without_batch_counters_loads(state: dict[str, Tensor]) -> None:
    old = {key: value for key, value in state.items() if not key.endswith("batches_tracked")}
    assert load_torchvision_state(build_backbone("mobilenetv2-imagenet", num_classes=6), old)


def test_a_checkpoint_of_ours_loads() -> None:
    checkpoint = load_checkpoint(SHIPPED)
    size = checkpoint.metadata.input_size
    backbone = build_backbone("resnet20", num_classes=10, input_size=size)
    assert load_pretrained(backbone, "resnet20", SHIPPED).has_classifier
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, checkpoint.backbone[key])
    other = build_meta_backbone("resnet20", num_classes=3, input_size=size)
    kept = read_pretrained(other, "resnet20", SHIPPED)
    assert not kept.has_classifier
    assert checkpoint.backbone.keys() - kept.backbone.keys() == {
        "head.linear.weight",
        "head.linear.bias",
    }


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="holds a resnet20, not a resnet32; give --architecture"):
        read_pretrained(build_meta_backbone("resnet32"), "resnet32", SHIPPED)


def test_a_state_of_another_architecture_is_refused(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    backbone = build_backbone("regnetx-400mf")
    before = backbone.head.linear.weight.detach().clone()
    message = r"weights.pth does not fit the backbone: .* not those of 'regnetx-400mf'; choose one"
    with pytest.raises(InputError, match=message):
        load_pretrained(backbone, "regnetx-400mf", path)
    assert torch.equal(backbone.head.linear.weight, before)
    with pytest.raises(InputError, match="not those of 'resnet20'; choose one of mobilenetv2"):
        read_pretrained(build_meta_backbone("resnet20"), "resnet20", path)


@pytest.mark.parametrize(
    ("architecture", "wrapper", "build"),
    [
        ("resnet20-option-a", "module.", lambda: ResidualNetwork((3, 3, 3), 16, **ZEROS)),
        ("resnet20", "model.", lambda: ResidualNetwork((3, 3, 3), 16, "downsample", "fc")),
        ("vgg11", "_orig_mod.", lambda: KuangliuVGG(11, 64, 10)),
    ],
)
def test_other_codes_files_start_a_run(
    architecture: str, wrapper: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    theirs, path = build(), tmp_path / "last.ckpt"
    state = {wrapper + key: tensor for key, tensor in fill(theirs).items()}
    torch.save({"state_dict": state, "epoch": 3}, path)
    backbone = build_backbone(architecture, 10, (3, 32, 32)).eval()
    assert load_pretrained(backbone, architecture, path).has_classifier
    images = random_images(2, 3, 32)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


def test_another_width_or_more_channels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    network = ResidualNetwork((3, 3, 3), 8, shortcut="downsample", classifier="fc")
    torch.save(fill(network), path)
    with pytest.raises(InputError, match=r"weights.pth has .* of shape .*--width"):
        read_pretrained(build_meta_backbone("resnet20"), "resnet20", path)
    grey = build_meta_backbone("resnet20", 10, (1, 32, 32), 0.5)
    with pytest.raises(InputError, match=r"\[8, 3, 3, 3\] instead of \[8, 1, 3, 3\]"):
        read_pretrained(grey, "resnet20", path)


def test_a_state_with_more_or_other_tensors_is_refused(state: dict[str, Tensor]) -> None:
    backbone = build_meta_backbone("mobilenetv2", num_classes=6)
    with pytest.raises(InputError, match=r"holds besides 1 tensors, 'aux.weight' first"):
        load_torchvision_state(backbone, state | {"aux.weight": torch.zeros(1)})
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    message = r"'layers.stem.conv1.weight' of shape \[64, 3, 7, 7\] instead of \[64, 3, 3, 3\]"
    with pytest.raises(InputError, match=message):
        load_torchvision_state(build_meta_backbone("resnet18"), resnet)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "weights.pth .*, so it was not opened; "),
        ([torch.zeros(1)], "weights.pth holds no state dict"),
        ({"epoch": 3}, "weights.pth holds no state dict"),
        ({"a": torch.tensor([torch.nan])}, "weights.pth has NaN or infinity in 'a'"),
        (Runs(print, "code"), "weights.pth contains code"),
        (None, "There is no file .*weights.pth; check the path"),
    ],
    ids=["text", "list", "epoch alone", "nan", "code", "missing"],
)
def test_what_is_no_file_of_weights_is_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_pretrained(build_meta_backbone("resnet18"), "resnet18", path)


# ------------------------------------------------------------------------- auxiliary networks


def authors_network() -> ResidualNetwork:
    """A ResNet-32 of the AugLocal authors with its auxiliary networks, d = 2."""
    plain = ResidualNetwork((5, 5, 5), 4, "downsample", "fc")
    return augmented(plain, "resnet32/d2/pyr0.5", 10, divisor=4).eval()


def local_network(rule: str, num_classes: int = 10, **options: object) -> LocalNetwork:
    """Fresh, of the same form, by a rule of ours."""
    made = RULES[rule](**options)
    return build_network("resnet32", made, num_classes, (3, 32, 32), 0, width=0.25).eval()


def load_into(network: LocalNetwork, path: Path) -> Pretrained:
    return load_pretrained(network.backbone, "resnet32", path, network.auxiliaries)


def test_the_authors_auxiliary_networks_go_on_where_they_were(tmp_path: Path) -> None:
    theirs, path = authors_network(), tmp_path / "model_best.pth.tar"
    state = {f"module.{key}": tensor for key, tensor in fill(theirs).items()}
    torch.save({"state_dict": state, "epoch": 400}, path)
    network = local_network("auglocal", auxiliary_depth=2)
    taken = load_into(network, path)
    assert taken.taken == taken.offered == network.block_names[:-1]
    assert taken.sentence(10) == (
        "From model_best.pth.tar come the backbone and its classifier; 13 of its 13 auxiliary "
        "networks too."
    )
    images = random_images(2, 3, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(images), theirs(images), rtol=0, atol=1e-4)
        features = dict(network.backbone.forward_layers(images))
        for (stage, block), output in list(theirs.outputs(images).items())[:13]:
            name = f"stage{stage}_block{block + 1}" if stage else "stem"
            expected = getattr(theirs, f"aux_classifier_{stage}_{block}")(output)
            logits = network.auxiliaries[name].logits(features[name])
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_auxiliary_networks_of_another_shape_stay_fresh(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(fill(authors_network()), path)
    # One copied layer instead of two; as many outputs as there are classes.
    for network in (
        local_network("auglocal", auxiliary_depth=1),
        local_network("auglocal", 7, auxiliary_depth=2),
        local_network("dgl"),
    ):
        before = {key: value.clone() for key, value in network.auxiliaries.state_dict().items()}
        found = load_into(network, path)
        assert (found.taken, len(found.offered)) == ((), 13)
        assert "its 13 auxiliary networks are not those of this run." in found.sentence(7)
        for key, tensor in network.auxiliaries.state_dict().items():
            assert torch.equal(tensor, before[key])
    assert load_into(local_network("bp"), path).auxiliary == {}


def test_auxiliary_networks_of_a_checkpoint_of_ours_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    old = local_network("auglocal", auxiliary_depth=2, modules=4)
    fill(old)
    shipped = load_checkpoint(SHIPPED).metadata
    metadata = replace(
        shipped,
        architecture="resnet32",
        width=0.25,
        input_size=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    save_checkpoint(path, old, metadata)
    new = local_network("auglocal", auxiliary_depth=2, modules=4)
    assert load_into(new, path).taken == old.block_names[:-1]
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[key])
    # Of finer blocks, those that end at the same layers and copy as many layers.
    finer = load_into(local_network("auglocal", auxiliary_depth=2), path)
    assert finer.offered == old.block_names[:-1]
    assert set(finer.taken) <= set(finer.offered)


def test_a_run_starts_from_the_authors_networks_and_says_so(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ResidualNetwork((3, 3, 3), 16, "downsample", "fc", num_classes=2)
    rule = RULES["auglocal"](auxiliary_depth=1)
    ours = build_network("resnet20", rule, 2, (3, 16, 16), 0)
    for name in ours.block_names[:-1]:
        weight = ours.auxiliaries[name].state_dict()["layers.0.conv1.weight"]
        stride = 2 if weight.shape[0] > weight.shape[1] else 1
        head = augmented_head(weight.shape[1], [(weight.shape[0], stride)], 2, norm=True)
        position = "0_0" if name == "stem" else f"{name[5]}_{int(name[-1]) - 1}"
        setattr(plain, f"aux_classifier_{position}", head)
    state = fill(plain)
    path, out = tmp_path / "authors.pth", tmp_path / "run"
    torch.save(state, path)
    options = ["--rule", "auglocal", "--auxiliary-depth", "1", "--pretrained", str(path)]
    data = ["--dataset", f"imagefolder:{image_folder}", "--out", str(out)]
    still = ["--learning-rate", "1e-12", "--weight-decay", "0"]
    assert main(["train", *data, *TINY, *options, *still]) == 0
    said = capsys.readouterr().err
    count = len(ours.block_names) - 1
    assert f"the backbone and its classifier; {count} of its {count} auxiliary networks too" in said
    new = load_checkpoint(out / "checkpoint.safetensors")
    for name, theirs in (("stem", "0_0"), ("stage2_block1", "2_0")):
        key = f"auxiliary.{name}.layers.0.conv1.weight"
        expected = state[f"aux_classifier_{theirs}.head.0.conv1.weight"]
        torch.testing.assert_close(new.auxiliary[key], expected)


def test_evaluate_points_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(fill(ResidualNetwork((3, 3, 3), 4, "zeros", "linear")), path)
    assert main(["evaluate", str(path)]) == 2
    assert "python -m analysis convert FILE --out NEW.safetensors" in capsys.readouterr().err


# ------------------------------------------------------------------------- published weights

V1 = "torchvision:IMAGENET1K_V1"
V2 = "torchvision:IMAGENET1K_V2"


def no_network(*arguments: object, **options: object) -> None:
    """What a fetch meets on a machine without a network."""
    raise URLError("Name or service not known")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """PyTorch's cache, empty, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path / "hub" / "checkpoints"


def publish(state: dict[str, Tensor], name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a state dict be what is published; returns the list of what will be fetched."""
    stream = io.BytesIO()
    torch.save(state, stream)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()[:8]
    published = SimpleNamespace(url=f"https://there/{name}-{digest}.pth")
    monkeypatch.setattr(pretrained, "_published_weights", lambda *_: published)
    fetched = []

    def fetch(url: str, path: str) -> None:
        fetched.append(url)
        print("Downloading")  # as PyTorch does, on stdout
        Path(path).write_bytes(stream.getvalue())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return fetched


def test_published_weights_are_fetched_once_and_checked(
    state: dict[str, Tensor],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fetched = publish(state, "mobilenet", monkeypatch)
    backbone = build_backbone("mobilenetv2-imagenet", num_classes=6)
    assert load_pretrained(backbone, "mobilenetv2-imagenet", V2).has_classifier
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[backbone.key_map.to_torchvision(key)])
    assert read_pretrained(backbone, "mobilenetv2-imagenet", V2).source == V2
    assert len(fetched) == 1
    assert capsys.readouterr().out == ""
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WorkError, match=f"not the file that was published.*; delete {path} and"):
        read_pretrained(backbone, "mobilenetv2-imagenet", V2)


@pytest.mark.parametrize("architecture", [name for name in BACKBONES if name.endswith(IMAGENET)])
def test_torchvision_publishes_weights_of_every_imagenet_form(
    architecture: str, cache: Path
) -> None:
    message = f"IMAGENET1K_V1 of {architecture} .*Name or service not known.*; check the network"
    backbone = build_meta_backbone(architecture, 1000)
    with pytest.raises(WorkError, match=message):
        read_pretrained(backbone, architecture, V1)
    published = torchvision.models.get_model_weights(backbone.key_map.model)
    assert all(pretrained.DIGEST.search(weights.url) for weights in published)


def test_a_damaged_copy_in_the_cache_is_named(cache: Path) -> None:
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    path = cache / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    backbone = build_meta_backbone("resnet18-imagenet", 1000)
    with pytest.raises(WorkError, match=f"of resnet18-imagenet .*; delete {path} and try again"):
        read_pretrained(backbone, "resnet18-imagenet", V1)


@pytest.mark.parametrize(
    ("architecture", "name", "message"),
    [
        ("vgg13-imagenet", "V3", "'V3' of vgg13-imagenet; .* one of torchvision:IMAGENET1K_V1"),
        ("resnet50-imagenet", "", "one of torchvision:IMAGENET1K_V1, torchvision:IMAGENET1K_V2"),
        ("resnet20", "IMAGENET1K_V1", "torchvision has no resnet20, and so no weights"),
    ],
)
def test_unknown_weights_list_the_known_ones_before_anything_is_fetched(
    architecture: str, name: str, message: str, cache: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_pretrained(build_meta_backbone(architecture), architecture, f"torchvision:{name}")


def test_published_weights_of_another_stem_are_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(torchvision.models.resnet18(weights=None).state_dict(), "resnet18", monkeypatch)
    with pytest.raises(InputError, match=f"^{V1} has 'layers.stem.conv1.weight' of shape"):
        read_pretrained(build_meta_backbone("resnet18"), "resnet18", V1)


def test_a_failed_fetch_ends_the_command_with_one_sentence(
    image_folder: Path,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--dataset", f"imagefolder:{image_folder}", "--out", str(tmp_path / "run")]
    options = ["--architecture", "mobilenetv2", "--pretrained", V1]
    assert main(["train", *data, *TINY, *options]) == 1
    assert "Could not fetch torchvision's weights IMAGENET1K_V1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_starts_from_the_weights_and_goes_on_without_the_file(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", f"imagefolder:{image_folder}"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *data, *TINY, "--out", str(first)]) == 0
    path = first / "checkpoint.safetensors"
    start = ["--pretrained", str(path), "--learning-rate", "1e-12", "--weight-decay", "0"]
    capsys.readouterr()
    assert main(["train", *data, *TINY, *start, "--out", str(second)]) == 0
    said = capsys.readouterr().err
    assert (
        "auglocal train: From checkpoint.safetensors come the backbone and its classifier." in said
    )
    old, new = (load_checkpoint(run / "checkpoint.safetensors") for run in (first, second))
    weight = "layers.stage3_block3.conv2.weight"
    torch.testing.assert_close(old.backbone[weight], new.backbone[weight])
    assert new.metadata.config["pretrained"] == "checkpoint.safetensors"
    path.unlink()
    assert main(["train", "--resume", str(second)]) == 0


def test_a_fresh_classifier_is_said_on_stderr(
    state: dict[str, Tensor],
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    options = ["--architecture", "mobilenetv2", "--pretrained", str(path), "--dry-run"]
    assert main(["train", "--dataset", f"imagefolder:{image_folder}", *TINY, *options]) == 0
    said = capsys.readouterr().err
    assert "the classifier starts fresh, since weights.pth has not 2 classes." in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pretrained", "nowhere.pth"], "There is no file nowhere.pth"),
        (["--architecture", "vgg11"], "needs 32 pixels, not 16"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    options: list[str],
    message: str,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    data = ["--dataset", f"imagefolder:{image_folder}", "--out", str(out)]
    assert main(["train", *data, *TINY, *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
