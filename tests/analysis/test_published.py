"""Published architectures: built without a download, read block by block as they run."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn

from analysis.errors import InputError
from analysis.features import stream_features, visit_features
from analysis.fingerprints import Published, find_published, is_computed
from analysis.module_layers import block_names
from analysis.published import (
    AUXILIARY_KEYS,
    build_published,
    build_unfilled,
    make_network,
    open_published,
)

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
FULL = os.environ.get("AUGLOCAL_ALL_ARCHITECTURES") == "1"
# Name, side of images, number of layers by the papers, first and last of them.
REPRESENTATIVES = [
    # stem, 4 dense blocks, 3 transitions
    ("densenet121", 64, 8, "features.relu0", "features.denseblock4"),
    # stem, 3 + 3 + 9 + 3 blocks, 3 reductions
    ("convnext_tiny", 64, 22, "features.0", "features.7.2"),
    # patches, 12 transformer layers
    ("vit_b_16", 32, 13, "conv_proj", "encoder.layers.encoder_layer_11"),
    # patches, 2 + 2 + 6 + 2 blocks, 3 mergings
    ("swin_t", 64, 16, "features.0.0", "features.7.1"),
    # stem, 11 blocks, last convolution, hidden linear layer
    ("mobilenet_v3_small", 64, 14, "features.0", "classifier.1"),
    # stem, 4 + 8 + 4 units, last convolution
    ("shufflenet_v2_x0_5", 64, 18, "conv1.2", "conv5.2"),
    # stem, 8 fire modules, scores of classes by place
    ("squeezenet1_1", 64, 10, "features.1", "classifier.2"),
    # 3 convolutions, 9 inception modules
    ("googlenet", 64, 12, "conv1", "inception5b"),
    # 3 convolutions, 3 + 3 + 3 + 2 + 4 + 1 blocks, last convolution
    ("mnasnet0_5", 64, 20, "layers.2", "layers.16"),
    # stem, 2 + 4 + 4 + 6 + 9 + 15 blocks, last convolution
    ("efficientnet_v2_s", 64, 42, "features.0", "features.7"),
    # stem, 1 + 3 + 6 + 6 blocks
    ("regnet_y_400mf", 64, 17, "stem", "trunk_output.block4.block4-5"),
    # 2 convolutions, 2 + 2 + 5 + 2 blocks, hidden linear layer
    ("maxvit_t", 224, 14, "stem.0", "classifier.4"),
]
TIMM = [
    ("convnext_atto", 64, 16),  # stem, 2 + 2 + 6 + 2 blocks, 3 reductions
    ("vit_tiny_patch16_224", 64, 13),
    ("swin_tiny_patch4_window7_224", 224, 16),
    ("mobilevit_xxs", 64, None),  # unfolds images into more rows within a block
    ("regnetx_002", 64, 14),  # stem, 1 + 1 + 4 + 7 blocks
    ("densenet121", 64, 8),  # as torchvision's
    ("davit_tiny", 224, None),  # stages of pairs of blocks
    ("edgenext_xx_small", 64, None),  # blocks of two classes in a stage
    ("efficientnet_b0", 64, 18),  # stem, 16 blocks, last convolution
]


def draw_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a trained network's order of size."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            scale = max(1, tensor[0].numel()) ** -0.5
            weights[key] = torch.randn(tensor.shape, generator=generator) * scale
        elif tensor.dim() == 1:
            is_offset = key.endswith(("bias", "running_mean"))
            weights[key] = torch.rand(tensor.shape, generator=generator) + (not is_offset) * 0.5
        if not tensor.is_floating_point():  # tables of positions, which are computed
            weights[key] = tensor
    return weights


def weights_of(library: str, name: str, num_classes: int = 7, **options) -> dict[str, Tensor]:
    module = build_unfilled(
        lambda: make_network(library, name, num_classes=num_classes, **options), complete=False
    )
    return draw_weights(module)


def find(library: str, name: str, weights: dict[str, Tensor]) -> Published:
    found = find_published({key: tuple(tensor.shape) for key, tensor in weights.items()})
    return next(p for p in found if (p.library, p.name) == (library, name))


def resized(published: Published, side: int) -> Published:
    """The same network on smaller images, so that tests are quick."""
    size = (published.in_channels, side, side)
    return Published(published.library, published.name, published.num_classes, size[0], size)


def read(model, size) -> tuple[dict[str, Tensor], Tensor | None]:
    pixels = torch.randint(0, 256, (2, *size), dtype=torch.uint8, generator=torch.manual_seed(0))
    copies: dict[str, Tensor] = {}
    logits = visit_features(model, pixels, lambda name, x: copies.update({name: x.clone()}))
    return copies, logits


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Whatever is built, nothing is downloaded."""

    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ------------------------------------------------------------------------ layers


@pytest.mark.parametrize(("name", "side", "count", "first", "last"), REPRESENTATIVES)
def test_layers_are_the_blocks_of_the_paper_in_the_order_in_which_they_run(
    name, side, count, first, last
):
    options = {"image_size": side} if name.startswith("vit") else {}
    weights = weights_of("torchvision", name, **options)
    published = find("torchvision", name, weights)
    if not published.sized:
        published = resized(published, side)
    model = open_published(published, weights)
    layers, logits = read(model, published.input_size)
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert (len(layers), *model.layer_names[:: len(layers) - 1]) == (count, first, last)
    assert model.metadata.architecture == f"torchvision:{name}"
    assert all(x.dim() in (2, 4) and torch.isfinite(x).all() for x in layers.values())
    # Maps of features never grow again, and channels are on axis 1: the paper's widths.
    sides = [x.shape[2] for x in layers.values() if x.dim() == 4 and x.shape[3] > 1]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_architecture_of_torchvision_has_blocks_to_read(name):
    module = build_unfilled(
        lambda: make_network("torchvision", name, num_classes=7), complete=False
    )
    blocks = block_names(module)
    assert 8 <= len(blocks) <= 90
    assert all(blocks.count(block) == 1 for block in blocks)
    # No stage is read as a whole: no layer has more than half of the weights, but AlexNet's, VGG's
    # and SqueezeNet's single layers, and dense blocks.
    sizes = {block: _size(module.get_submodule(block)) for block in blocks}
    plain = ("alexnet", "vgg", "densenet", "squeezenet")
    assert name.startswith(plain) or max(sizes.values()) < sum(sizes.values()) / 2


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


@pytest.mark.skipif(not FULL, reason="takes an hour; AUGLOCAL_ALL_ARCHITECTURES=1 runs it")
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_architecture_of_torchvision_runs(name):
    weights = weights_of("torchvision", name)
    published = find("torchvision", name, weights)
    model = open_published(published, weights)
    layers, logits = read(model, published.input_size)
    assert tuple(layers) == model.layer_names
    assert logits.shape == (2, 7)
    assert all(x.dim() in (2, 4) and torch.isfinite(x).all() for x in layers.values())


@pytest.mark.parametrize(("name", "side", "count"), TIMM)
def test_architectures_of_timm_are_read_block_by_block(name, side, count):
    pytest.importorskip("timm")
    options = {"image_size": side} if name.startswith("vit") else {}
    weights = weights_of("timm", name, **options)
    published = find("timm", name, weights)
    if not published.sized:
        published = resized(published, side)
    model = open_published(published, weights)
    layers, logits = read(model, published.input_size)
    assert logits.shape == (2, 7)
    assert count is None or len(layers) == count
    assert all(x.dim() in (2, 4) and torch.isfinite(x).all() for x in layers.values())
    sides = [x.shape[2] for x in layers.values() if x.dim() == 4 and x.shape[3] > 1]
    assert sides == sorted(sides, reverse=True)


def test_tokens_are_pixels_of_one_column_and_channels_last_comes_first():
    weights = weights_of("torchvision", "vit_b_16", image_size=32)
    layers, _ = read(open_published(find("torchvision", "vit_b_16", weights), weights), (3, 32, 32))
    assert layers["conv_proj"].shape == (2, 768, 2, 2)
    assert layers["encoder.layers.encoder_layer_0"].shape == (2, 768, 5, 1)
    weights = weights_of("torchvision", "swin_t")
    swin = open_published(find("torchvision", "swin_t", weights), weights)
    layers, _ = read(swin, (3, 64, 96))
    assert layers["features.1.1"].shape == (2, 96, 16, 24)
    assert layers["features.2"].shape == (2, 192, 8, 12)


# ------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", ["swin_t", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf"])
def test_logits_are_those_of_the_library_own_network(name):
    weights = weights_of("torchvision", name)
    model = open_published(find("torchvision", name, weights), weights)
    assert model.takes_any_size
    reference = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    state = reference.state_dict()
    state.update(weights)
    reference.load_state_dict(state)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = reference(model.preprocess(pixels))
    torch.testing.assert_close(visit_features(model, pixels, lambda name, x: None), expected)


def test_tables_that_no_file_brings_are_computed():
    timm = pytest.importorskip("timm")
    name = "swin_tiny_patch4_window7_224"
    weights = weights_of("timm", name)
    module = build_published(find("timm", name, weights), weights)
    reference = dict(timm.create_model(name).named_buffers())
    assert any(key not in weights for key in reference)
    for key, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, reference[key])


def test_weights_share_the_memory_of_the_file_and_none_are_drawn():
    weights = weights_of("torchvision", "shufflenet_v2_x0_5")
    state = torch.get_rng_state()
    module = build_published(find("torchvision", "shufflenet_v2_x0_5", weights), weights)
    assert torch.equal(torch.get_rng_state(), state)
    for key, tensor in module.state_dict().items():
        if key in weights and not is_computed(key):
            assert tensor.data_ptr() == weights[key].data_ptr()
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_building_unfilled_ends_with_the_block():
    build_unfilled(lambda: nn.Linear(300, 300))
    layer = nn.Linear(300, 300)
    assert layer.weight.device.type == "cpu"
    assert 0 < layer.weight.abs().max() <= 300**-0.5


def test_half_precision_becomes_float32():
    weights = weights_of("torchvision", "squeezenet1_1")
    half = {key: tensor.bfloat16() for key, tensor in weights.items()}
    module = build_published(find("torchvision", "squeezenet1_1", half), half)
    torch.testing.assert_close(
        module.features[0].weight, weights["features.0.weight"].bfloat16().float()
    )


@pytest.mark.parametrize("name", AUXILIARY_KEYS)
def test_auxiliary_classifiers_are_built_where_the_file_has_them(name):
    for auxiliary in (False, True):
        weights = weights_of("torchvision", name, auxiliary=auxiliary)
        module = build_published(find("torchvision", name, weights), weights)
        assert any(key.startswith(AUXILIARY_KEYS[name]) for key in module.state_dict()) == auxiliary


def test_a_network_for_grey_images_and_without_classifier_is_read():
    weights = weights_of("torchvision", "mobilenet_v3_small", in_channels=1)
    body = {key: tensor for key, tensor in weights.items() if "classifier.3" not in key}
    published = find("torchvision", "mobilenet_v3_small", body)
    assert (published.num_classes, published.in_channels) == (0, 1)
    model = open_published(published, body, name="grey")
    assert (model.name, model.metadata.input_size) == ("grey", (1, 224, 224))
    assert len(model.metadata.mean) == 1
    pixels = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    features = dict(stream_features(model, pixels))
    assert features["features.0"].shape == (2, 16, 32, 32)


def test_older_names_of_keys_are_loaded():
    weights = weights_of("torchvision", "densenet121")
    old = {key.replace(".norm1.", ".norm.1."): tensor for key, tensor in weights.items()}
    module = build_published(find("torchvision", "densenet121", old), old)
    layer = module.features.denseblock1.denselayer1
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(layer.norm1.weight, weights[key])


def test_what_is_said_of_the_images_is_kept():
    weights = weights_of("torchvision", "squeezenet1_1", 2)
    published = find("torchvision", "squeezenet1_1", weights)
    model = open_published(
        published, weights, mean=(0.5,) * 3, std=(0.25,) * 3, classes=("cat", "dog")
    )
    assert (model.metadata.mean, model.metadata.std) == ((0.5,) * 3, (0.25,) * 3)
    assert model.metadata.classes == ("cat", "dog")
    usual = open_published(published, weights).metadata
    assert usual.mean == (0.485, 0.456, 0.406)


# ------------------------------------------------------------------------ what cannot be built


def test_tensors_of_another_network_are_refused():
    weights = weights_of("torchvision", "squeezenet1_1")
    published = find("torchvision", "squeezenet1_1", weights)
    weights["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    weights["more"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"2 keys do not fit, first features.0.weight, more; choo"):
        build_published(published, weights)


def test_without_timm_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    published = Published("timm", "convnext_atto", 7, 3, (3, 224, 224))
    with pytest.raises(InputError, match="convnext_atto, an .* of timm, .*`pip install timm`"):
        build_published(published, {})


def test_an_architecture_of_a_newer_library_is_refused():
    published = Published("torchvision", "resnet_9000", 7, 3, (3, 224, 224))
    with pytest.raises(InputError, match="resnet_9000 of torchvision, which version .*-upgrade"):
        build_published(published, {})
    pytest.importorskip("timm")
    published = Published("timm", "resnet_9000", 7, 3, (3, 224, 224))
    with pytest.raises(InputError, match="resnet_9000 of timm, which version .*-upgrade timm"):
        build_published(published, {})
