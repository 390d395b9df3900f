"""One image under the lens, against scikit-learn, brute force and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.errors import Cancelled, InputError
from analysis.features import ImageSample, auxiliary_logits, stream_features
from analysis.lens import (
    AUXILIARY,
    CLASSIFIER,
    PROBE,
    ask,
    disagreement,
    fit_lens,
    nearest,
    settled_at,
)
from analysis.lens_file import load_lens, save_lens
from analysis.models import Model, open_model
from auglocal.checkpoint import save_checkpoint
from auglocal.rules.auglocal import AugLocal
from auglocal.rules.registry import build_network

CLASSES = tuple("0123456789")


def draw(count: int, seed: int, split: str, classes: tuple[str, ...] = CLASSES) -> ImageSample:
    """Noise whose brightness tells the class a little."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(10), rng.integers(0, 10, count - 10)])
    pixels = rng.integers(0, 200, (count, 3, 32, 32)) + 5 * labels[:, None, None, None]
    return ImageSample(
        images=torch.from_numpy(pixels.astype(np.uint8)),
        labels=labels,
        classes=classes,
        dataset="noise",
        title="Noise",
        split=split,
        indices=np.arange(count) * 3,
        seed=seed,
        sha256=f"{seed}",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory, make_checkpoint) -> Model:
    """An untrained ResNet-20 with auxiliary networks of AugLocal."""
    path = tmp_path_factory.mktemp("lens") / "net.safetensors"
    metadata = open_model(make_checkpoint(path)).metadata
    with torch.random.fork_rng():
        network = build_network(
            "resnet20", AugLocal(auxiliary_depth=2, pyramid=0.5), 10, (3, 32, 32), 0
        )
    save_checkpoint(path, network, metadata)
    return open_model(path, auxiliaries=True)


@pytest.fixture(scope="module")
def samples():
    return draw(150, 0, "train"), draw(40, 1, "test")


@pytest.fixture(scope="module")
def lens(model, samples):
    return fit_lens(model, *samples)


def features_of(model, images, layer):
    """Mean over places of a layer's output, by another road."""
    for name, output in stream_features(model, images):
        if name == layer:
            return output.mean(dim=(2, 3)).numpy()
    raise AssertionError(layer)


@pytest.mark.parametrize("layer", ["stem", "stage2_block2", "stage3_block3"])
def test_probes_say_what_scikit_learns_logistic_regression_says(model, samples, lens, layer):
    train, test = samples
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-9, max_iter=9999))
    reference.fit(features_of(model, train.images, layer).astype(np.float64), train.labels)
    expected = reference.predict_proba(features_of(model, test.images[:5], layer))
    for image, row in zip(test.images[:5], expected, strict=True):
        said = ask(model, lens, image).row(PROBE, layer)
        np.testing.assert_allclose(said, row, atol=2e-4)


def test_auxiliary_networks_and_the_classifier_say_their_softmax(model, samples, lens):
    image = samples[1].images[7]
    answer = ask(model, lens, image)
    with torch.no_grad():
        logits = model.backbone(model.preprocess(image[None]))
    np.testing.assert_allclose(
        answer.row(CLASSIFIER, CLASSIFIER), logits.softmax(1)[0].numpy(), atol=1e-5
    )
    asked = 0
    for name, output in stream_features(model, image[None]):
        expected = auxiliary_logits(model, name, output)
        said = answer.row(AUXILIARY, name)
        assert (expected is None) == (said is None)
        if expected is not None:
            asked += 1
            np.testing.assert_allclose(said, expected.softmax(1)[0].numpy(), atol=1e-5)
    assert asked == len(model.auxiliary_layers) > 5


def test_an_answer_alone_is_that_given_when_the_lens_was_fitted(model, samples, lens):
    test = samples[1]
    for index in range(5):
        answer = ask(model, lens, test.images[index])
        np.testing.assert_array_equal(
            answer.probabilities.argmax(axis=1), lens.predictions[:, index]
        )
        np.testing.assert_allclose(
            answer.probabilities.max(axis=1), lens.confidence[:, index], atol=1e-4
        )
        np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_a_brute_force_search(model, samples, lens, metric):
    train, test = samples
    found = nearest(lens, ask(model, lens, test.images[3]), metric=metric, neighbours=7)
    for layer in ("stem", "stage2_block3", "stage3_block3"):
        row = model.layer_names.index(layer)
        scaler = StandardScaler().fit(features_of(model, train.images, layer).astype(np.float64))
        known = scaler.transform(features_of(model, train.images, layer))
        search = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(known)
        image = scaler.transform(features_of(model, test.images[3:4], layer))
        distances, _ = search.kneighbors(image)
        np.testing.assert_allclose(found.distances[row], distances[0], rtol=1e-3, atol=1e-4)
        chosen = known[found.positions[row]]
        again = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(chosen)
        np.testing.assert_allclose(again.kneighbors(image)[0], distances, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_training_image_is_its_own_nearest_neighbour(model, samples, lens, metric):
    found = nearest(lens, ask(model, lens, samples[0].images[11]), metric=metric)
    assert set(found.positions[:, 0]) == {11}
    np.testing.assert_allclose(found.distances[:, 0], 0, atol=2e-3)
    assert (np.diff(found.distances, axis=1) >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "no metric 'manhattan'; choose one of cosine, euclidean"),
        ({"neighbours": 0}, "must be 1 to 150"),
        ({"neighbours": 151}, "must be 1 to 150"),
    ],
)
def test_options_that_make_no_neighbours_are_refused(model, samples, lens, options, message):
    with pytest.raises(ValueError, match=message):
        nearest(lens, ask(model, lens, samples[1].images[0]), **options)


def test_a_lens_survives_its_file(model, samples, lens, tmp_path):
    save_lens(lens, tmp_path / "a.npz")
    again = load_lens(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    image = samples[1].images[2]
    ours, theirs = ask(model, lens, image), ask(model, again, image)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    np.testing.assert_array_equal(nearest(lens, ours).positions, nearest(again, theirs).positions)
    np.testing.assert_array_equal(lens.disagreement, again.disagreement)
    assert (again.readers, again.reasons, again.penalty) == (lens.readers, lens.reasons, 1.0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"{}"])
def test_a_damaged_lens_is_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(InputError, match="bad.npz is no lens that can be read"):
        load_lens(tmp_path / "bad.npz")


def test_a_pickle_in_a_lens_is_not_opened(tmp_path):
    np.savez(tmp_path / "bad.npz", head=np.array([{"format_version": 1}], dtype=object))
    with pytest.raises(InputError, match="no lens"):
        load_lens(tmp_path / "bad.npz")


def test_other_classes_leave_the_networks_own_readers_undefined(model, samples):
    names = tuple("abcdefghij")
    train, test = (replace(sample, classes=names) for sample in samples)
    lens = fit_lens(model, train, test)
    answer = ask(model, lens, test.images[0])
    assert np.isnan(answer.row(CLASSIFIER, CLASSIFIER)).all()
    assert np.isfinite(answer.row(PROBE, "stem")).all()
    assert "trained on other classes" in answer.reasons[len(lens.readers) - 1]
    assert np.isnan(lens.accuracy(len(lens.readers) - 1))
    with pytest.raises(InputError, match="do not have the same classes"):
        fit_lens(model, samples[0], test)


def test_features_that_are_not_finite_have_a_reason_and_no_neighbours(model, samples):
    layer = model.backbone.layers["stem"]
    weight = next(layer.parameters())
    before = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        lens = fit_lens(model, *samples)
        answer = ask(model, lens, samples[1].images[0])
    finally:
        weight.data.copy_(before)
    assert "not all finite" in answer.reasons[0]
    assert (nearest(lens, answer).positions[0] == -1).all()
    assert (lens.predictions[0] == -1).all()
    assert settled_at(answer.probabilities[:10]) is None


def test_a_fit_can_be_stopped(model, samples):
    with pytest.raises(Cancelled):
        fit_lens(model, *samples, cancelled=lambda: True)
    steps = []
    with pytest.raises(Cancelled):
        fit_lens(
            model,
            *samples,
            progress=steps.append,
            cancelled=lambda: steps[-1].stage == "Fitting probes",
        )
    assert [step.stage for step in steps if step.done == 0][:2] == [
        "Reading training images",
        "Reading test images",
    ]


def test_accuracy_and_confidence_are_those_of_the_test_images(lens, samples):
    head = len(lens.readers) - 1
    right = [p == label for p, label in zip(lens.predictions[head], samples[1].labels, strict=True)]
    assert lens.accuracy(head) == pytest.approx(sum(right) / 40)
    assert lens.mean_confidence(head) == pytest.approx(float(np.mean(lens.confidence[head])))


def test_readers_that_agree_have_no_disagreement_and_opposite_ones_log_2():
    sure = np.log(np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]).clip(1e-300))
    np.testing.assert_allclose(disagreement(sure), [np.log(2)])
    np.testing.assert_allclose(disagreement(sure[[0, 0, 0]]), [0], atol=1e-12)


def test_disagreement_is_the_mean_kl_divergence_to_the_mixture():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (5, 6))
    mixture = p.mean(axis=0)
    expected = (p * np.log(p / mixture)).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(disagreement(np.log(p)), expected)
    with_a_gap = np.concatenate([np.log(p), np.full((1, 6, 4), np.nan)])
    np.testing.assert_allclose(disagreement(with_a_gap), expected)
    np.testing.assert_array_equal(disagreement(with_a_gap[5:]), np.zeros(6))


@pytest.mark.parametrize(
    ("winners", "expected"),
    [
        ([1, 1, 1], 0),
        ([0, 1, 1], 1),
        ([1, 0, 1], 2),
        ([0, None, 1, 1], 2),
        ([1, None, 1, 1], 0),
        ([None], None),
        ([], None),
    ],
)
def test_settled_at_is_the_start_of_the_last_run_of_the_last_answer(winners, expected):
    rows = [np.full(2, np.nan) if w is None else np.eye(2)[w] for w in winners]
    assert settled_at(np.array(rows).reshape(-1, 2)) == expected
