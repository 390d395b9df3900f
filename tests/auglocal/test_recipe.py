"""Recipes: every shipped one is a run that can be planned, and a wrong one is one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from auglocal.__main__ import main
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.plan import make_plan
from auglocal.recipe import Recipe, read_recipe, shipped_recipes
from auglocal.rules.registry import RULES, make_rule

RECIPES = shipped_recipes()
SHORT = [recipe for recipe in RECIPES if recipe.name.startswith(("cifar10-jpeg-", "digits-"))]
IMAGENET = [recipe for recipe in RECIPES if recipe.name.startswith("imagenet-")]
PUBLISHED = [recipe for recipe in RECIPES if recipe not in SHORT and recipe not in IMAGENET]
# Number of modules in the ImageNet code: a layer each.
MODULES = {"resnet34": 17, "resnet101": 34, "vgg13": 10}


def test_there_is_a_recipe_of_each_data_set_backbone_and_rule_of_the_paper() -> None:
    assert {recipe.name for recipe in PUBLISHED} == {
        f"{dataset}-{architecture}-{rule}"
        for dataset in ("cifar10", "svhn", "stl10")
        for architecture in ("resnet32", "resnet110")
        for rule in ("bp", "auglocal", "dgl", "predsim", "infopro")
    }


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda recipe: recipe.name)
def test_a_shipped_recipe_is_a_run_as_published(recipe: Recipe) -> None:
    config = TrainConfig(**recipe.values)
    assert recipe.name == f"{config.dataset}-{config.architecture}-{config.rule}"
    assert recipe.description
    assert "\n" not in recipe.description
    # Table "Training" of the paper's facts.
    published = {"cifar10": (1024, 0.8), "svhn": (1024, 0.8), "stl10": (128, 0.1)}
    assert (config.batch_size, config.learning_rate) == published[config.dataset]
    assert (config.epochs, config.schedule) == (400, "published")
    assert (config.momentum, config.weight_decay) == (0.9, 1e-4)


def test_there_is_an_imagenet_recipe_of_each_rule_but_for_the_widest_backbone() -> None:
    # At 2048 channels DGL's classifiers and InfoPro's decoders outgrow any accelerator.
    rules = {"resnet34": RULES, "vgg13": RULES, "resnet101": ("bp", "auglocal")}
    assert {recipe.name for recipe in IMAGENET} == {
        f"imagenet-{name}-{rule}" for name in rules for rule in rules[name] if rule != "linear"
    }


@pytest.mark.parametrize("recipe", IMAGENET, ids=lambda recipe: recipe.name)
def test_an_imagenet_recipe_is_a_run_as_published(recipe: Recipe) -> None:
    config = TrainConfig(**recipe.values)
    name = config.architecture.removesuffix("-imagenet")
    assert recipe.name == f"{config.dataset}-{name}-{config.rule}"
    # Table "Training" of the paper's facts; the whole run is a cosine by epoch.
    assert (config.batch_size, config.learning_rate) == (1024, 0.4)
    assert (config.epochs, config.schedule) == (200, "cosine-no-warmup")
    assert (config.momentum, config.weight_decay, config.precision) == (0.9, 1e-4, "bf16")
    plan = make_plan(config.architecture, config.rule, config.make_rule(), 1000)
    assert len(plan["blocks"]) == (1 if config.rule == "bp" else MODULES[name])
    assert len(plan["blocks"][-1]) == (MODULES[name] if config.rule == "bp" else 1)
    if config.rule == "auglocal":
        assert {row["depth"] for row in plan["auxiliaries"]} == {4}


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if recipe.name.startswith("cifar10")],
    ids=lambda recipe: recipe.name,
)
def test_a_shipped_recipe_can_be_planned(recipe: Recipe) -> None:
    config = TrainConfig(**recipe.values)
    plan = make_plan(config.architecture, config.rule, config.make_rule())
    layers = [index for block in plan["blocks"] for index in block]
    assert layers == list(range(len(plan["layers"])))


def test_the_short_runs_differ_in_nothing_but_the_rule() -> None:
    short = [recipe for recipe in SHORT if "-resnet32-" in recipe.name]
    configs = [TrainConfig(**recipe.values) for recipe in short]
    rules = ("rule", "auxiliary_depth", "pyramid")
    rest = {
        tuple((k, v) for k, v in asdict(config).items() if k not in rules) for config in configs
    }
    assert len(rest) == 1
    assert {config.rule for config in configs} >= {"bp", "auglocal", "dgl", "predsim", "infopro"}


def test_published_auglocal_has_the_published_number_of_parameters() -> None:
    for name, total in (("resnet32", 1_807_964), ("resnet110", 14_197_114)):
        config = TrainConfig(**read_recipe(f"cifar10-{name}-auglocal").values)
        plan = make_plan(config.architecture, config.rule, config.make_rule())
        assert plan["parameters"]["total"] == total


@pytest.mark.parametrize("architecture", ["resnet32", "resnet110"])
def test_infopros_weights_are_the_architectures_defaults(architecture: str) -> None:
    values = read_recipe(f"svhn-{architecture}-infopro").values
    plain = {name: value for name, value in values.items() if "_first" not in name}
    plain = {name: value for name, value in plain.items() if "_last" not in name}
    backbone_plan = make_plan(architecture, "infopro", make_rule("infopro", TrainConfig(**plain)))
    assert backbone_plan == make_plan(
        architecture, "infopro", make_rule("infopro", TrainConfig(**values))
    )


def test_every_field_comes_back_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "Mine"\nrule = "bp"\nepochs = 4\nlearning_rate = 1\naugment = false\n'
        "snapshot_epochs = [0, 4]\nimage_size = 16\n"
    )
    recipe = read_recipe(str(path))
    assert (recipe.name, recipe.description) == ("mine", "Mine")
    config = TrainConfig(**recipe.values)
    assert config == TrainConfig(
        rule="bp",
        epochs=4,
        learning_rate=1.0,
        augment=False,
        snapshot_epochs=(0, 4),
        image_size=16,
    )
    assert isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs = ", r"mine\.toml cannot be used: Invalid value .*; correct it"),
        (b"\xff\xfe", r"mine\.toml cannot be used: 'utf-8' codec"),
        (b"colour = 'red'", "there is no option 'colour'"),
        (b"[train]\nepochs = 3", "there is no option 'train'"),
        (b"epochs = 'ten'", "epochs must be a whole number, not 'ten'"),
        (b"epochs = 2.5", "epochs must be a whole number, not 2.5"),
        (b"epochs = true", "epochs must be a whole number, not True"),
        (b"width = 'wide'", "width must be a number, not 'wide'"),
        (b"augment = 1", "augment must be true or false, not 1"),
        (b"rule = 1", "rule must be a text in quotes, not 1"),
        (b"tail = 'two'", "tail must be a whole number, not 'two'"),
        (b"snapshot_epochs = 4", "snapshot_epochs must be a list of whole numbers, not 4"),
        (b"snapshot_epochs = [0, 'x']", "snapshot_epochs must be a list of whole numbers"),
        (b"description = 1", "description must be a text in quotes, not 1"),
    ],
)
def test_a_recipe_that_is_none_is_one_sentence(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recipe 'vit'; python -m auglocal recipes lists"):
        read_recipe("vit")
    with pytest.raises(InputError, match=r"Could not read the recipe .*/none\.toml: no such file"):
        read_recipe(str(tmp_path / "none.toml"))


def test_the_command_line_wins_over_the_recipe(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", f"imagefolder:{image_folder}", "--device", "cpu"]
    options = ["--recipe", "cifar10-resnet32-bp", "--batch-size", "12", "--dry-run", "--json"]
    assert main(["train", *data, *options, "--out", str(tmp_path / "run")]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["architecture"], config["rule"], config["epochs"]) == ("resnet32", "bp", 400)
    assert config["batch_size"] == 12
    assert config["dataset"].startswith("imagefolder:")


def test_recipes_lists_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [recipe.name for recipe in RECIPES]
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["svhn-resnet32-bp"]["epochs"] == 400
