"""A whole study against its parts computed by hand."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.cka import cka
from analysis.errors import Cancelled, InputError
from analysis.features import sample_images, stream_features
from analysis.models import open_model
from analysis.probes import fit_probe
from analysis.run import Progress, run_study
from analysis.study import study_record

SMALL = {"dataset": "digits", "samples": 24, "batch_size": 9, "train_samples": 40, "seed": 5}


@pytest.fixture(scope="module")
def models(checkpoints):
    return [open_model(path) for path in checkpoints]


@pytest.fixture(scope="module")
def study(models):
    return run_study(models, **SMALL)


def read_features(model, images):
    """All layers of a model in one batch, float64."""
    return {
        name: features.double().numpy().copy() for name, features in stream_features(model, images)
    }


@pytest.fixture(scope="module")
def test_features(models):
    images = sample_images("digits", "test", 24, seed=5).images
    return [read_features(model, images) for model in models]


# ------------------------------------------------------------------------ answers


def test_cka_of_every_pair_of_layers_is_that_of_the_features_by_themselves(study, test_features):
    first, second = test_features
    pair = study.cka.pair("first", "second")
    expected = [[cka(x, y, batch_size=4) for y in second.values()] for x in first.values()]
    np.testing.assert_allclose(pair.values, expected, atol=1e-5)
    assert study.cka.batch_sizes == (4,) * 6  # smaller than asked for: there must be many
    assert np.isfinite(pair.low).all()
    assert study.cka.undefined == {}


def test_a_models_comparison_with_itself_has_ones_on_the_diagonal(study):
    for name in ("first", "second"):
        np.testing.assert_allclose(np.diagonal(study.cka.pair(name, name).values), 1, atol=1e-12)


def test_probes_are_fitted_to_pooled_features_of_training_images(study, models, test_features):
    train = sample_images("digits", "train", 40, seed=5)
    test = sample_images("digits", "test", 24, seed=5)
    for model, own_test in zip(models, test_features, strict=True):
        own_train = read_features(model, train.images)
        result = study.probe(model.name)
        assert result.layers == model.layer_names
        for index, name in enumerate(model.layer_names):
            fit = fit_probe(
                own_train[name].mean(axis=(2, 3)),
                train.labels,
                own_test[name].mean(axis=(2, 3)),
                test.labels,
            )
            assert result.accuracy[index] == pytest.approx(fit.accuracy, abs=1.5 / 24)
            assert result.low[index] < result.accuracy[index] < result.high[index]
        assert (result.train_samples, result.test_samples, result.penalty) == (40, 24, 1.0)


def test_the_classifiers_accuracy_is_that_of_the_whole_network(study, models):
    test = sample_images("digits", "test", 24, seed=5)
    for model in models:
        answers = model.backbone(model.preprocess(test.images)).argmax(dim=1).numpy()
        result = study.probe(model.name)
        assert result.classifier_accuracy == np.mean(answers == test.labels)
        assert result.classifier_low <= result.classifier_accuracy <= result.classifier_high


def test_chance_is_one_in_the_number_of_classes(study):
    assert study.probes[0].chance == 0.1


def test_one_measure_alone_gives_the_same_as_both(study, models):
    only_cka = run_study(models, **SMALL, measures=["cka"])
    assert only_cka.probes == ()
    assert only_cka.question.train_samples is None
    assert only_cka.question.penalty is None
    np.testing.assert_array_equal(only_cka.cka.values, study.cka.values)
    only_probes = run_study(models, **SMALL, measures=["probe"])
    assert only_probes.cka is None
    np.testing.assert_array_equal(only_probes.probes[1].accuracy, study.probes[1].accuracy)


def test_one_pass_of_the_test_images_serves_every_measure(models, monkeypatch):
    images_by_model = {}
    backbone_class = type(models[0].backbone)
    forward_layers = backbone_class.forward_layers

    def counted(backbone, images):
        images_by_model[id(backbone)] = images_by_model.get(id(backbone), 0) + len(images)
        return forward_layers(backbone, images)

    monkeypatch.setattr(backbone_class, "forward_layers", counted)
    run_study(models, **SMALL)
    assert list(images_by_model.values()) == [24 + 40, 24 + 40]


def test_models_of_different_depth_are_compared(models, tmp_path, make_checkpoint):
    deeper = open_model(make_checkpoint(tmp_path / "deep.safetensors", architecture="resnet32"))
    result = run_study([models[0], deeper], **SMALL, measures=["cka"]).cka
    assert result.pair("first", "deep").values.shape == (10, 16)


def test_the_same_model_twice_gets_two_names_and_equal_layers(models):
    study = run_study([models[0], models[0]], **SMALL, measures=["cka"])
    assert study.cka.models == ("first", "first-2")
    pair = study.cka.pair("first", "first-2")
    np.testing.assert_allclose(np.diagonal(pair.values), 1, atol=1e-12)


# ------------------------------------------------------------------------ undefined


def test_other_classes_leave_the_classifier_undefined_and_the_rest_defined(
    tmp_path, make_checkpoint
):
    path = tmp_path / "hundred.safetensors"
    names = tuple(f"class {index}" for index in range(100))
    model = open_model(make_checkpoint(path, num_classes=100, classes=names))
    study = run_study([model], **SMALL)
    result = study.probes[0]
    assert result.classifier_accuracy is None
    assert result.classifier_low is None
    assert "100 classes apart (class 0, class 1, class 2, ...)" in result.undefined["classifier"]
    assert "scikit-learn digits has 10 others" in result.undefined["classifier"]
    assert np.isfinite(result.accuracy).all()
    assert np.isfinite(study.cka.values).all()


@pytest.fixture
def broken(checkpoints):
    """A model whose last layer gives the same number for everything."""

    def make(number):
        model = open_model(checkpoints[0])
        last = model.backbone.layers["stage3_block3"]
        last.register_forward_hook(lambda module, args, output: torch.full_like(output, number))
        return model

    return make


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_layer_that_is_not_finite_is_undefined_with_a_reason_and_no_other(broken, number):
    study = run_study([broken(number)], **SMALL)
    assert list(study.cka.undefined) == ["first/stage3_block3"]
    assert "not all finite" in study.cka.undefined["first/stage3_block3"]
    assert np.isfinite(study.cka.values[:-1, :-1]).all()
    result = study.probes[0]
    assert np.isnan(result.accuracy[-1])
    assert "not all finite" in result.undefined["stage3_block3"]
    assert np.isfinite(result.accuracy[:-1]).all()
    json.dumps(study_record(study), allow_nan=False)


def test_a_constant_layer_has_neither_cka_nor_probe_and_says_why(broken):
    study = run_study([broken(0.1)], **SMALL)
    assert "same for every image" in study.cka.undefined["first/stage3_block3"]
    assert np.isnan(study.cka.values[-1]).all()
    assert np.isnan(study.probes[0].accuracy[-1])
    assert "same for every training image" in study.probes[0].undefined["stage3_block3"]


# ------------------------------------------------------------------------ progress and stopping


def test_progress_counts_every_batch_of_every_stage_to_its_end(models):
    seen: list[Progress] = []
    run_study(models, **SMALL, progress=seen.append)
    stages = {"Reading test images": 12, "Reading training images": 10, "Fitting probes": 20}
    stages["Finding nearest neighbours"] = 20
    expected = [
        Progress(stage, done, total) for stage, total in stages.items() for done in range(total + 1)
    ]
    assert seen == expected


@pytest.mark.parametrize("steps", [0, 3, 8, 20])
def test_a_cancelled_run_stops_before_the_next_batch_or_probe(models, steps):
    seen = []

    def count(progress):
        if progress.done:
            seen.append(progress)

    with pytest.raises(Cancelled, match="cancelled; nothing was saved"):
        run_study(models, **SMALL, progress=count, cancelled=lambda: len(seen) >= steps)
    assert len(seen) == steps


def test_cka_can_be_watched_while_batches_come_in(models, monkeypatch):
    from analysis import run as run_file

    monkeypatch.setattr(run_file, "REFINED_EVERY", 0)
    monkeypatch.setattr(run_file, "SHARE_SHOWN", 1e9)
    seen = []
    study = run_study(models, **SMALL, measures=["cka"], partial=seen.append)
    batches = len(study.cka.batch_sizes)
    assert [len(part.cka.batch_sizes) for part in seen] == list(range(1, batches))
    assert seen[0].provenance.stopped == f"so far after 1 of {batches} batches"
    assert study.provenance.stopped is None
    # What is seen after k batches is what a run that is stopped there keeps.
    steps = 2 * len(models)
    read = []
    stopped = run_study(
        models,
        **SMALL,
        progress=lambda progress: read.append(progress) if progress.done else None,
        cancelled=lambda: len(read) >= steps,
        keep_partial=True,
    )
    np.testing.assert_array_equal(seen[1].cka.values, stopped.cka.values)


def test_a_watched_map_is_drawn_no_more_often_than_can_be_read(models, monkeypatch):
    from analysis import run as run_file

    monkeypatch.setattr(run_file, "REFINED_EVERY", 1000)
    seen = []
    run_study(models, **SMALL, partial=seen.append)
    assert len(seen) == 1


MEASURED = {  # a measure, what the whole of it is done after, and the layers that a part has
    "probe": (lambda study: study.probes[0].accuracy, "Fitting probes"),
    "geometry": (lambda study: study.geometry[0].values["participation_ratio"], "Measuring"),
    "procrustes": (lambda study: study.similarity[0].result.values[:, 0], "Procrustes"),
}


@pytest.mark.parametrize("measure", MEASURED)
def test_other_measures_can_be_watched_and_kept_layer_by_layer(models, monkeypatch, measure):
    from analysis import run as run_file

    monkeypatch.setattr(run_file, "REFINED_EVERY", 0)
    monkeypatch.setattr(run_file, "SHARE_SHOWN", 1e9)
    get, stage = MEASURED[measure]
    seen = []
    whole = get(run_study(models, **SMALL, measures=[measure], partial=seen.append))
    depth = len(whole)
    for done in range(1, depth + 1):
        part = get(seen[done - 1])
        np.testing.assert_array_equal(part[:done], whole[:done])
        assert np.isnan(part[done:]).all()
        assert seen[done - 1].provenance.stopped.startswith(f"so far after {done} of ")
    # Procrustes prepares all layers of both networks first, and tells of a row when it begins.
    before = 2 * depth - 1 if measure == "procrustes" else 0
    steps = []

    def count(progress):
        if progress.stage.startswith(stage) and progress.done:
            steps.append(progress)

    stopped = run_study(
        models,
        **SMALL,
        measures=[measure],
        progress=count,
        cancelled=lambda: len(steps) >= before + 3,
        keep_partial=True,
    )
    kept = get(stopped)
    assert np.isfinite(kept).sum() == 3
    np.testing.assert_array_equal(kept[:3], whole[:3])
    assert stopped.provenance.stopped.startswith("stopped after 3 of ")


def test_a_map_over_the_whole_set_grows_by_layers(models):
    steps = []
    stopped = run_study(
        models,
        **SMALL,
        measures=["cka"],
        estimator="biased",
        progress=lambda progress: steps.append(progress) if progress.done else None,
        cancelled=lambda: len(steps) >= 13,
        keep_partial=True,
    )
    whole = run_study(models, **SMALL, measures=["cka"], estimator="biased").cka
    assert stopped.provenance.stopped == "stopped after 13 of 20 layers"
    np.testing.assert_allclose(stopped.cka.values[:13, :13], whole.values[:13, :13], atol=1e-9)
    assert np.isnan(stopped.cka.values[13:]).all()


# ------------------------------------------------------------------------ provenance


def test_a_study_records_what_was_asked(study, models):
    question = study.question
    assert [checkpoint.sha256 for checkpoint in question.checkpoints] == [
        model.sha256 for model in models
    ]
    first = question.checkpoints[0]
    assert (first.name, first.rule, first.epoch, first.seed) == ("first", "auglocal", 3, 7)
    assert first.rule_options == {"auxiliary_depth": 2, "pyramid": 0.5}
    assert first.accuracy == {"value": 0.5, "split": "test", "samples": 1000}
    assert (question.dataset, question.dataset_title) == ("digits", "scikit-learn digits")
    assert (question.split, question.samples, question.seed, question.batch_size) == (
        "test",
        24,
        5,
        9,
    )
    assert (question.train_samples, question.penalty) == (40, 1.0)
    assert question.images_sha256 == sample_images("digits", "test", 24, seed=5).sha256
    assert study.title == "first and second on scikit-learn digits"


def test_a_study_records_where_it_came_from(study):
    provenance = study.provenance
    assert provenance.device == "cpu"
    assert provenance.seconds > 0
    assert provenance.versions["torch"] == torch.__version__.split("+")[0]
    assert {"python", "numpy", "scikit-learn"} <= provenance.versions.keys()
    assert provenance.date.endswith("+00:00")
    assert provenance.command == (
        "python -m analysis study first.safetensors second.safetensors --measures cka,probe "
        "--dataset digits --split test --samples 24 --seed 5 --batch-size 9 --train-samples 40 "
        "--out again.study.json"
    )


def test_the_recorded_command_keeps_relative_paths_and_no_absolute_ones(models, tmp_path):
    model = replace(models[0], path=tmp_path / "my net.safetensors")
    relative = replace(models[1], path=models[1].path.relative_to(models[1].path.anchor))
    study = run_study(
        [model, relative], **SMALL, measures=["cka"], folder=tmp_path / "sets", title="A title"
    )
    words = shlex.split(study.provenance.command)
    assert words[:6] == [
        *("python", "-m", "analysis", "study"),
        "my net.safetensors",
        str(relative.path),
    ]
    assert words[-6:-2] == ["--data-folder", "sets", "--title", "A title"]
    assert not any(word.startswith("/") for word in words)


def test_packages_that_are_not_installed_are_left_out_of_the_versions(models, monkeypatch):
    monkeypatch.setattr("analysis.run.PACKAGES", ("numpy", "no-such-package"))
    study = run_study(models[:1], **SMALL, measures=["cka"])
    assert study.provenance.versions.keys() == {"python", "numpy"}


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"split": "train"}, "cannot be scored on the train split; choose another --split"),
        ({"penalty": 0.0}, "must be above 0, not 0; give another --penalty"),
        ({"penalty": float("nan")}, "must be above 0, not nan"),
        ({"batch_size": 0}, "at least 1, not 0; give another --batch-size"),
        ({"batch_size": 3}, "at least 4 images in every batch, but 24 images .* of at most 3"),
        ({"samples": 2}, "at least 4 images in every batch, but 2 images"),
        ({"samples": 1001}, "it holds 1,000"),
        ({"train_samples": 698}, "train split .* it holds 697"),
        ({"measures": ["colour"]}, "must be of cka, probe, geometry, .*choose at least one"),
        ({"measures": []}, "must be of cka, probe"),
        ({"dataset": "mnist"}, "no data set 'mnist'"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(models, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        run_study(models, **{**SMALL, **changes})


def test_no_model_is_refused():
    with pytest.raises(InputError, match="no checkpoint to read; give at least one"):
        run_study([], **SMALL)


def test_images_of_another_size_are_refused(tmp_path, make_checkpoint):
    small = open_model(make_checkpoint(tmp_path / "small.safetensors", input_size=(3, 16, 16)))
    with pytest.raises(InputError, match="small takes images of 3 x 16 x 16"):
        run_study([small], **SMALL)


def test_cka_alone_may_be_measured_on_training_images(models):
    study = run_study(models, **SMALL, split="train", measures=["cka"])
    assert study.question.split == "train"


# ------------------------------------------------------------------------ images of a folder


@pytest.fixture
def photographs(tmp_path):
    """A folder of 24 x 24 pictures, in two classes."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return f"imagefolder:{tmp_path / 'photographs'}"


@pytest.mark.parametrize("estimator", ["unbiased", "debiased"])
def test_each_network_reads_a_folder_at_its_own_size(models, photographs, estimator):
    small = replace(models[1].metadata, input_size=(3, 16, 16))
    both = [models[0], replace(models[1], metadata=small)]
    found = run_study(
        both, dataset=photographs, image_size=32, measures=("cka", "probe"), batch_size=6,
        estimator=estimator, train_samples=20,
    )  # fmt: skip
    sizes = [entry.preprocessing["input_size"] for entry in found.question.checkpoints]
    assert sizes == [[3, 32, 32], [3, 16, 16]]
    features = [
        read_features(model, sample_images(photographs, image_size=size).images)
        for model, size in zip(both, (32, 16), strict=True)
    ]
    options = {"batch_size": 4} if estimator == "unbiased" else {"estimator": "debiased"}
    expected = cka(features[0]["stem"], features[1]["stem"], **options)
    pair = found.cka.pair("first", "second")
    row, column = pair.rows.index("stem"), pair.columns.index("stem")
    assert pair.values[row, column] == pytest.approx(expected, abs=1e-5)
    assert len(found.probes) == 2


def test_a_folder_that_fits_no_network_is_refused(models, photographs):
    with pytest.raises(InputError, match="are 3 x 24 x 24; give --image-size 32"):
        run_study(models, dataset=photographs, measures=("cka",))


# ------------------------------------------------------------------------ names


def test_chosen_names_are_in_the_command(models):
    named = [replace(models[0], name="My net"), models[1]]
    command = run_study(named, **SMALL, measures=("cka",)).provenance.command
    assert "'--name=My net' --name=second" in command
    assert "--name" not in run_study(models, **SMALL, measures=("cka",)).provenance.command


def test_a_foreign_file_that_says_neither_epoch_nor_seed_has_none(models):
    source = {"opened_from": {"assumed": ["preprocessing"], "channel_order": "BGR"}}
    foreign = replace(models[0].metadata, config=source, epoch=0, seed=0)
    found = run_study([replace(models[0], metadata=foreign)], **SMALL, measures=("geometry",))
    entry = found.question.checkpoints[0]
    assert (entry.epoch, entry.seed) == (None, None)
    assert entry.preprocessing["channel_order"] == "BGR"
    assert entry.preprocessing["assumed"] is True
    assert entry.preprocessing["mean"] == list(foreign.mean)
