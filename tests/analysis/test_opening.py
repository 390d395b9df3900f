"""Files of several origins: what opens computes what its writer computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analysis.assumptions import red_first, usual_preprocessing
from analysis.choices import BGR, Choices
from analysis.errors import InputError
from analysis.examining import Examined, examine, limits_of
from analysis.features import auxiliary_logits, sample_images
from analysis.fingerprints import Published
from analysis.inspection import find_choices
from analysis.models import Model, open_model
from analysis.opening import adopt, is_own, make_checkpoint, make_model
from analysis.preprocessing import DEFAULT_SAMPLES, describe, logits_of
from auglocal.checkpoint import METADATA_KEY, load_checkpoint
from auglocal.files import file_sha256
from tests.auglocal.foreign.test_recognise_local_learning import augmented
from tests.auglocal.foreign.wild.residual import ResidualNetwork
from tests.auglocal.foreign.wild.straight import ChenyaofoVGG, KuangliuVGG
from tests.auglocal.foreign.wild.weights import fill

THIRD_PARTY = Path("/work/shared/data/third-party-resnet20-cifar10.th")
PICTURES = Path(__file__).resolve().parents[2] / "data" / "cifar10-jpeg"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SAID = Choices(mean=MEAN, std=STD)


def akamaster(width: int = 4, **options: object) -> nn.Module:
    return ResidualNetwork((3, 3, 3), width, shortcut="zeros", classifier="linear", **options)


def squeezenet() -> nn.Module:
    """A small architecture that torchvision publishes and that is not trained here."""
    return torchvision.models.squeezenet1_1(weights=None, num_classes=6)


def pixels(count: int = 2, size: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def normalised(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):
    centre, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (images.float() / 255 - centre) / scale


def answers(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return module.eval()(images)


def assert_same(logits: object, expected: Tensor) -> None:
    assert expected.std() > 0.01
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.as_tensor(logits) / scale, expected / scale, rtol=0, atol=1e-5)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def save_legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "plain.safetensors": save_file,
    "plain.pt": torch.save,
    "legacy.th": lambda state, path: save_legacy({"state_dict": prefixed("module.", state)}, path),
    "lightning.ckpt": lambda state, path: torch.save(
        {"state_dict": prefixed("model.", state), "epoch": 7, "optimizer_states": []}, path
    ),
    "compiled.pth.tar": lambda state, path: torch.save(
        {"net": prefixed("_orig_mod.", state), "acc": 91.2}, path
    ),
    "half.bin": lambda state, path: torch.save(
        {
            key: value.double() if value.is_floating_point() else value
            for key, value in state.items()
        },
        path,
    ),
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "akamaster": (akamaster, 32, "resnet20-option-a"),
    "kuangliu": (
        lambda: ResidualNetwork((2, 2, 2, 2), 8, shortcut="shortcut", classifier="linear"),
        32,
        "resnet18",
    ),
    "kuangliu VGG": (lambda: KuangliuVGG(11, 8, 10), 32, "vgg11"),
    "chenyaofo VGG": (lambda: ChenyaofoVGG(16, 8, 100), 32, "vgg16-hidden"),
    "published": (squeezenet, 64, "torchvision:squeezenet1_1"),
}


@pytest.fixture
def written(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network of another code, and its file."""
    network, path = akamaster(), tmp_path / "network.pth"
    torch.save(fill(network), path)
    return network, path


def examined(path: Path, choices: Choices | None = None) -> Examined:
    return examine(path, path.parent / "copies", choices)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_container_opens_to_equal_logits(writer: str, tmp_path: Path) -> None:
    network, path = akamaster(), tmp_path / writer
    WRITERS[writer](fill(network), path)
    model = open_model(path, choices=SAID)
    assert model.path == path
    assert model.sha256 == file_sha256(path)
    assert_same(logits_of(model, pixels()), answers(network, normalised(pixels())))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_style_opens_to_equal_logits_and_so_does_what_is_adopted(
    name: str, tmp_path: Path
) -> None:
    build, size, architecture = NETWORKS[name]
    network, path = build(), tmp_path / "network.pth"
    torch.save(fill(network), path)
    model = open_model(path, choices=SAID)
    assert model.metadata.architecture == architecture
    images = pixels(size=size)
    expected = answers(network, normalised(images))
    assert_same(logits_of(model, images), expected)
    adopted = open_model(adopt(examined(path), SAID, tmp_path / "library"))
    assert_same(logits_of(adopted, images), expected)
    assert adopted.layer_names == model.layer_names
    assert adopted.metadata == model.metadata


def test_the_authors_auxiliary_networks_open_and_are_adopted(tmp_path: Path) -> None:
    plain = ResidualNetwork((5, 5, 5), 4, "downsample", "fc")
    network = augmented(plain, "resnet32/d2/pyr0.5", 10, divisor=4).eval()
    path = tmp_path / "authors.pth"
    torch.save(prefixed("module.", fill(network)), path)
    adopted = adopt(examined(path), SAID, tmp_path / "library")
    for model in (
        open_model(path, auxiliaries=True, choices=SAID),
        open_model(adopted, auxiliaries=True),
    ):
        assert model.metadata.rule == "auglocal"
        images = normalised(pixels())
        features = dict(model.backbone.forward_layers(images))
        with torch.no_grad():
            expected = network.aux_classifier_2_0(network.outputs(images)[2, 0])
        logits = auxiliary_logits(model, "stage2_block1", features["stage2_block1"])
        assert_same(logits, expected)


# ------------------------------------------------------------------------- what is said


def test_what_nobody_says_is_assumed_and_named(written: tuple[nn.Module, Path]) -> None:
    names = tuple("abcdefghij")
    for choices, assumed in (
        (None, ("preprocessing", "classes")),
        (Choices(mean=MEAN), ("preprocessing", "classes")),
        (SAID, ("classes",)),
        (Choices(classes=names), ("preprocessing",)),
        (replace(SAID, classes=names), ()),
    ):
        assert open_model(written[1], choices=choices).assumed == assumed
    usual = open_model(written[1]).metadata
    assert (usual.mean, usual.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert usual.classes == tuple("0123456789")
    assert (usual.rule, usual.dataset, usual.accuracy) == ("unknown", "unknown", None)


@pytest.mark.parametrize("order", ["RGB", BGR])
def test_what_an_adopted_file_assumes_can_be_said_when_it_is_opened(
    written: tuple[nn.Module, Path], tmp_path: Path, order: str
) -> None:
    network, path = written
    adopted = adopt(examined(path), Choices(), tmp_path / "library")
    said = Choices(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channel_order=order)
    model = open_model(adopted, choices=said)
    assert model.metadata.mean == said.mean
    assert model.assumed == ("classes",)
    images = pixels(4)
    inputs = normalised(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    expected = answers(network, inputs.flip(1) if order == BGR else inputs)
    assert_same(logits_of(model, images), expected)
    # What a file says for itself stays.
    whole = adopt(examined(path), replace(said, classes=tuple("abcdefghij")), tmp_path / "library")
    assert open_model(whole, choices=Choices(mean=MEAN, std=STD)).metadata.mean == said.mean


@pytest.mark.parametrize(
    ("size", "name"),
    [((3, 32, 32), "CIFAR-10"), ((3, 224, 224), "ImageNet"), ((1, 28, 28), "MNIST")],
)
def test_the_usual_preprocessing_is_that_of_images_of_the_size(
    size: tuple[int, int, int], name: str
) -> None:
    assert usual_preprocessing(size).name == name
    assert usual_preprocessing((5, 32, 32)).mean == (0.0,) * 5


def test_an_alternative_that_is_chosen_computes_as_it_does(tmp_path: Path) -> None:
    network = ResidualNetwork((3, 3, 3), 4, shortcut="zeros after", classifier="linear")
    path = tmp_path / "network.pth"
    torch.save(fill(network), path)
    chosen = replace(SAID, architecture="resnet20-option-a-end")
    expected = answers(network, normalised(pixels()))
    assert_same(logits_of(open_model(path, choices=chosen), pixels()), expected)
    assert chosen.architecture in examined(path).alternatives
    likeliest = logits_of(open_model(path, choices=SAID), pixels())
    assert not torch.allclose(torch.as_tensor(likeliest), expected, atol=1e-2)


def test_the_librarys_network_can_be_chosen_for_one_that_is_trained_here(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(weights=None, num_classes=5)
    path = tmp_path / "network.pth"
    torch.save(prefixed("module.", fill(network)), path)
    choices = replace(SAID, architecture="torchvision:resnet18")
    found = examined(path, choices)
    assert (found.recognition, found.prefixes) == (None, ("module.",))
    model = make_model(found, choices)
    assert model.metadata.architecture == "torchvision:resnet18"
    images = pixels(size=64)
    assert_same(logits_of(model, images), answers(network, normalised(images)))


def test_an_average_of_the_weights_can_be_chosen(tmp_path: Path) -> None:
    network, path = akamaster(), tmp_path / "network.pth"
    average = fill(network, seed=9)
    torch.save({"model": fill(akamaster()), "ema": average, "epoch": 3}, path)
    network.load_state_dict(average)
    assert examined(path).imported.other_states == ("ema",)
    model = open_model(path, choices=replace(SAID, state="ema"))
    assert_same(logits_of(model, pixels()), answers(network, normalised(pixels())))
    with pytest.raises(
        InputError, match="no state dict named 'swa', .*choose one of 'model', 'ema'"
    ):
        open_model(path, choices=Choices(state="swa"))


@pytest.mark.parametrize(("epoch", "read"), [(12, 12), (True, 0), (-1, 0), (10**9, 0), ("x", 0)])
def test_the_epoch_beside_the_weights_is_kept_if_it_is_one(
    epoch: object, read: int, tmp_path: Path
) -> None:
    path = tmp_path / "network.pth"
    torch.save({"state_dict": fill(akamaster()), "epoch": epoch}, path)
    assert open_model(path).metadata.epoch == read


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (Choices(mean=(0.5,), std=(0.5,)), "3 numbers each, std above 0, not 0.5; give both so"),
        (replace(SAID, std=(0.1, 0.0, 0.1)), "std above 0, not 0.1, 0, 0.1"),
        (replace(SAID, mean=(0.1, float("nan"), 0.1)), "not 0.1, nan, 0.1"),
        (Choices(classes=("a", "b")), "has 10 classes, not 2; give 10 names, or none"),
        (Choices(classes=("a" * 300,) * 10), "at most 256 characters"),
        (Choices(image_size=(0, 32)), "1 to 2048 pixels high and wide, not 0 x 32"),
        (Choices(channel_order="GBR"), "cannot be GBR; it is RGB, or BGR"),
        (Choices(architecture="resnet32"), "'resnet32'; choose one of resnet20-option-a"),
        (Choices(architecture="torchvision:alexnet"), "does not hold a torchvision:alexnet"),
    ],
)
def test_choices_that_do_not_fit_are_refused(
    choices: Choices, message: str, written: tuple[nn.Module, Path]
) -> None:
    with pytest.raises(InputError, match=message):
        open_model(written[1], choices=choices)


def test_tensors_of_one_image_size_take_no_other(written: tuple[nn.Module, Path]) -> None:
    fixed = Published("torchvision", "vit_b_32", 10, 3, (3, 224, 224), sized=True)
    found = replace(examined(written[1]), recognition=None, published=(fixed,))
    with pytest.raises(InputError, match="depend on the size of its images, which is 224x224"):
        make_checkpoint(found, Choices(image_size=(64, 64)))


# ------------------------------------------------------------------------- blue first


@pytest.mark.parametrize("name", ["akamaster", "three channels wide", "published"])
def test_a_network_that_reads_blue_first_becomes_one_that_reads_red_first(
    name: str, tmp_path: Path
) -> None:
    # Of three channels many convolutions read three.
    narrow = partial(ResidualNetwork, (3, 3, 3), 3, shortcut="shortcut", classifier="linear")
    builders = {"akamaster": akamaster, "published": squeezenet, "three channels wide": narrow}
    network = builders[name]()
    path = tmp_path / "network.pth"
    torch.save(fill(network), path)
    images = pixels(size=64 if name == "published" else 32)
    expected = answers(network, normalised(images.flip(1), MEAN[::-1], STD[::-1]))
    choices = replace(SAID, channel_order=BGR)
    assert_same(logits_of(open_model(path, choices=choices), images), expected)
    adopted = open_model(adopt(examined(path), choices, tmp_path))
    assert_same(logits_of(adopted, images), expected)


def test_the_order_of_channels_must_be_one_that_can_be_turned(tmp_path: Path) -> None:
    path = tmp_path / "grey.pth"
    torch.save(fill(akamaster(num_channels=1)), path)
    with pytest.raises(InputError, match="order of 1 channels cannot be BGR"):
        open_model(path, choices=Choices(channel_order=BGR))
    two = {name: torch.zeros(4, 3, 1, 1) for name in "ab"}
    with pytest.raises(InputError, match="2 convolutions of this network read three channels"):
        red_first(two)


# ------------------------------------------------------------------------- files of ours


def test_an_adopted_file_is_an_ordinary_checkpoint_of_the_same_bytes(
    written: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    choices = replace(SAID, dataset="cifar10", rule="bp", classes=tuple("abcdefghij"))
    found = examined(written[1])
    first, second = (adopt(found, choices, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert first.name == second.name == f"{file_sha256(first)}.safetensors"
    assert list(first.parent.iterdir()) == [first]
    checkpoint = load_checkpoint(first)
    assert (checkpoint.metadata.dataset, checkpoint.metadata.rule) == ("CIFAR-10", "bp")
    assert checkpoint.metadata.config == {
        "dataset": "cifar10",
        "opened_from": {
            "file": "network.pth",
            "sha256": file_sha256(written[1]),
            "wrapped_in": None,
            "variant": "option A (identity padding)",
            "assumed": [],
            "channel_order": "RGB",
        },
    }
    assert str(tmp_path) not in checkpoint.metadata.to_json()
    assert is_own(first)
    assert open_model(first).dataset_name() == "cifar10"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published architecture, adopted."""
    path = tmp_path / "network.pth"
    torch.save(fill(squeezenet()), path)
    return adopt(examined(path), SAID, tmp_path / "library")


def rewritten(path: Path, tensors: dict[str, Tensor], **changes: object) -> Path:
    """The same file with other tensors, or another header."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    save_file(tensors, path, {METADATA_KEY: json.dumps({**header, **changes})})
    return path


def test_a_published_file_that_is_not_what_it_says_is_refused(published: Path) -> None:
    tensors = load_file(published)
    rewritten(published, tensors, architecture="torchvision:alexnet")
    with pytest.raises(InputError, match="says that it is a torchvision:alexnet but does not hold"):
        open_model(published)
    rewritten(
        published,
        tensors,
        architecture="torchvision:squeezenet1_1",
        num_classes=5,
        classes=list("abcde"),
    )
    with pytest.raises(InputError, match="says that it is a torchvision:squeezenet1_1 but"):
        open_model(published)


def test_a_published_file_with_nan_is_refused(published: Path) -> None:
    tensors = load_file(published)
    tensors["features.0.bias"][0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity in 'features.0.bias'"):
        open_model(rewritten(published, tensors))


def test_a_network_without_a_classifier_is_adopted_and_opened_again(tmp_path: Path) -> None:
    network, path = torchvision.models.shufflenet_v2_x0_5(weights=None), tmp_path / "network.pth"
    state = {key: value for key, value in fill(network).items() if not key.startswith("fc.")}
    torch.save(state, path)
    model = open_model(adopt(examined(path), Choices(), tmp_path / "library"))
    assert (model.metadata.num_classes, model.metadata.classes) == (0, ())
    network.fc = nn.Identity()
    mean, std = model.metadata.mean, model.metadata.std
    images = pixels(size=64)
    assert_same(logits_of(model, images), answers(network, normalised(images, mean, std)))


# ------------------------------------------------------------------------- what is refused


def test_a_larger_file_than_allowed_is_refused(written: tuple[nn.Module, Path]) -> None:
    size = written[1].stat().st_size
    with pytest.raises(InputError, match=f"has {size:,} bytes, more than the {size - 1:,}"):
        open_model(written[1], max_bytes=size - 1)
    with pytest.raises(InputError, match="at most 0 MB are read.*--max-bytes"):
        examine(written[1], written[1].parent, limits=limits_of(1000))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state, path = fill(akamaster()), tmp_path / "network.pth"
    state["layer1.0.conv1.weight"][0] = torch.nan
    state["linear.bias"][0] = torch.inf
    torch.save(state, path)
    message = "NaN or infinity in 'layer1.0.conv1.weight' and 1 more tensors, .*before the training"
    with pytest.raises(InputError, match=message):
        open_model(path)


def test_an_unknown_network_is_held_against_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save({**fill(squeezenet()), "temperature.scale": torch.ones(1)}, path)
    message = (
        r"nearest to torchvision:squeezenet1_1, of which \d\d% of the keys and shapes fit "
        r"\(temperature.scale .*\); build the network .* analysis.modules.from_module"
    )
    with pytest.raises(InputError, match=message):
        open_model(path)
    torch.save({"encode.weight": torch.ones(3, 4), "mix.bias": torch.ones(9)}, path)
    with pytest.raises(InputError, match="'encode.weight'.* have no place .*from_module"):
        open_model(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_own(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        examine(tmp_path / "pipe", tmp_path)


# ------------------------------------------------------------------------- the real file


@pytest.fixture(scope="module")
def third_party() -> tuple[nn.Module, Model]:
    """The third party's file, read by PyTorch into a network of the test's, and as it opens."""
    if not THIRD_PARTY.exists():
        pytest.skip("the third party's file is not here")
    state = torch.load(THIRD_PARTY, map_location="cpu", weights_only=True)["state_dict"]
    network = akamaster(16)
    own = {key.removeprefix("module."): value for key, value in state.items()}
    assert not network.load_state_dict(own, strict=False).unexpected_keys
    return network, open_model(THIRD_PARTY)


def test_the_third_partys_file_opens_as_it_is(third_party: tuple[nn.Module, Model]) -> None:
    network, model = third_party
    metadata = model.metadata
    assert (metadata.architecture, metadata.num_classes) == ("resnet20-option-a", 10)
    assert model.assumed == ("preprocessing", "classes")
    images = pixels(8)
    expected = answers(network, normalised(images, metadata.mean, metadata.std))
    assert_same(logits_of(model, images), expected)


@pytest.mark.slow
def test_the_third_partys_preprocessing_is_found_on_its_images(
    third_party: tuple[nn.Module, Model], tmp_path: Path
) -> None:
    if not PICTURES.is_dir():
        pytest.skip("CIFAR-10 (JPEG) is not in data/")
    sample = sample_images(f"imagefolder:{PICTURES}", "test", default_samples=DEFAULT_SAMPLES)
    found = examine(THIRD_PARTY, tmp_path / "copies")
    choices, evidence = find_choices(found, Choices(), sample)
    assert describe(evidence.best.preprocessing) == "ImageNet"
    # Its authors measured 91.8% on images that were not JPEG.
    assert 0.75 < evidence.best.low < evidence.best.accuracy < 0.92
    model = open_model(adopt(found, choices, tmp_path / "library"))
    assert model.assumed == ()
    assert model.metadata.classes == sample.classes
    expected = answers(
        third_party[0],
        normalised(sample.images[:16], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    assert_same(logits_of(model, sample.images[:16]), expected)
