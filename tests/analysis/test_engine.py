"""A study's other measures: references, whole sets, kept Grams, several processes, partial runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from analysis.__main__ import main
from analysis.cka import cka
from analysis.dynamics import dynamics_maps, trajectories
from analysis.errors import Cancelled, InputError
from analysis.features import sample_images, stream_features, visit_features
from analysis.geometry import measure_geometry
from analysis.models import open_model, untrained
from analysis.modules import from_module
from analysis.reading import Progress
from analysis.request import StudyRequest
from analysis.run import run_study
from analysis.similarity import MEASURES, similarity_map
from analysis.study import load_study, save_study, study_record

SHIPPED = Path(__file__).parents[2] / "checkpoints"
SMALL = {"dataset": "digits", "samples": 48, "batch_size": 6, "train_samples": 60, "seed": 5}


@pytest.fixture(scope="module")
def models(checkpoints):
    return [open_model(path, auxiliaries=True) for path in checkpoints]


@pytest.fixture(scope="module")
def pooled_features(models):
    images = sample_images("digits", "test", 48, seed=5).images
    return [
        {
            name: features.double().mean(dim=(2, 3)).numpy()
            for name, features in stream_features(model, images)
        }
        for model in models
    ]


@pytest.fixture(scope="module")
def full(models, make_checkpoint, tmp_path_factory):
    """Everything at once, with references."""
    path = tmp_path_factory.mktemp("ceiling") / "third.safetensors"
    third = open_model(make_checkpoint(path, weights_seed=3))
    measures = ("cka", "probe", "geometry", "procrustes", "predictivity")
    references = {"ceiling": third, "floor": untrained(models[0], 3)}
    return run_study(models, **SMALL, **references, measures=measures)


# ------------------------------------------------------------------------ measures


def test_references_are_models_with_a_role_that_are_compared_too(full):
    assert full.models == ("first", "second")
    assert full.reference("ceiling") == "third"
    floor = full.reference("floor")
    assert floor == "resnet20 untrained, seed 3"
    assert full.cka.pair("first", floor).values.shape == (10, 10)
    assert full.question.checkpoints[-1].rule == "untrained"
    assert "--ceiling third.safetensors --floor 3" in full.provenance.command


@pytest.mark.parametrize("name", ["procrustes", "predictivity"])
def test_other_measures_are_those_of_the_pooled_features(full, pooled_features, name):
    result = next(pair.result for pair in full.similarity if pair.result.measure == name)
    expected = similarity_map(*pooled_features, MEASURES[name](), seed=5)
    np.testing.assert_allclose(result.values, expected.values, atol=2e-3)
    pairs = [(p.model_a, p.model_b) for p in full.similarity if p.result.measure == name]
    assert pairs == [
        ("first", "second"),
        ("first", "third"),
        ("first", "resnet20 untrained, seed 3"),
    ]


def test_geometry_is_that_of_the_pooled_features(full, pooled_features):
    labels = sample_images("digits", "test", 48, seed=5).labels
    expected = measure_geometry(pooled_features[0], labels, model="first", seed=5)
    for measure in ("participation_ratio", "feature_norm", "nc1"):
        if measure in expected.values:
            np.testing.assert_allclose(
                full.geometry[0].values[measure], expected.values[measure], rtol=1e-3
            )
    assert [result.model for result in full.geometry] == [c.name for c in full.question.checkpoints]


def test_probes_tell_confusion_recall_and_what_they_said_of_each_image(full):
    labels = np.array(full.question.labels)
    probe = full.probe("first")
    np.testing.assert_allclose((probe.predictions == labels).mean(axis=1), probe.accuracy)
    assert (probe.confusion.sum(axis=(1, 2)) == 48).all()
    np.testing.assert_allclose(np.einsum("lkk->l", probe.confusion) / 48, probe.accuracy)
    assert ((probe.confidence > 0) & (probe.confidence <= 1)).all()
    assert probe.num_neighbours == 20
    assert np.isfinite(probe.neighbours_accuracy).all()


def test_auxiliary_networks_answer_beside_the_probes():
    model = open_model(SHIPPED / "digits-auglocal.safetensors", auxiliaries=True)
    study = run_study([model], **{**SMALL, "train_samples": 300})
    probe = study.probes[0]
    assert probe.auxiliary_layers == model.auxiliary_layers
    labels = np.array(study.question.labels)
    expected = (probe.auxiliary_predictions == labels).mean(axis=1)
    np.testing.assert_allclose(probe.auxiliary_accuracy, expected)
    # What the training run itself measured, on all test images and not on these 48.
    trained = model.metadata.local_accuracies or {}
    for layer, accuracy in zip(probe.auxiliary_layers, probe.auxiliary_accuracy, strict=True):
        assert accuracy == pytest.approx(trained.get(layer, accuracy), abs=0.15)
    assert probe.auxiliary_accuracy[-1] > 0.8


def test_probes_of_every_two_models_are_tested_in_pairs(full):
    pair = full.paired[0]
    assert (pair.model_a, pair.model_b) == ("first", "second")
    difference = full.probe("first").accuracy - full.probe("second").accuracy
    np.testing.assert_allclose(pair.result.difference, difference)


def test_a_full_study_comes_back_from_its_file_bit_for_bit(full, tmp_path):
    save_study(full, tmp_path / "full.study.json")
    again = load_study(tmp_path / "full.study.json")
    assert study_record(again) == study_record(full)
    np.testing.assert_array_equal(
        again.similarity[0].result.values, full.similarity[0].result.values
    )


# ------------------------------------------------------------------------ CKA's options


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_whole_set_estimators_are_those_of_the_features(models, estimator, kernel):
    options = {"estimator": estimator, "kernel": kernel}
    study = run_study(models, **SMALL, measures=["cka"], **options)
    images = sample_images("digits", "test", 48, seed=5).images
    first, second = (
        {name: f.double().numpy().copy() for name, f in stream_features(model, images)}
        for model in models
    )
    pair = study.cka.pair("first", "second")
    for row, column in ((0, 0), (4, 7), (9, 9)):
        expected = cka(first[pair.rows[row]], second[pair.columns[column]], **options)
        assert pair.values[row, column] == pytest.approx(expected, abs=1e-4)
    assert study.cka.estimator == estimator


def test_whole_sets_say_beforehand_what_they_take(models):
    with pytest.raises(InputError, match=r"takes about .* MiB, and 1 are allowed; give fewer"):
        run_study(models, **SMALL, measures=["cka"], estimator="biased", memory=2**20)


def test_pooled_cka_is_that_of_pooled_features(models, pooled_features):
    study = run_study(models, **SMALL, measures=["cka"], pooling=1)
    expected = cka(pooled_features[0]["stem"], pooled_features[1]["stem"], batch_size=6)
    assert study.cka.pair("first", "second").values[0, 0] == pytest.approx(expected, abs=1e-5)


def test_null_levels_are_below_trained_similarity_and_deterministic(models):
    one, two = (run_study(models, **SMALL, measures=["cka"]).cka.null_levels for _ in range(2))
    np.testing.assert_array_equal(one, two)
    pair = run_study(models, **SMALL, measures=["cka"], num_shuffles=0).cka.pair("first", "second")
    assert pair.null_levels is None
    assert (one[:10, 10:] < np.diagonal(pair.values).max()).all()


def test_kept_grams_give_the_same_without_a_forward_pass(models, tmp_path, monkeypatch):
    options = {**SMALL, "measures": ["cka"], "grams": tmp_path}
    fresh = run_study(models, **options)

    def refuse(*arguments):
        raise AssertionError("a network was run")

    monkeypatch.setattr("analysis.reading.visit_features", refuse)
    kept = run_study(models, **options)
    np.testing.assert_allclose(kept.cka.values, fresh.cka.values, atol=1e-5)
    with pytest.raises(AssertionError, match="a network was run"):  # other images: nothing kept
        run_study(models, **{**options, "seed": 6})


def test_a_ceiling_is_another_network(models):
    with pytest.raises(InputError, match="ceiling second is one of the networks that are compared"):
        run_study(models, **SMALL, measures=["cka"], ceiling=models[1])


# ------------------------------------------------------------------------ parts of a run


def test_a_stopped_run_keeps_the_batches_that_it_has(models):
    seen: list[Progress] = []

    def stop() -> bool:
        return len(seen) > 2 * 3  # three batches of two models, and the beginning

    study = run_study(models, **SMALL, progress=seen.append, cancelled=stop, keep_partial=True)
    assert study.provenance.stopped == "stopped after 3 of 8 batches"
    assert study.cka.batch_sizes == (6, 6, 6)
    assert study.probes == ()
    with pytest.raises(Cancelled):
        run_study(models, **SMALL, cancelled=lambda: True, keep_partial=True)


def test_a_study_stopped_by_ctrl_c_says_so_and_exits_with_130(
    checkpoints, tmp_path, capsys, monkeypatch
):
    out, calls = tmp_path / "part.study.json", []

    def read(*arguments):
        calls.append(arguments)
        if len(calls) == 6:  # in the third batch of two networks
            signal.raise_signal(signal.SIGINT)
        return visit_features(*arguments)

    monkeypatch.setattr("analysis.reading.visit_features", read)
    options = ["--dataset", "digits", "--samples", "48", "--batch-size", "6", "--device", "cpu"]
    assert main(["study", *map(str, checkpoints), *options, "--out", str(out)]) == 130
    assert "stopped after 3 of 8 batches; " in capsys.readouterr().err
    assert load_study(out).provenance.stopped == "stopped after 3 of 8 batches"


def test_two_processes_give_the_numbers_of_one(checkpoints, tmp_path):
    arguments = ["study", *map(str, checkpoints), "--dataset", "digits", "--samples", "48"]
    arguments += ["--batch-size", "6", "--train-samples", "60", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "one.study.json")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(20000 + os.getpid() % 20000), "-m", "analysis"]
    outcome = subprocess.run(
        [*torchrun, *arguments, "--out", str(tmp_path / "two.study.json"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["format"] == "auglocal-study"  # one process prints
    one, two = (load_study(tmp_path / f"{name}.study.json") for name in ("one", "two"))
    np.testing.assert_array_equal(one.cka.values, two.cka.values)
    np.testing.assert_array_equal(one.cka.null_levels, two.cka.null_levels)
    for name in ("first", "second"):
        np.testing.assert_array_equal(one.probe(name).accuracy, two.probe(name).accuracy)


# ------------------------------------------------------------------------ dynamics


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, make_checkpoint) -> Path:
    """A run with snapshots of three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "bp"
    (folder / "snapshots").mkdir(parents=True)
    for epoch in (0, 2, 10):
        path = folder / "snapshots" / f"epoch-{epoch}.safetensors"
        make_checkpoint(path, rule="bp", seed=1, epoch=epoch)
    return folder


def test_dynamics_are_epoch_by_layer_maps_of_the_snapshots(run_folder, tmp_path, capsys):
    out = tmp_path / "bp.study.json"
    options = ["--dataset", "digits", "--samples", "48", "--train-samples", "60", "--device", "cpu"]
    assert main(["dynamics", str(run_folder), *options, "--out", str(out)]) == 0
    assert "CKA with its own end: bp, seed 1\nepoch  stem" in capsys.readouterr().out
    study = load_study(out)
    (trajectory,) = trajectories(study)
    assert trajectory.epochs == (0, 2, 10)
    by_measure = {part.measure: part for part in dynamics_maps(study)}
    np.testing.assert_allclose(by_measure["cka"].values[-1], 1, atol=1e-6)
    first, last = trajectory.names[0], trajectory.names[-1]
    expected = np.diagonal(study.cka.pair(first, last).values)
    np.testing.assert_array_equal(by_measure["cka"].values[0], expected)
    np.testing.assert_array_equal(by_measure["probe"].values[1], study.probes[1].accuracy)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(None, "There is no run folder"), ("empty", "kept 0 snapshots, and a development needs 2")],
)
def test_a_run_without_snapshots_is_refused(tmp_path, capsys, make, sentence):
    folder = tmp_path / "run"
    if make:
        folder.mkdir()
    assert main(["dynamics", str(folder), "--out", str(tmp_path / "x.study.json")]) == 2
    assert sentence in capsys.readouterr().err


# ------------------------------------------------------------------------ commands


def test_similarity_and_geometry_print_tables_and_one_json_document(checkpoints, capsys):
    few = ["--dataset", "digits", "--samples", "40", "--device", "cpu"]
    pair = [str(path) for path in checkpoints]
    assert main(["similarity", *pair, *few, "--measures", "procrustes,rsa"]) == 0
    out = capsys.readouterr().out
    assert "Procrustes distance, first and second" in out
    assert main(["geometry", pair[0], *few, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["geometry"][0]["model"] == "first"
    assert main(["similarity", *pair, *few, "--measures", "colour"]) == 2
    assert "There is no measure colour; choose of svcca" in capsys.readouterr().err


def test_report_writes_one_page(full, tmp_path, capsys):
    study, page = tmp_path / "full.study.json", tmp_path / "full.html"
    save_study(full, study)
    assert main(["report", str(study), "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(study), "--out", str(tmp_path / "page.txt")]) == 2
    assert "a file that ends in .html" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.study.json"), "--out", str(page)]) == 2


def test_inspect_says_what_a_checkpoint_is(checkpoints, capsys):
    assert main(["inspect", str(checkpoints[0]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["architecture"] == "resnet20"
    assert document["layers"][0] == "stem"
    assert document["parameters"] > 0
    assert main(["inspect", "none.safetensors"]) == 2


def test_options_of_a_request_are_checked_where_it_is_made():
    for changes, sentence in (
        ({"kernel": "cosine"}, "no kernel 'cosine' of CKA; choose one of linear, rbf"),
        ({"estimator": "exact"}, "no estimator 'exact'"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"bandwidth": 0.0}, "bandwidth must be above 0"),
        ({"num_shuffles": -1}, "num shuffles must be at least 0, not -1"),
        ({"groups": 3}, "at least 10 groups of images, not 3"),
        ({"pooling": 0}, "pooling must be at least 1"),
        ({"penalties": (1.0, 0.0)}, "must be above 0, not 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            StudyRequest("digits", **changes)


def test_a_network_of_the_users_own_is_compared_too(models):
    torch.manual_seed(0)
    own = nn.Sequential(
        OrderedDict(
            first=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            second=nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()),
            rest=nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
        )
    )
    own(torch.zeros(1, 3, 32, 32))
    mean = std = (0.5, 0.5, 0.5)
    mine = from_module(own, ["first", "second"], name="mine", mean=mean, std=std)
    study = run_study([models[0], mine], **SMALL, measures=["cka", "probe"])
    assert study.cka.pair("first", "mine").columns == ("first", "second")
    assert np.isfinite(study.probe("mine").accuracy).all()
