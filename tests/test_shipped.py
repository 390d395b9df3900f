"""The shipped checkpoints and studies are what their README says, and come out again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.dynamics import trajectories
from analysis.models import open_model, untrained
from analysis.run import run_study
from analysis.study import load_study
from auglocal.batches import ResidentSplit
from auglocal.checkpoint import load_checkpoint
from auglocal.config import TrainConfig
from auglocal.data import load_dataset
from auglocal.evaluation import evaluate
from auglocal.files import file_sha256
from auglocal.recipe import read_recipe
from scripts.make_tables import DOCUMENTS, ROOT, renewed

FOLDER = ROOT / "checkpoints"
IMAGES = ROOT / "data" / "cifar10-jpeg"
NEEDS_IMAGES = f"needs the images in {IMAGES.relative_to(ROOT)}"
README = (FOLDER / "README.md").read_text()
CHECKPOINTS = sorted(FOLDER.glob("*.safetensors"))
STUDIES = sorted(FOLDER.glob("*.study.json"))


def test_a_pair_and_a_study_of_each_data_set_are_there() -> None:
    assert [path.stem for path in CHECKPOINTS] == [
        "cifar10-jpeg-auglocal",
        "cifar10-jpeg-bp",
        "cifar10-jpeg-resnet32-auglocal-d1",
        "cifar10-jpeg-resnet32-auglocal-d3",
        "cifar10-jpeg-resnet32-auglocal-seed1",
        "cifar10-jpeg-resnet32-auglocal",
        "cifar10-jpeg-resnet32-bp-seed1",
        "cifar10-jpeg-resnet32-bp",
        "cifar10-jpeg-resnet32-dgl",
        "cifar10-jpeg-resnet32-infopro",
        "cifar10-jpeg-resnet32-linear",
        "cifar10-jpeg-resnet32-predsim",
        "digits-auglocal",
        "digits-bp-seed1",
        "digits-bp",
    ]
    assert [path.name for path in STUDIES] == [
        "cifar10-jpeg-resnet32-dynamics.study.json",
        "cifar10-jpeg-resnet32.study.json",
        "cifar10-jpeg.study.json",
        "digits.study.json",
    ]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_readme_gives_each_checkpoints_checksum_and_accuracy(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    (row,) = re.findall(rf"^\| `{path.stem}` .*$", README, flags=re.MULTILINE)
    assert checkpoint.metadata.accuracy is not None
    assert f"{checkpoint.metadata.accuracy['value']:.4f}" in row
    assert checkpoint.metadata.dataset in row
    assert f"`{path.name}` {file_sha256(path)}" in README


@pytest.mark.parametrize(
    "path", [path for path in STUDIES if "dynamics" not in path.name], ids=lambda path: path.name
)
def test_studies_are_of_the_shipped_checkpoints(path: Path) -> None:
    shipped = {file_sha256(checkpoint) for checkpoint in CHECKPOINTS}
    entries = load_study(path).question.checkpoints
    assert {entry.sha256 for entry in entries if entry.role != "floor"} <= shipped
    assert [entry.rule for entry in entries if entry.role == "floor"] == ["untrained"]


def test_the_study_of_snapshots_ends_where_the_shipped_networks_are() -> None:
    study = load_study(FOLDER / "cifar10-jpeg-resnet32-dynamics.study.json")
    runs = {run.title: run for run in trajectories(study)}
    assert len(runs) == 2
    for run in runs.values():
        assert run.epochs == (0, 1, 2, 4, 8, 16)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_what_was_measured_ends_with_what_the_checkpoint_says(path: Path) -> None:
    last = json.loads(path.with_suffix(".metrics.jsonl").read_text().splitlines()[-1])
    metadata = load_checkpoint(path).metadata
    assert metadata.accuracy is not None
    assert last["epoch"] == metadata.epoch
    assert last["test_accuracy"] == pytest.approx(metadata.accuracy["value"])


@pytest.mark.parametrize(
    ("backbone", "rule", "differ"),
    [
        ("digits", "auglocal", {"rule"}),
        ("cifar10-jpeg", "auglocal", {"rule"}),
        ("cifar10-jpeg-resnet32", "auglocal", {"rule"}),
        ("cifar10-jpeg-resnet32", "auglocal-d1", {"rule", "auxiliary_depth"}),
        ("cifar10-jpeg-resnet32", "auglocal-d3", {"rule", "auxiliary_depth"}),
        ("cifar10-jpeg-resnet32", "dgl", {"rule"}),
        ("cifar10-jpeg-resnet32", "infopro", {"rule"}),
        ("cifar10-jpeg-resnet32", "linear", {"rule"}),
        ("cifar10-jpeg-resnet32", "predsim", {"rule"}),
    ],
)
def test_the_networks_of_a_backbone_differ_from_bp_in_their_rule_only(
    backbone: str, rule: str, differ: set[str]
) -> None:
    first, second = (
        load_checkpoint(FOLDER / f"{backbone}-{name}.safetensors").metadata.config
        for name in ("bp", rule)
    )
    assert {name for name in first if first[name] != second[name]} == differ
    assert first["epochs"] >= 12


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_the_command_in_readme_is_the_run_that_made_it(path: Path) -> None:
    config = load_checkpoint(path).metadata.config
    name, seed = re.findall(
        rf"train --recipe (\S+) --seed (\d) --out runs/{path.stem}$", README, flags=re.MULTILINE
    )[0]
    recipe = asdict(TrainConfig(**read_recipe(name).values, seed=int(seed)))
    # A checkpoint keeps no paths, and those from before an option lack it.
    recipe["dataset"] = recipe["dataset"].replace("data/", "")
    recipe["snapshot_epochs"] = list(recipe["snapshot_epochs"])
    assert {option: recipe[option] for option in config} == config


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tables_say_what_the_files_say(path: Path) -> None:
    assert renewed(path.read_text()) == path.read_text(), "run python scripts/make_tables.py"


@pytest.mark.parametrize(
    "network", ["digits-bp", "cifar10-jpeg-resnet32-bp", "cifar10-jpeg-resnet32-auglocal"]
)
def test_two_seeds_of_a_rule_differ_in_nothing_else(network: str) -> None:
    first, second = (
        load_checkpoint(FOLDER / f"{network}{ending}.safetensors").metadata.config
        for ending in ("", "-seed1")
    )
    assert {name for name in first if first[name] != second[name]} == {"seed"}


@cache
def images_of(dataset: str) -> ResidentSplit:
    """All test images of a data set."""
    test = load_dataset(dataset).splits["test"]
    return ResidentSplit(test.images, test.labels)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_the_networks_have_the_accuracy_that_they_claim(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    metadata = checkpoint.metadata
    of_digits = path.stem.startswith("digits")
    if not of_digits and not IMAGES.is_dir():
        pytest.skip(NEEDS_IMAGES)
    accuracy = evaluate(
        checkpoint.build_backbone(),
        images_of("digits" if of_digits else f"imagefolder:{IMAGES}"),
        metadata.mean,
        metadata.std,
    )
    # Another processor may round one image in a thousand to the other side.
    assert accuracy.value == pytest.approx(metadata.accuracy["value"], abs=0.0011)


@pytest.mark.skipif(not IMAGES.is_dir(), reason=NEEDS_IMAGES)
@pytest.mark.parametrize(
    "path", [path for path in STUDIES if path.name.startswith("cifar")], ids=lambda path: path.name
)
def test_a_study_of_images_from_elsewhere_comes_out_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["redo", str(path.relative_to(ROOT))]) == 0


def test_the_digits_study_comes_out_again() -> None:
    shipped = load_study(FOLDER / "digits.study.json")
    question = shipped.question
    models = {
        entry.name: open_model(FOLDER / f"{entry.name}.safetensors", auxiliaries=True)
        for entry in question.checkpoints
        if entry.role != "floor"
    }
    again = run_study(
        [models[name] for name in shipped.models],
        ceiling=models["digits-bp-seed1"],
        floor=untrained(models["digits-bp"], 0),
        dataset=question.dataset,
        samples=question.samples,
        seed=question.seed,
        batch_size=question.batch_size,
        train_samples=question.train_samples,
        measures=question.measures,
    )
    assert again.question.images_sha256 == question.images_sha256
    assert shipped.cka is not None
    assert again.cka is not None
    np.testing.assert_allclose(again.cka.values, shipped.cka.values, atol=1e-3)
    for probe, same in zip(shipped.probes, again.probes, strict=True):
        np.testing.assert_allclose(same.accuracy, probe.accuracy, atol=0.005)
    for before, after in zip(shipped.geometry, again.geometry, strict=True):
        for measure, values in before.values.items():
            inside = np.isnan(values) | (
                (after.values[measure] >= before.low[measure] - 1e-3)
                & (after.values[measure] <= before.high[measure] + 1e-3)
            )
            assert inside.all() or np.allclose(after.values[measure], values, rtol=0.01)
