"""Networks of the user's own: read in order, and left as they were."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from analysis.cka import cka
from analysis.errors import InputError
from analysis.features import check_images, classify, sample_images, stream_features, visit_features
from analysis.gram import spatial_pool
from analysis.models import Model, open_model, untrained, weights_sha256
from analysis.module_layers import block_names
from analysis.module_reader import channel_axis, first_tensor
from analysis.modules import from_module
from analysis.probes import pooled

SIZE = (3, 8, 8)


class Residual(nn.Module):
    """A block that adds its input, and uses one ReLU twice, in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv2(self.relu(self.conv1(features)))
        return self.relu(inner + features)


class Network(nn.Module):
    """A stem, two residual blocks, a classifier; defined in another order than it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.blocks = nn.ModuleList([Residual(6), Residual(6)])
        self.norm = nn.BatchNorm2d(6)
        self.stem = nn.Conv2d(3, 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.stem(images))
        for block in self.blocks:
            features = block(features)
        return self.head(features.mean((2, 3)))


class Wrap(nn.Module):
    """A module whose forward is any function."""

    def __init__(self, compute, **parts: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: Tensor):
        return self.compute(self, images)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (7, *SIZE), dtype=torch.uint8, generator=torch.manual_seed(1))


def read(model: Model, images: Tensor) -> dict[str, Tensor]:
    """Copies of all layers' features, in the order in which they were handed over."""
    copies: dict[str, Tensor] = {}
    visit_features(model, images, lambda name, features: copies.update({name: features.clone()}))
    return copies


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# ------------------------------------------------------------------------ what is read


def test_features_are_what_the_layers_compute_in_the_order_in_which_they_run(network, images):
    model = from_module(network, ["head", "blocks.1", "stem", "norm"], input_size=SIZE)
    assert model.layer_names == ("stem", "norm", "blocks.1", "head")
    features = read(model, images)
    assert tuple(features) == model.layer_names
    network.eval()
    stem = network.stem(images / 255)
    torch.testing.assert_close(features["stem"], stem)
    torch.testing.assert_close(features["norm"], network.norm(stem))
    last = network.blocks[1](network.blocks[0](network.norm(stem)))
    torch.testing.assert_close(features["blocks.1"], last)
    torch.testing.assert_close(features["head"], network.head(last.mean((2, 3))))


def test_the_networks_answers_come_back_from_the_same_run(network, images):
    model = from_module(network, input_size=SIZE, classes="abcd")
    logits = visit_features(model, images, lambda name, features: None)
    torch.testing.assert_close(logits, network.eval()(images / 255))
    assert model.metadata.classes == ("a", "b", "c", "d")
    assert model.metadata.num_classes == 4


def test_images_are_normalised_by_mean_and_std(network, images):
    model = from_module(network, ["stem"], input_size=SIZE, mean=(0.5, 0.4, 0.3), std=(1, 2, 4))
    normalised = (images / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [1.0, 2.0, 4.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(read(model, images)["stem"], network.stem(normalised))


def test_a_layer_that_runs_twice_has_an_output_of_each_run(network, images):
    model = from_module(network, ["blocks.0.relu"], input_size=SIZE)
    assert model.layer_names == ("blocks.0.relu", "blocks.0.relu#2")
    first, second = read(model, images).values()
    network.eval()
    inputs = network.norm(network.stem(images / 255))
    torch.testing.assert_close(first, functional.relu(network.blocks[0].conv1(inputs)))
    torch.testing.assert_close(second, network.blocks[0](inputs))


def test_operations_in_place_do_not_change_what_was_read(images):
    # The stored live tensors of other tools hold what ReLU left: 0.383 for a CKA of 0.270.
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten())
    second = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten())
    pixels = torch.cat([images, images.flip(3)])
    features = [
        read(from_module(net, ["0"], input_size=SIZE), pixels)["0"] for net in (first, second)
    ]
    expected = [net[0](pixels / 255).detach() for net in (first, second)]
    spoilt = [functional.relu(part) for part in expected]
    value = cka(*features)
    assert value == pytest.approx(cka(*expected), abs=1e-5)
    assert abs(value - cka(*spoilt)) > 0.01


def test_streaming_a_module_gives_copies_that_stay(network, images):
    model = from_module(network, ["blocks.0.conv1", "blocks.0.relu"], input_size=SIZE)
    kept = dict(stream_features(model, images))
    visited = read(model, images)
    assert list(kept) == list(visited) == list(model.layer_names)
    for name, features in kept.items():
        torch.testing.assert_close(features, visited[name])
    # ReLU worked in place on what conv1 gave.
    assert (kept["blocks.0.conv1"] < 0).any()


def test_a_head_that_is_not_known_cannot_classify(network, images):
    model = from_module(network, input_size=SIZE)
    with pytest.raises(ValueError, match="take the logits that visit_features returns"):
        classify(model, torch.zeros(1, 6))


def test_features_are_given_up_before_later_layers_run(images):
    alive: list[weakref.ref[Tensor]] = []

    class Watched(nn.Conv2d):
        def forward(self, features: Tensor) -> Tensor:
            output = super().forward(features)
            alive.append(weakref.ref(output))
            return output

    net = nn.Sequential(*(Watched(3, 3, 1) for _ in range(6)))
    model = from_module(net, [str(i) for i in range(6)], input_size=SIZE)
    alive.clear()
    most = 0

    def count(name: str, features: Tensor) -> None:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))

    visit_features(model, images, count)
    assert len(alive) == 6
    assert most <= 2  # the layer and the input from which it was computed


# ------------------------------------------------------------------------ left as it was


def test_nothing_of_the_module_changes(network, images):
    network.train()
    network.norm.eval()  # frozen, as in fine-tuning
    network.stem.weight.requires_grad_(False)
    network.head(torch.ones(1, 6)).sum().backward()
    gradient = network.head.weight.grad.clone()
    modes = [part.training for part in network.modules()]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    needs = [parameter.requires_grad for parameter in network.parameters()]

    read(from_module(network, input_size=SIZE), images)

    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == needs
    assert torch.equal(network.head.weight.grad, gradient)
    assert network.stem.weight.grad is None
    assert hooks_of(network) == 0


def test_training_mode_matters_to_neither_features_nor_statistics(network, images):
    network.eval()
    expected = network.norm(network.stem(images / 255)).detach()
    network.train()
    features = read(from_module(network, ["norm"], input_size=SIZE), images)["norm"]
    torch.testing.assert_close(features, expected)


def test_no_graph_is_kept_and_the_callers_mode_is_left_alone(images):
    def compute(net: Wrap, pixels: Tensor) -> Tensor:
        with torch.enable_grad():
            return net.conv(pixels)

    model = from_module(Wrap(compute, conv=nn.Conv2d(3, 2, 3)), ["conv"], input_size=SIZE)
    seen = []
    logits = visit_features(
        model, images, lambda name, part: seen.append((part.requires_grad, part.grad_fn))
    )
    assert seen == [(False, None)]
    assert logits is None  # (N, 2, 6, 6) are no answers
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", ["forward", "visit"])
def test_hooks_and_modes_are_restored_when_a_run_fails(network, images, where):
    network.train()
    model = from_module(network, input_size=SIZE)

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    if where == "forward":
        network.blocks[1].forward = fail
    with pytest.raises(RuntimeError, match="out of luck"):
        visit_features(model, images, fail if where == "visit" else lambda name, part: None)
    assert hooks_of(network) == 0
    assert all(part.training for part in network.modules())
    assert torch.is_grad_enabled()


def test_the_users_own_hooks_run_and_stay(network, images):
    calls = []
    network.stem.register_forward_hook(lambda *_: calls.append("stem"))
    network.blocks[0].register_forward_hook(lambda layer, arguments, output: output * 0)
    features = read(from_module(network, ["stem", "blocks.0"], input_size=SIZE), images)
    assert len(calls) == 2  # the trial and the run
    assert not features["blocks.0"].any()
    assert hooks_of(network) == 2


def test_autocast_of_the_network_does_not_reach_the_visitor(images):
    def compute(net: Wrap, pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net.conv(pixels)

    model = from_module(Wrap(compute, conv=nn.Conv2d(3, 2, 3)), ["conv"], input_size=SIZE)
    kinds = []

    def multiply(name: str, features: Tensor) -> None:
        matrix = features.flatten(1)
        kinds.extend([features.dtype, (matrix @ matrix.T).dtype])

    visit_features(model, images, multiply)
    assert kinds == [torch.float32, torch.float32]


def test_a_module_in_double_precision_stays_in_it(network, images):
    features = read(from_module(network.double(), ["stem"], input_size=SIZE), images)["stem"]
    assert features.dtype == torch.float64


# ------------------------------------------------------------------------ outputs of any kind


@pytest.mark.parametrize(
    "output",
    [
        lambda x: (x, x * 2),
        lambda x: [x.long(), [x]],
        lambda x: {"index": x.argmax(1), "features": x},
    ],
    ids=["tuple", "list", "dict"],
)
def test_of_several_outputs_the_first_tensor_of_numbers_is_read(images, output):
    inner = Wrap(lambda net, pixels: output(net.conv(pixels)), conv=nn.Conv2d(3, 4, 3))
    outer = Wrap(lambda net, pixels: net.inner(pixels), inner=inner)
    model = from_module(outer, ["inner"], input_size=SIZE)
    torch.testing.assert_close(read(model, images)["inner"], inner.conv(images / 255))


def test_the_entry_logits_of_a_dictionary_is_the_answer(images):
    net = Wrap(
        lambda net, pixels: {"loss": pixels.sum(), "logits": net.head(pixels.flatten(1))},
        head=nn.Linear(192, 4),
    )
    model = from_module(net, ["head"], input_size=SIZE)
    logits = visit_features(model, images, lambda name, features: None)
    torch.testing.assert_close(logits, net.head(images.flatten(1) / 255))


def test_no_tensor_of_numbers_is_refused():
    assert first_tensor({"a": None, "b": ("text", torch.arange(3))}) is None
    inner = Wrap(lambda net, pixels: "a text", conv=nn.Conv2d(3, 4, 3))
    outer = Wrap(lambda net, pixels: (net.inner(pixels), pixels)[1], inner=inner)
    with pytest.raises(InputError, match=r"'inner' gives a str in which no tensor .* within it"):
        from_module(outer, ["inner"], input_size=SIZE)


def test_an_output_without_a_row_an_image_is_refused():
    # Tokens first, images second: rows would be taken for other images.
    net = Wrap(
        lambda net, pixels: net.linear(pixels.flatten(2).transpose(1, 2).transpose(0, 1)).mean(0),
        linear=nn.Linear(3, 6),
    )
    with pytest.raises(InputError, match=r"\(64, 5, 6\) for 5 images, and not one row an image"):
        from_module(net, ["linear"], input_size=SIZE)
    pooled_away = Wrap(lambda net, pixels: net.conv(pixels).mean(), conv=nn.Conv2d(3, 6, 3))
    outer = Wrap(lambda net, pixels: net.inner(pixels), inner=pooled_away)
    with pytest.raises(InputError, match="not one row an image"):
        from_module(outer, ["inner"], input_size=SIZE)


# ------------------------------------------------------------------------ order of axes


def test_channels_are_found_by_the_last_weights_whatever_the_order_of_axes():
    assert channel_axis((7, 6, 5, 5), (6, False)) == 1
    assert channel_axis((7, 5, 5, 6), (6, True)) == 3
    assert channel_axis((7, 6, 5, 5), (6, True)) == 1  # a linear layer whose result was permuted
    assert channel_axis((7, 50, 6), (6, True)) == 2
    assert channel_axis((7, 6, 50), (6, False)) == 1
    assert channel_axis((7, 6, 6), (6, True)) == 2  # as many tokens as channels: by kind
    assert channel_axis((7, 6, 6, 6), (6, False)) == 1
    assert channel_axis((7, 3, 4, 5), (6, False)) == 1  # shuffled pixels, say
    assert channel_axis((7, 3, 4, 5), None) == 1


def test_tokens_are_pooled_over_tokens(images):
    layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=0, batch_first=True)
    net = Wrap(
        lambda net, pixels: net.layer(net.embed(pixels.flatten(2).transpose(1, 2))).mean(1),
        embed=nn.Linear(3, 12),
        layer=layer,
    )
    features = read(from_module(net, ["layer"], input_size=SIZE), images)["layer"]
    assert features.shape == (7, 12, 64, 1)
    with torch.no_grad():
        tokens = net.eval().embed((images / 255).flatten(2).transpose(1, 2))
        expected = layer(tokens)
    torch.testing.assert_close(features[..., 0], expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(pooled(features), expected.mean(1), atol=1e-5)
    np.testing.assert_allclose(spatial_pool(features, 1)[..., 0, 0], expected.mean(1), atol=1e-5)


def test_images_with_channels_last_are_pooled_over_pixels(images):
    net = Wrap(
        lambda net, pixels: net.norm(net.linear(pixels.movedim(1, 3))),
        linear=nn.Linear(3, 12),
        norm=nn.LayerNorm(12),
    )
    model = from_module(net, ["linear", "norm"], input_size=SIZE)
    features = read(model, images)
    assert {part.shape for part in features.values()} == {(7, 12, 8, 8)}
    expected = net.linear((images / 255).movedim(1, 3)).detach()
    np.testing.assert_allclose(pooled(features["linear"]), expected.mean((1, 2)), atol=1e-6)


def test_the_axis_of_channels_can_be_given(images):
    net = Wrap(lambda net, pixels: net.stage(pixels), stage=nn.Sequential(nn.Conv2d(3, 6, 1)))
    net.stage.append(Wrap(lambda net, features: features.movedim(1, 3)[..., :5]))
    model = from_module(net, ["stage"], input_size=SIZE, channel_axes={"stage": 3})
    assert read(model, images)["stage"].shape == (7, 5, 8, 8)


# ------------------------------------------------------------------------ names


def test_the_end_of_a_name_is_enough_where_no_other_layer_has_it(network):
    assert from_module(network, ["1.conv2"], input_size=SIZE).layer_names == ("blocks.1.conv2",)
    wrapped = ["module.stem", "_orig_mod.norm"]
    assert from_module(network, wrapped, input_size=SIZE).layer_names == ("stem", "norm")


def test_a_name_that_fits_several_layers_is_refused_with_the_list(network):
    with pytest.raises(
        InputError, match=r"'relu' fits 2 layers \('blocks.0.relu', 'blocks.1.relu'\); give the fu"
    ):
        from_module(network, ["relu"], input_size=SIZE)


def test_of_ten_layers_of_one_name_all_are_listed_and_of_many_the_first():
    def make(count: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential() for _ in range(count)))

    ten, many = make(10), make(20)
    for net in (ten, many):
        for part in net:
            part.add_module("act", nn.ReLU())
    with pytest.raises(InputError, match=r"fits 10 layers \('0.act', .*'9.act'\)"):
        from_module(ten, ["act"], input_size=SIZE)
    with pytest.raises(InputError, match=r"fits 20 layers \('0.act', .*'11.act' and 8 more\)"):
        from_module(many, ["act"], input_size=SIZE)


def test_a_full_name_is_taken_though_others_end_like_it(images):
    net = nn.Sequential(Residual(3))
    net.add_module("relu", nn.ReLU())
    assert from_module(net, ["relu"], input_size=SIZE).layer_names == ("relu",)


def test_unknown_names_are_refused_with_near_ones(network):
    with pytest.raises(InputError, match=r"no layer 'block.1'; did you mean 'blocks.1'"):
        from_module(network, ["block.1"], input_size=SIZE)
    with pytest.raises(InputError, match="no layer 'zzz'; it has 'head', 'blocks'"):
        from_module(network, ["zzz"], input_size=SIZE)


def test_one_layer_under_two_names_is_refused():
    conv = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(conv, conv)
    assert from_module(net, ["1"], input_size=SIZE).layer_names == ("1", "1#2")
    with pytest.raises(InputError, match="'1' and '0' are the same layer"):
        from_module(net, ["0", "1"], input_size=SIZE)


def test_a_layer_that_does_not_run_is_refused(network):
    with pytest.raises(InputError, match="'blocks' did not run when the module did"):
        from_module(network, ["blocks", "stem"], input_size=SIZE)


def test_layers_that_run_for_some_images_only_are_refused(images):
    net = Wrap(
        lambda net, pixels: net.extra(net.conv(pixels)) if net.deep(pixels) else net.conv(pixels),
        conv=nn.Conv2d(3, 3, 1),
        extra=nn.Conv2d(3, 3, 1),
    )
    net.deep = lambda pixels: pixels.any()
    model = from_module(net, ["conv"], input_size=SIZE)
    assert list(read(model, images)) == ["conv"]
    net.deep = lambda pixels: True
    deep = from_module(net, ["conv", "extra"], input_size=SIZE)
    net.deep = lambda pixels: False
    with pytest.raises(InputError, match="did not run 'extra' for these images"):
        read(deep, images)
    twice = from_module(net, ["conv"], input_size=SIZE)
    net.compute = lambda net, pixels: net.conv(net.conv(pixels))
    with pytest.raises(InputError, match="ran 'conv#2' for these images, which it did not"):
        read(twice, images)


# ------------------------------------------------------------------------ the automatic choice


def test_blocks_are_chosen_and_not_the_answer_of_the_network(network):
    assert from_module(network, input_size=SIZE).layer_names == ("stem", "blocks.0", "blocks.1")


def test_in_a_plain_chain_a_layer_is_read_after_its_norm_and_activation():
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(5, 6), nn.ReLU()),
        nn.Linear(6, 2),
    )
    assert from_module(net, input_size=SIZE).layer_names == ("2", "5", "9")


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 9, "conv1", "layer4.1"),
        ("vgg11_bn", 10, "features.2", "classifier.4"),
        ("mobilenet_v2", 19, "features.0", "features.18"),
        ("regnet_x_400mf", 23, "stem", "trunk_output.block4.block4-11"),
        ("vit_b_32", 13, "conv_proj", "encoder.layers.encoder_layer_11"),
        ("swin_t", 16, "features.0.0", "features.7.1"),
    ],
)
def test_blocks_of_well_known_networks_are_those_of_their_papers(name, count, first, last):
    # Counts: a stem, the blocks of all stages, and patch mergings or a last convolution; of VGG, 8
    # convolutions and 2 hidden linear layers.
    if name == "vit_b_32":  # a narrow one, which is built at once
        net = torchvision.models.VisionTransformer(64, 32, 12, 2, 96, 96, num_classes=7)
    else:
        net = getattr(torchvision.models, name)(num_classes=7)
    chosen = block_names(net)  # the classifier is the last of them before the network runs
    assert (chosen[0], chosen[-2]) == (first, last)
    assert len(chosen) - 1 == count


class Stage(nn.Module):
    """A downsampling and blocks, which are of one class or not."""

    def __init__(self, *blocks: nn.Module, name: str = "layers") -> None:
        super().__init__()
        self.downsample = nn.Conv2d(6, 6, 1)
        self.name = name
        self.add_module(name, nn.ModuleList(blocks))

    def forward(self, features: Tensor) -> Tensor:
        features = self.downsample(features)
        for block in getattr(self, self.name):
            features = block(features)
        return features


def test_stages_that_hold_blocks_among_other_parts_are_opened(images):
    double = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1))
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        Stage(Residual(6), Residual(6)),
        Stage(Residual(6), Wrap(lambda net, x: net.conv(x), conv=double), name="blocks"),
        Stage(Residual(6), Wrap(lambda net, x: net.conv(x), conv=double)),
    )
    model = from_module(net, input_size=SIZE)
    assert model.layer_names == (
        *("0", "1.downsample", "1.layers.0", "1.layers.1"),
        *("2.downsample", "2.blocks.0", "2.blocks.1"),
        "3",
    )
    assert tuple(read(model, images)) == model.layer_names


class Unfolding(nn.Module):
    """A block that works on quarters of the images, each in a row of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(6), Residual(6)])

    def forward(self, features: Tensor) -> Tensor:
        quarters = torch.cat(features.chunk(4, dim=2))
        for block in self.blocks:
            quarters = block(quarters)
        return torch.cat(quarters.chunk(4), dim=2)


def test_of_blocks_without_a_row_for_each_image_the_part_they_lie_in_is_read(images):
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Unfolding(), Residual(6))
    model = from_module(net, input_size=SIZE)
    assert model.layer_names == ("0", "1", "2")
    assert read(model, images)["1"].shape == (7, 6, 8, 8)
    with pytest.raises(InputError, match=r"'1.blocks.0' gives \(20, 6, 2, 8\) for 5 images"):
        from_module(net, ["1.blocks.0"], input_size=SIZE)


def test_of_several_outputs_the_first_with_a_row_for_each_image_is_read(images):
    pair = Wrap(lambda net, x: (torch.cat([x, x]), net.conv(x)), conv=nn.Conv2d(3, 4, 1))
    net = Wrap(lambda net, x: net.pair(x)[1], pair=pair)
    model = from_module(net, ["pair"], input_size=SIZE)
    torch.testing.assert_close(read(model, images)["pair"], pair.conv(images / 255).detach())


def test_a_module_of_no_layers_is_refused():
    with pytest.raises(InputError, match="No layer of the module could be chosen"):
        from_module(nn.Flatten(), input_size=SIZE)


def test_wrappers_hide_nothing(network):
    parallel = nn.DataParallel(network)
    expected = from_module(network, input_size=SIZE)
    assert from_module(parallel, input_size=SIZE).layer_names == expected.layer_names
    compiled = torch.compile(network)
    assert from_module(compiled, input_size=SIZE).layer_names == expected.layer_names


# ------------------------------------------------------------------------ what it says of itself


def test_the_size_of_images_is_tried_out(network):
    model = from_module(network)
    assert model.metadata.input_size == (3, 32, 32)
    sample = sample_images("digits", "test", 5)
    check_images(model, sample)
    deep = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(40), nn.Flatten(), nn.Linear(2, 3))
    assert from_module(deep).metadata.input_size == (1, 64, 64)


def test_a_size_that_the_module_cannot_take_is_refused(network):
    with pytest.raises(InputError, match=r"cannot run on images of 1 x 8 x 8 \(.*\); give input_s"):
        from_module(network, input_size=(1, 8, 8))
    with pytest.raises(InputError, match="cannot run on images of 3 x 32 x 32"):
        from_module(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)))


def test_images_of_other_channels_do_not_fit_a_module_of_any_size(network):
    model = from_module(nn.Sequential(nn.Conv2d(1, 2, 3)))
    with pytest.raises(InputError, match="takes images of 1 x 32 x 32"):
        check_images(model, sample_images("digits", "test", 5))


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,) * 3, None), (None, (1.0,) * 3), ((0.5,), (1.0,)), ((0.5,) * 3, (1.0, 0.0, 1.0))],
)
def test_mean_and_std_of_other_channels_are_refused(network, mean, std):
    with pytest.raises(InputError, match="3 channels are 3 numbers each.*give both or neither"):
        from_module(network, input_size=SIZE, mean=mean, std=std)


def test_classes_that_are_not_the_outputs_are_refused(network):
    with pytest.raises(InputError, match="3 classes were named, but the module gives 4 values"):
        from_module(network, input_size=SIZE, classes="abc")
    with pytest.raises(InputError, match="does not give one row of values an image"):
        from_module(nn.Sequential(nn.Conv2d(3, 2, 3)), input_size=SIZE, classes="ab")


def test_what_nobody_knows_of_a_module_is_not_claimed(network):
    model = from_module(network, input_size=SIZE, name="mine")
    metadata = model.metadata
    assert (model.name, model.path, metadata.architecture) == ("mine", None, "Network")
    assert (metadata.rule, metadata.dataset, metadata.accuracy) == ("unknown", "unknown", None)
    assert model.dataset_name() is None
    with pytest.raises(InputError, match="mine is a module of your own"):
        untrained(model)


def test_the_checksum_is_of_the_weights_and_changed_weights_are_not_read(network, images):
    model = from_module(network, input_size=SIZE)
    assert model.sha256 == from_module(network.train(), input_size=SIZE).sha256
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(images / 255).sum().backward()
    optimizer.step()
    with pytest.raises(InputError, match=r"weights have changed .* call from_module again"):
        read(model, images)
    again = from_module(network, input_size=SIZE)
    assert again.sha256 != model.sha256
    assert read(again, images)


def test_a_device_that_is_not_there_is_refused_and_its_own_is_no_copy(network):
    with pytest.raises(InputError, match="no device 'tpu'"):
        from_module(network, input_size=SIZE, device="tpu")
    assert from_module(network, input_size=SIZE, device="cpu").backbone.module is network


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_another_device_a_copy_is_read(network, images):
    model = from_module(network, input_size=SIZE, device="cuda")
    assert network.stem.weight.device.type == "cpu"
    here = from_module(network, input_size=SIZE)
    assert model.sha256 == here.sha256
    expected, found = read(here, images), read(model, images)
    for name, features in expected.items():
        assert found[name].device.type == "cuda"
        torch.testing.assert_close(found[name].cpu(), features, atol=2e-3, rtol=2e-3)


def test_a_backbone_read_as_a_module_gives_what_the_checkpoint_gives(checkpoints):
    model = open_model(checkpoints[0])
    names = [f"layers.{name}" for name in model.layer_names]
    metadata = model.metadata
    module = from_module(
        model.backbone,
        names,
        mean=metadata.mean,
        std=metadata.std,
        classes=metadata.classes,
        input_size=metadata.input_size,
    )
    pixels = sample_images("digits", "test", 4).images
    assert from_module(model.backbone, input_size=metadata.input_size).layer_names == tuple(names)
    expected, found = read(model, pixels), read(module, pixels)
    for name, features in expected.items():
        torch.testing.assert_close(found[f"layers.{name}"], features)
    assert module.sha256 == weights_sha256(model.backbone)
