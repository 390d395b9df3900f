"""Published architectures: found by keys and shapes alone, in every form that users give them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from functools import cache

import pytest
import torchvision

from analysis.fingerprints import (
    Pattern,
    Position,
    Variable,
    find_published,
    fingerprint,
    nearest_published,
    read_table,
    shape_text,
    table_versions,
)
from analysis.published import build_unfilled, make_network
from scripts.make_fingerprints import (
    OTHER_CLASSES,
    find_position,
    find_variables,
    list_architectures,
    pack,
    survey,
    write_table,
)

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
SAME_VERSION = torchvision.__version__.partition("+")[0] == table_versions()["torchvision"]


@cache
def shapes_of(library: str, name: str, num_classes: int = 10, **options) -> dict:
    """Keys and shapes as the library builds them; nothing is computed with them."""
    network = build_unfilled(
        lambda: make_network(library, name, num_classes=num_classes, **options), complete=False
    )
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def names_of(found) -> list[str]:
    return [f"{published.library}:{published.name}" for published in found]


# ------------------------------------------------------------------------ every architecture


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_architecture_of_torchvision_is_found_first_whatever_its_classes(name):
    found = find_published(shapes_of("torchvision", name))
    if not found and not SAME_VERSION:
        pytest.skip(f"the table is of torchvision {table_versions()['torchvision']}")
    assert (found[0].library, found[0].name, found[0].num_classes) == ("torchvision", name, 10)
    assert found[0].in_channels == 3
    assert "10 classes instead of 1,000 classes" in found[0].changes


def test_no_two_architectures_of_torchvision_share_a_fingerprint():
    # By hand: of the 80, no two have the same tensors (8, 16 or 32 groups give other shapes).
    firsts = [
        [form.name for form in network.forms if form.library == "torchvision"]
        for network in read_table().networks
    ]
    assert max(map(len, firsts)) == 1
    listed = {name for names in firsts for name in names}
    assert {*TORCHVISION} <= listed or not SAME_VERSION


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "googlenet", "swin_v2_t", "vgg11"])
def test_the_table_is_what_the_script_makes_of_the_library_here(name):
    if not SAME_VERSION:
        pytest.skip(f"the table is of torchvision {table_versions()['torchvision']}")
    table = read_table()
    for surveyed in survey("torchvision", name):
        place = table.by_fingerprint[
            surveyed.pattern, fingerprint(surveyed.shapes, surveyed.pattern)
        ]
        assert surveyed.form in table.networks[place].forms


def test_most_architectures_of_timm_are_in_the_table_and_each_once():
    names = [f.name for n in read_table().networks for f in n.forms if f.library == "timm"]
    assert len(names) == len(set(names)) > 1000
    timm = pytest.importorskip("timm")
    if timm.__version__ != table_versions()["timm"]:
        pytest.skip(f"the table is of timm {table_versions()['timm']}")
    assert {*names} == {name for library, name in list_architectures() if library == "timm"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {}),
        ("vit_tiny_patch16_224", {"image_size": 32}),
        ("convnext_atto", {"in_channels": 1}),
        ("swin_tiny_patch4_window7_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("mobilevit_xxs", {}),
        ("tresnet_m", {"in_channels": 1}),
    ],
)
def test_architectures_of_timm_are_found(name, options):
    pytest.importorskip("timm")
    found = {p.name: p for p in find_published(shapes_of("timm", name, **options))}
    assert (found[name].library, found[name].num_classes) == ("timm", 10)
    assert found[name].in_channels == options.get("in_channels", 3)
    assert found[name].sized == ("image_size" in options or "deit" in name)
    assert found[name].input_size[1:] == (options.get("image_size", found[name].input_size[1]),) * 2


# ------------------------------------------------------------------------ forms of a file


@pytest.mark.parametrize(("side", "tokens"), [(32, 5), (224, 197), (384, 577)])
def test_the_size_of_images_is_told_from_the_positions(side, tokens):
    shapes = dict(shapes_of("torchvision", "vit_b_16"))
    shapes["encoder.pos_embedding"] = (1, tokens, 768)
    found = find_published(shapes)[0]
    assert (found.input_size, found.sized) == ((3, side, side), True)
    assert any("pixels" in change for change in found.changes) == (side != 224)


def test_positions_of_no_square_image_are_no_such_network():
    shapes = dict(shapes_of("torchvision", "vit_b_16"))
    shapes["encoder.pos_embedding"] = (1, 200, 768)
    assert find_published(shapes) == ()


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_are_no_other_architecture(channels):
    found = find_published(shapes_of("torchvision", "densenet121", in_channels=channels))[0]
    assert (found.name, found.in_channels) == ("densenet121", channels)
    assert found.input_size == (channels, 224, 224)
    assert len(found.mean) == len(found.std) == channels
    one = find_published(shapes_of("torchvision", "densenet121", in_channels=1))[0]
    assert "images of 1 channel instead of 3" in one.changes


def test_a_file_without_classifier_is_found_and_says_so():
    shapes = shapes_of("torchvision", "swin_t")
    found = find_published({key: shape for key, shape in shapes.items() if "head." not in key})
    assert (found[0].name, found[0].num_classes) == ("swin_t", 0)
    assert found[0].changes == ("no classifier instead of 1,000 classes",)
    half = {key: shape for key, shape in shapes.items() if key != "head.bias"}
    assert find_published(half) == ()


def test_weight_and_bias_of_other_classes_are_no_such_network():
    shapes = {**shapes_of("torchvision", "swin_t"), "head.bias": (11,)}
    assert find_published(shapes) == ()


def test_counters_of_training_do_not_matter():
    shapes = shapes_of("torchvision", "mnasnet0_5")
    old = {key: shape for key, shape in shapes.items() if "num_batches" not in key}
    assert len(old) < len(shapes)
    assert find_published(old) == find_published(shapes) != ()


def test_auxiliary_classifiers_may_be_there_or_not():
    for auxiliary in (False, True):
        shapes = shapes_of("torchvision", "googlenet", auxiliary=auxiliary)
        assert any(key.startswith("aux1.") for key in shapes) == auxiliary
        assert names_of(find_published(shapes))[0] == "torchvision:googlenet"
    assert find_published(shapes)[0].mean == (0.5, 0.5, 0.5)


def test_names_of_keys_in_older_files_are_understood():
    dense = shapes_of("torchvision", "densenet121")
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): shape
        for key, shape in dense.items()
    }
    assert {*old} != {*dense}
    assert find_published(old) == find_published(dense) != ()
    vit = shapes_of("torchvision", "vit_b_32")
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): shape
        for key, shape in vit.items()
    }
    assert {*old} != {*vit}
    assert find_published(old) == find_published(vit) != ()


def test_of_equal_shapes_all_are_listed_torchvision_first_and_plain_names_before_others():
    names = names_of(find_published(shapes_of("torchvision", "resnet50")))
    assert names[:2] == ["torchvision:resnet50", "timm:resnet50"]
    assert "timm:resnetblur50" in names
    assert [name for name in names if name.startswith("timm")] == sorted(names[1:], key=len)


def test_of_equal_shapes_the_one_published_for_this_size_is_likeliest():
    sizes = {}
    for network in read_table().networks:
        sizes |= {form.name: (network, form.input_size) for form in network.forms}
    network, _ = sizes["vit_base_patch16_384"]
    assert "vit_base_patch16_224" in {form.name for form in network.forms}
    pytest.importorskip("timm")
    for side in (224, 384):
        name = f"vit_base_patch16_{side}"
        assert find_published(shapes_of("timm", name, 1000, image_size=side))[0].name == name


# ------------------------------------------------------------------------ no such network


def test_nothing_is_found_where_one_tensor_differs_and_the_nearest_is_named():
    shapes = dict(shapes_of("torchvision", "convnext_tiny"))
    shapes["features.0.0.weight"] = (96, 3, 2, 2)
    shapes["extra"] = (5,)
    shapes.pop("features.7.2.layer_scale")
    assert find_published(shapes) == ()
    nearest = nearest_published(shapes)
    assert nearest.name == "torchvision:convnext_tiny"
    # Of 182 keys and one more, 180 fit.
    assert nearest.share == pytest.approx(180 / 183)
    assert nearest.misfits == (
        "features.0.0.weight is 96x3x2x2, there 96x?x4x4",
        "extra is not in it",
        "features.7.2.layer_scale is missing",
    )


def test_a_network_of_other_widths_is_nearest_to_the_one_of_its_keys():
    shapes = {
        key: tuple(size // 2 if size > 10 else size for size in shape)
        for key, shape in shapes_of("torchvision", "shufflenet_v2_x1_0").items()
    }
    nearest = nearest_published(shapes)
    assert "shufflenet" in nearest.name
    assert 0 < nearest.share < 1
    assert len(nearest.misfits) == 5


def test_tensors_of_anything_have_a_nearest_network_that_does_not_fit():
    assert find_published({}) == ()
    assert nearest_published({}).share == 0
    odd = {"a": (), "fc.weight": (3, 4), "fc.bias": (3,)}
    assert find_published(odd) == ()
    nearest = nearest_published(odd)
    assert nearest.share < 0.1
    assert "a is not in it" in nearest.misfits


@pytest.mark.parametrize("name", ["vit_b_32", "efficientnet_v2_l"])
def test_asking_takes_no_time(name):
    shapes = shapes_of("torchvision", name)
    read_table()
    start = time.process_time()
    find_published(shapes)
    nearest_published(shapes)
    assert time.process_time() - start < 0.3


def test_neither_library_is_needed_to_ask():
    code = (
        "import sys; from analysis.fingerprints import nearest_published; "
        "nearest_published({'fc.weight': (3, 4)}); "
        "assert not {'torch', 'torchvision', 'timm', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())  # noqa: PTH109


# ------------------------------------------------------------------------ how the table is made


def test_the_fingerprint_forgets_what_users_change_and_nothing_else():
    pattern = Pattern(
        (Variable("fc", 0, 1),), (Variable("stem", 1, 1),), (Position("pos", (1,), 4, 1),)
    )

    def of(classes=10, channels=3, tokens=5, width=8):
        shapes = {"fc": (classes, width), "stem": (8, channels, 3, 3), "pos": (1, tokens, 8)}
        return fingerprint(shapes, pattern)

    assert of() == of(classes=7) == of(channels=1) == of(tokens=17)
    assert of() != of(width=9)
    # A second way: one hash of each line, added up.
    lines = ["fc ?x8", "stem 8x?x3x3", "pos 1x?x8"]
    digests = [hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines]
    assert of() == sum(int.from_bytes(digest, "little") for digest in digests) % 2**64
    assert shape_text(()) == ""


def test_variables_are_found_with_their_multiples_and_only_where_nothing_else_differs():
    plain = {"fc.weight": (1000, 8), "a": (8,), "stem": (4, 48, 1, 1)}
    other = {**plain, "fc.weight": (OTHER_CLASSES, 8)}
    assert find_variables(plain, other, 1000, OTHER_CLASSES) == (Variable("fc.weight", 0, 1),)
    other = {**plain, "stem": (4, 80, 1, 1)}
    assert find_variables(plain, other, 3, 5) == (Variable("stem", 1, 16),)
    assert find_variables(plain, {**other, "a": (9,)}, 3, 5) == ()
    assert find_variables(plain, None, 3, 5) == ()


def test_positions_are_found_from_two_sizes():
    # 224 pixels in patches of 16: 14 x 14 and a class token; of 448 pixels 28 x 28.
    assert find_position("p", (1, 197, 8), (1, 785, 8), 224) == Position("p", (1,), 16, 1)
    assert find_position("p", (1, 8, 14, 14), (1, 8, 28, 28), 224) == Position("p", (2, 3), 16, 0)
    assert find_position("p", (169, 8), (729, 8), 224) is None  # relative positions
    assert find_position("p", (1, 197, 8), (1, 785, 9), 224) is None


def test_the_same_networks_give_the_same_bytes(tmp_path):
    surveyed = [*survey("torchvision", "alexnet"), *survey("torchvision", "squeezenet1_0")]
    for name, items in (("a", surveyed), ("b", surveyed[::-1])):
        write_table(tmp_path / name, pack(items, {"torchvision": "0"}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
