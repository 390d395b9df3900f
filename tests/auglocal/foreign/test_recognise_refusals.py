"""What is no backbone of ours gets one sentence; nothing else ever happens, and at once."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import time
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn

from auglocal.backbones.registry import build_meta_backbone, find_builder
from auglocal.errors import InputError
from auglocal.foreign.conversion import to_checkpoint
from auglocal.foreign.recognise import Unrecognised, recognise
from tests.auglocal.foreign.wild.residual import ResidualNetwork
from tests.auglocal.foreign.wild.straight import KuangliuVGG

ADVICE = re.escape("build the network in Python and give it to analysis.modules.from_module")


@dataclass(frozen=True)
class Shape:
    """A tensor that has a shape and no values."""

    shape: tuple[int, ...]
    dtype: object = torch.float32


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    return {key: Shape(tuple(tensor.shape)) for key, tensor in network.state_dict().items()}


def torchvision_shapes(name: str) -> dict[str, Shape]:
    # Its RegNet computes its stages with tensors whose values it reads.
    with contextlib.nullcontext() if "regnet" in name else torch.device("meta"):
        return shapes_of(torchvision.models.get_model(name, weights=None))


def option_a(*counts: int, **options: object) -> dict[str, Shape]:
    with torch.device("meta"):
        return shapes_of(ResidualNetwork(counts, 16, "zeros", "linear", **options))


# ------------------------------------------------------------------------- sentences


def test_a_missing_tensor_is_named() -> None:
    state = option_a(3, 3, 3)
    del state["layer2.1.bn1.running_mean"]
    message = (
        r"nearest to resnet20-option-a \(keys of option A \(identity padding\)\) but lacks "
        rf"\(in our names\) 'layers.stage2_block2.norm1.running_mean'\. To open it, {ADVICE}\."
    )
    with pytest.raises(Unrecognised, match=message):
        recognise(state)


def test_unexpected_tensors_are_named_by_the_files_keys_the_first_few_of_them() -> None:
    state = option_a(3, 3, 3)
    for index in range(5):
        state[f"layer1.{index % 3}.attention{index}.weight"] = Shape((16, 16))
    message = (
        "holds besides 'layer1.0.attention0.weight', 'layer1.1.attention1.weight', "
        "'layer1.2.attention2.weight' and 2 more"
    )
    with pytest.raises(Unrecognised, match=message):
        recognise({f"module.{key}": value for key, value in state.items()})


def test_another_shape_is_named_with_the_one_expected() -> None:
    state = option_a(3, 3, 3) | {"layer3.0.conv2.weight": Shape((64, 32, 3, 3))}
    message = re.escape("'layer3.0.conv2.weight' has [64, 32, 3, 3] instead of [64, 64, 3, 3]")
    with pytest.raises(Unrecognised, match=message):
        recognise(state)


def test_whole_numbers_are_no_weights() -> None:
    state = option_a(3, 3, 3) | {"conv1.weight": Shape((16, 3, 3, 3), torch.int8)}
    with pytest.raises(Unrecognised, match="has whole numbers for weights in 'conv1.weight'"):
        recognise(state)


def test_unusual_classes_leave_the_size_of_images_open() -> None:
    for num_classes, count in ((10, 0), (100, 0), (200, 1)):
        found = recognise(option_a(3, 3, 3, num_classes=num_classes))
        assert found.input_size == (3, 32, 32)
        assert len(found.warnings) == count
    assert "does not say how large its images are; 32x32 is usual" in found.warnings[0]


def test_stages_of_different_depths_are_none_of_ours() -> None:
    with pytest.raises(Unrecognised, match="nearest to resnet26-option-a"):
        recognise(option_a(5, 4, 3))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("wide_resnet50_2", "resnet50-imagenet"),
        ("resnext50_32x4d", "resnet50-imagenet"),
        ("vgg11", "vgg11-imagenet"),
        ("efficientnet_b1", "efficientnet-b0-imagenet"),
        ("regnet_x_800mf", "regnetx-400mf-imagenet"),
        ("regnet_y_400mf", "regnetx-400mf-imagenet"),
    ],
)
def test_a_relative_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(Unrecognised, match=f"nearest to {nearest} "):
        recognise(torchvision_shapes(name))


@pytest.mark.parametrize("name", ["alexnet", "densenet121", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_a_stranger_is_named_by_its_keys_and_its_shapes(name: str) -> None:
    with pytest.raises(Unrecognised, match=f"nearest to .*{ADVICE}"):
        recognise(torchvision_shapes(name))


def test_a_stranger_with_the_shapes_of_a_resnet_is_nearest_to_it() -> None:
    state = shapes_of(build_meta_backbone("resnet34"))
    strange = {f"part{index}": value for index, value in enumerate(state.values())}
    message = (
        "No backbone of this project has such names: 'part0', 'part1', 'part2' have no place in "
        "any. By the shapes it is nearest to resnet34 "
    )
    with pytest.raises(Unrecognised, match=message):
        recognise(strange)


def test_no_tensors_are_no_network() -> None:
    with pytest.raises(Unrecognised, match="There are no tensors in it"):
        recognise({})


def test_an_architecture_that_does_not_fit_is_refused_with_those_that_do() -> None:
    message = (
        "The tensors are not those of 'resnet18'; choose one of resnet20-option-a, "
        "resnet20-option-a-end."
    )
    with pytest.raises(Unrecognised, match=message):
        recognise(option_a(3, 3, 3), architecture="resnet18")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("linear.weight", (200_000, 64), "with 200000 classes"),
        ("conv1.weight", (16, 17, 3, 3), "for 17-channel images"),
        ("conv1.weight", (16 * 65, 3, 3, 3), "of width 65"),
    ],
)
def test_claims_beyond_reason_are_refused(key: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(Unrecognised, match=f"{words}.*beyond what this project builds"):
        recognise(option_a(3, 3, 3) | {key: Shape(shape)})


def test_a_depth_beyond_reason_is_refused_before_it_is_built() -> None:
    state = option_a(3, 3, 3)
    for stage, index in itertools.product((1, 2, 3), (998, 999)):
        state[f"layer{stage}.{index}.conv1.weight"] = Shape((16, 16, 3, 3))
    start = time.perf_counter()
    with pytest.raises(Unrecognised, match="nearest to resnet6002-option-a of width 1"):
        recognise(state)
    assert time.perf_counter() - start < 1


def test_a_normalisation_or_classes_that_do_not_fit_are_refused() -> None:
    network = ResidualNetwork((1, 1, 1), 4, "zeros", "linear", num_channels=1)
    state = network.state_dict()
    found = recognise(state)
    with pytest.raises(InputError, match="images of 1 channels, so that .* not 3 and 3"):
        to_checkpoint(state, found, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match="has 10 classes, not 2; give 10 names, or none"):
        to_checkpoint(state, found, mean=(0.5,), std=(0.5,), classes=("cat", "dog"))


# ------------------------------------------------------------------------- what stands beside


def test_what_stands_beside_a_network_is_reported() -> None:
    keys = option_a(3, 3, 3)
    state = {f"model.{key}": value for key, value in keys.items()}
    state |= {"criterion.weight": Shape((10,)), "val_accuracy.correct": Shape(())}
    found = recognise(state)
    assert found.prefixes_stripped == ("model.",)
    assert found.left_out == ("criterion.weight", "val_accuracy.correct")
    assert found.warnings == ()
    assert set(found.keys.values()) == {f"model.{key}" for key in keys}


def test_tensors_without_a_module_are_left_out_with_a_warning() -> None:
    found = recognise(option_a(3, 3, 3) | {"mean": Shape((3, 1, 1)), "std": Shape((3, 1, 1))})
    assert found.left_out == ("mean", "std")
    assert found.warnings[0].startswith("Left out: 'mean', 'std'; if the network computes with")


def test_an_average_beside_the_weights_is_reported_and_can_be_chosen() -> None:
    keys = option_a(3, 3, 3)
    state = {f"net.{key}": value for key, value in keys.items()}
    state |= {f"ema_model.module.{key}": value for key, value in keys.items()}
    found = recognise(state)
    assert found.keys["head.linear.bias"] == "net.linear.bias"
    assert found.warnings[0].startswith("Another copy of the weights stands under 'ema_model.'")
    found = recognise(state, copy="ema_model.")
    assert found.keys["head.linear.bias"] == "ema_model.module.linear.bias"
    assert found.prefixes_stripped == ("ema_model.", "module.")


# ------------------------------------------------------------------------- any keys and shapes


WORDS = (
    *("module", "model", "backbone", "layers", "stem", "features", "classifier", "head", "fc"),
    *("conv1", "bn1", "conv", "norm", "layer1", "layer2", "layer4", "linear", "downsample"),
    *("stage1_block1", "stage3_conv2", "hidden", "blocks", "conv_stem", "conv_dw", "s1", "b1"),
    *("trunk_output", "block1", "block1-0", "aux_classifier_1_0", "decoder_0_0", "auxiliary"),
    *("weight", "bias", "running_mean", "num_batches_tracked", "f", "a", "0", "1", "7", "99"),
    *("", "ä", "\x00", "\u0663", "layer1.0.conv1", "features.0", "pre_logits.fc1", "x" * 300),
)
LENGTHS = (0, 1, 2, 3, 7, 16, 64, 512, 4096, 2**31, 2**62)


def real_keys() -> list[dict[str, Shape]]:
    with torch.device("meta"):
        networks = [
            ResidualNetwork((2, 2, 2), 4, "downsample", "fc"),
            ResidualNetwork((2, 2, 2, 2), 4, "shortcut", "linear"),
            KuangliuVGG(11, 4, 10),
        ]
    networks += [build_meta_backbone(name) for name in ("mobilenetv2", "resnet20", "vgg11")]
    return [shapes_of(network) for network in networks]


def outcome_of(state: dict[str, Shape]) -> str:
    sentence = ""
    try:
        found = recognise(state)
    except InputError as error:
        sentence = str(error)
    if sentence:
        assert len(sentence) < 1500
        assert sentence.endswith(".")
        return "refused"
    assert find_builder(found.architecture) is not None
    return "recognised"


def test_any_keys_and_shapes_are_recognised_or_refused() -> None:
    choose = random.Random(0)
    bases = real_keys()
    outcomes = {"recognised": 0, "refused": 0}
    for round_index in range(400):
        state = dict(choose.choice(bases)) if round_index % 2 else {}
        for key in choose.sample(sorted(state), k=min(len(state), choose.randrange(3))):
            del state[key]
        for _ in range(choose.randrange(4)):
            words = choose.choices(WORDS, k=choose.randrange(1, 6))
            key = choose.choice(sorted(state)) if state and choose.random() < 0.5 else ""
            shape = tuple(choose.choices(LENGTHS, k=choose.randrange(6)))
            state[key or ".".join(words)] = Shape(shape)
        outcomes[outcome_of(state)] += 1
    assert min(outcomes.values()) > 20


def test_a_resnet110_is_recognised_at_once() -> None:
    state = option_a(18, 18, 18)
    recognise(state)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        recognise(state)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1  # 0.032 on a machine of 2026
