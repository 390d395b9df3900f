"""Geometry against closed forms, theory, and naive second implementations."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score

from analysis.activity import dead_units, feature_norms, sparseness, sparsity
from analysis.collapse import (
    class_separability,
    nc1,
    nc2,
    nc3,
    nc4,
    nearest_class_mean,
    silhouette,
)
from analysis.geometry import Classifier, GeometryAccumulator, measure_geometry
from analysis.geometry_layer import jackknife
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.moments import Undefined
from analysis.spectrum import effective_rank, participation_ratio, two_nn


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blobs(seed=0, samples=200, classes=4, width=12, noise=1.0):
    """Gaussian classes of uneven spread: features (N, D) and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    centres = np.random.default_rng(77).normal(size=(classes, width))
    spread = noise * np.geomspace(1, 0.2, width)
    return centres[labels] + spread * rng.normal(size=(samples, width)), labels


def rotated(features, seed=1):
    width = features.shape[1]
    return features @ np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def with_spectrum(singular_values, samples, width, seed=3):
    """Centred features (N, D) with exactly these singular values."""
    rng = np.random.default_rng(seed)
    count = len(singular_values)
    left = np.linalg.qr(np.c_[np.ones(samples), rng.normal(size=(samples, count))])[0][:, 1:]
    right = np.linalg.qr(rng.normal(size=(width, count)))[0]
    return left * np.asarray(singular_values) @ right.T


def simplex(classes, width, radius=1.0):
    """Vertices (K, D) of a simplex about 0, at the distance `radius`."""
    corners = np.eye(classes) - 1 / classes
    corners *= radius / np.linalg.norm(corners[0])
    return rotated(np.pad(corners, ((0, 0), (0, width - classes))))


# ------------------------------------------------------------------------ spectra

SPECTRA = [[1, 1, 1], [3, 2, 1], [5], [1, 0.5, 0.25, 0.125]]


@pytest.mark.parametrize("shape", [(30, 8), (12, 40)], ids=["tall", "wide"])
@pytest.mark.parametrize("singular_values", SPECTRA)
def test_ranks_of_a_known_spectrum_are_the_closed_forms(singular_values, shape):
    features = with_spectrum(singular_values, *shape)
    shares = np.array(singular_values) / sum(singular_values)
    squares = np.array(singular_values) ** 2
    assert effective_rank(features) == pytest.approx(np.prod(shares**-shares), rel=1e-6)
    expected = squares.sum() ** 2 / (squares**2).sum()
    assert participation_ratio(features) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 9), (20, 50), (20, 20)])
def test_ranks_agree_with_a_singular_value_decomposition(rng, shape):
    features = rng.normal(size=shape) * np.geomspace(1, 0.01, shape[1]) + 3
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    shares = values[values > 1e-10] / values.sum()
    assert effective_rank(features) == pytest.approx(np.exp(stats.entropy(shares)), rel=1e-6)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert participation_ratio(features) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("samples", "dimension"), [(40, 5), (12, 20)])
def test_participation_ratio_of_isotropic_features_has_its_exact_expectation(samples, dimension):
    # For a Wishart matrix W of n = N - 1 degrees of freedom, tr W^2 / (tr W)^2 does not depend on
    # tr W (Basu), so its mean is E tr W^2 / E (tr W)^2 = (n + d + 1) / (n d + 2).
    inverse = np.array(
        [
            1 / participation_ratio(rotated(np.pad(draw, ((0, 0), (0, 7)))))
            for draw in np.random.default_rng(5).normal(size=(400, samples, dimension))
        ]
    )
    expected = (samples + dimension) / ((samples - 1) * dimension + 2)
    assert abs(inverse.mean() - expected) < 4 * inverse.std() / 20
    assert inverse.std() / 20 < 0.01 * expected


def test_both_ranks_of_isotropic_features_approach_their_dimension(rng):
    features = rotated(np.pad(rng.normal(size=(20000, 5)), ((0, 0), (0, 10))))
    assert effective_rank(features) == pytest.approx(5, rel=1e-3)
    assert participation_ratio(features) == pytest.approx(5, rel=2e-3)


@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
def test_features_along_one_line_have_rank_one(rng, shape):
    line = (rng.normal(size=(shape[0], 1)) @ rng.normal(size=(1, shape[1]))).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1, abs=1e-5)
    assert participation_ratio(line) == pytest.approx(1, abs=1e-9)


# ------------------------------------------------------------------------ TwoNN


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_two_nn_finds_the_dimension_within_its_interval(dimension, seed):
    points = np.random.default_rng(seed).normal(size=(1000, dimension))
    found = two_nn(rotated(np.pad(points, ((0, 0), (0, 10)))))
    assert found.low < dimension < found.high
    assert found.value == pytest.approx(dimension, rel=0.1)
    assert found.high - found.low < 0.3 * dimension


@pytest.mark.parametrize("discarded", [0.0, 0.1, 0.3])
def test_two_nn_is_scipys_censored_maximum_likelihood(rng, discarded):
    features = rng.normal(size=(80, 3))
    distances = np.sort(cdist(features, features), axis=1)
    logs = np.sort(np.log(distances[:, 2] / distances[:, 1]))
    kept = int(80 * (1 - discarded))
    data = stats.CensoredData(logs[:kept], right=np.full(80 - kept, logs[kept - 1]))
    expected = 1 / stats.expon.fit(data, floc=0)[1]
    # scipy maximises numerically, to some 1e-4.
    assert two_nn(features, discarded=discarded).value == pytest.approx(expected, rel=3e-4)


def test_two_nns_interval_covers_at_its_rate():
    found = [two_nn(np.random.default_rng(seed).uniform(size=(150, 2))) for seed in range(300)]
    mean = np.mean([one.value for one in found])
    assert mean == pytest.approx(2, rel=0.05)
    assert 0.92 <= np.mean([one.low <= mean <= one.high for one in found]) <= 0.98
    spread = np.std([one.value for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.1)


def test_repeated_images_count_once_for_two_nn(rng):
    features = rng.normal(size=(60, 3))
    again = two_nn(np.r_[features, features[:25], features[:5]])
    assert again.value == two_nn(features).value
    assert (again.samples, again.duplicates) == (60, 30)


def test_two_nn_keeps_the_digits_of_close_neighbours(rng):
    # Two clouds far apart: by products alone, distances within a cloud would be noise.
    cloud = rng.normal(size=(100, 2))
    far = np.r_[cloud, rng.normal(size=(100, 2)) + 1e7]
    assert two_nn(far).value == pytest.approx(2, rel=0.3)


# ------------------------------------------------------------------------ classes


def test_class_separability_of_four_points_is_the_closed_form():
    points = np.array([[3, 1], [3, -1], [-3, 1], [-3, -1]])
    assert class_separability(points, [0, 0, 1, 1]) == pytest.approx(9 / 10)
    assert class_separability(points, [0, 1, 0, 1]) == pytest.approx(1 / 10)


def test_class_separability_of_labels_at_random_is_k_minus_1_over_n_minus_1(rng):
    features, labels = rng.normal(size=(40, 6)), np.arange(40) % 5
    draws = [class_separability(features, rng.permutation(labels)) for _ in range(500)]
    assert abs(np.mean(draws) - 4 / 39) < 4 * np.std(draws) / math.sqrt(500)


@pytest.mark.parametrize("width", [5, 150])
def test_silhouette_is_scikit_learns(width):
    features, labels = blobs(samples=90, width=width)
    labels[7] = 9  # alone in its class
    expected = silhouette_score(features, labels)
    assert silhouette(features, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("classes", "width"), [(2, 6), (4, 6), (4, 90)])
def test_a_simplex_is_fully_collapsed(classes, width):
    means = simplex(classes, width, radius=3)
    labels = np.repeat(np.arange(classes), 5)
    features = means[labels] + 40
    assert nc1(features, labels) == pytest.approx(0, abs=1e-12)
    assert nc2(features, labels).norms == pytest.approx(0, abs=1e-9)
    assert nc2(features, labels).angles == pytest.approx(0, abs=1e-9)
    assert nc3(features, labels, 0.1 * means) == pytest.approx(0, abs=1e-12)
    assert nc4(features, labels, labels) == 1
    assert class_separability(features, labels) == pytest.approx(1)


def test_nc1_of_a_simplex_with_round_classes_is_the_closed_form():
    classes, width, radius, step = 4, 6, 2.0, 0.3
    around = np.concatenate([np.eye(width), -np.eye(width)]) * step
    features = (simplex(classes, width, radius)[:, None] + around).reshape(-1, width)
    labels = np.repeat(np.arange(classes), 2 * width)
    # S_W = step^2 / D I, and S_B = radius^2 / (K - 1) on the K - 1 directions of the means.
    expected = (classes - 1) ** 2 * step**2 / width / radius**2 / classes
    assert nc1(features, labels) == pytest.approx(expected, rel=1e-9)
    assert nc2(features, labels).norms == pytest.approx(0, abs=1e-9)


def naive_means(features, labels):
    means = np.stack([features[labels == name].mean(axis=0) for name in np.unique(labels)])
    return means, means - means.mean(axis=0)


@pytest.mark.parametrize("width", [3, 12, 300])
def test_nc1_and_nc2_agree_with_a_naive_implementation(width):
    features, labels = blobs(width=width, samples=150)
    means, centred = naive_means(features, labels)
    classes = len(means)
    within = np.zeros((width, width))
    for image, label in zip(features, labels):
        within += np.outer(image - means[label], image - means[label]) / len(features)
    between = centred.T @ centred / classes
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / classes
    assert nc1(features, labels) == pytest.approx(expected, rel=1e-6)

    norms = np.linalg.norm(centred, axis=1)
    assert nc2(features, labels).norms == pytest.approx(norms.std() / norms.mean(), rel=1e-6)
    gaps = [
        abs(centred[a] @ centred[b] / norms[a] / norms[b] + 1 / (classes - 1))
        for a in range(classes)
        for b in range(a)
    ]
    assert nc2(features, labels).angles == pytest.approx(np.mean(gaps), rel=1e-6)


@pytest.mark.parametrize("width", [6, 90])
def test_nc3_measures_the_angle_between_classifier_and_means(rng, width):
    features, labels = blobs(width=width, samples=60)
    centred = naive_means(features, labels)[1]
    assert nc3(features, labels, 7 * centred) == pytest.approx(0, abs=1e-9)
    assert nc3(features, labels, -centred) == pytest.approx(4)
    other = rng.normal(size=centred.shape)
    other -= (other * centred).sum() / (centred**2).sum() * centred
    assert nc3(features, labels, other) == pytest.approx(2)


@pytest.mark.parametrize("width", [3, 80])
def test_nearest_class_mean_leaves_each_image_out(width):
    features, labels = blobs(samples=60, width=width, noise=3)
    expected = []
    for index in range(60):
        rest, names = np.delete(features, index, axis=0), np.delete(labels, index)
        means = naive_means(rest, names)[0]
        expected.append(np.linalg.norm(means - features[index], axis=1).argmin())
    np.testing.assert_array_equal(nearest_class_mean(features, labels), expected)
    predictions = (labels + (np.arange(60) % 3 == 0)) % 4
    agreement = np.mean(np.array(expected) == predictions)
    assert nc4(features, labels, predictions) == agreement
    assert 0 < agreement < 1


def test_nearest_class_mean_does_not_know_labels_at_random(rng):
    features, labels = rng.normal(size=(100, 2000)), np.arange(100) % 5
    assert (nearest_class_mean(features, labels) == labels).mean() < 0.4


# ------------------------------------------------------------------------ activity


def test_sparsity_counts_zeros():
    assert sparsity([[0, 1, -2, 0], [0, 0, 0, 1e-30]]) == 5 / 8


def test_sparseness_is_one_for_a_single_active_unit_and_zero_for_equal_ones():
    assert sparseness(np.eye(6) * np.array([1e-200, 1, -3, 4, 5, 1e200])) == pytest.approx(1)
    assert sparseness([[2, -2, 2], [1, 1, 1]]) == pytest.approx(0, abs=1e-12)


def test_sparseness_of_gaussian_and_rectified_features_is_their_closed_form(rng):
    features = rng.normal(size=(200, 4000))
    # a = E|x|^2 / E x^2: 2 / pi for a Gaussian, half that once rectified.
    assert sparseness(features) == pytest.approx(1 - 2 / math.pi, abs=2e-3)
    assert sparseness(np.maximum(features, 0)) == pytest.approx(1 - 1 / math.pi, abs=2e-3)


def test_images_without_activity_do_not_count_for_sparseness():
    assert sparseness([[0, 0, 0], [0, 5, 0]]) == pytest.approx(1)


def test_dead_units_give_the_same_value_for_every_image(rng):
    features = np.c_[rng.normal(size=(20, 5)), np.zeros(20), np.full(20, 0.1), np.zeros(20)]
    features[4, 7] = 1e-30
    assert dead_units(features.astype(np.float32)) == 2 / 8


def test_feature_norms_are_those_of_numpy(rng):
    features = rng.normal(size=(30, 3, 4)) + 100
    norms = np.linalg.norm(features.reshape(30, -1), axis=1)
    assert feature_norms(features).mean == pytest.approx(norms.mean())
    assert feature_norms(features).deviation == pytest.approx(norms.std(ddof=1), rel=1e-6)


# ------------------------------------------------------------------------ invariances

CLASSES = np.arange(60) % 4
SHAPE_MEASURES = {
    "effective_rank": lambda features: effective_rank(features),
    "participation_ratio": lambda features: participation_ratio(features),
    "two_nn": lambda features: two_nn(features).value,
    "class_separability": lambda features: class_separability(features, CLASSES),
    "silhouette": lambda features: silhouette(features, CLASSES),
    "nc1": lambda features: nc1(features, CLASSES),
    "nc2_norms": lambda features: nc2(features, CLASSES).norms,
    "nc2_angles": lambda features: nc2(features, CLASSES).angles,
    "class_mean_accuracy": lambda features: nc4(features, CLASSES, CLASSES),
}


@pytest.fixture(params=[10, 90], ids=["tall", "wide"])
def structured(request):
    generator = np.random.default_rng(4)
    centres = generator.normal(size=(4, request.param))
    return centres[CLASSES] + generator.normal(size=(60, request.param))


@pytest.mark.parametrize("name", SHAPE_MEASURES)
@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_measures_of_shape_are_unchanged_far_from_zero_and_at_any_scale(
    structured, name, offset, scale
):
    measure = SHAPE_MEASURES[name]
    moved = ((structured + offset) * scale).astype(np.float32)
    expected = measure((moved.astype(np.float64) / scale) - offset)
    assert measure(moved) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert measure(torch.from_numpy(moved)) == measure(moved)


@pytest.mark.parametrize("name", SHAPE_MEASURES)
def test_measures_of_shape_are_unchanged_by_rotation(structured, name):
    measure = SHAPE_MEASURES[name]
    assert measure(rotated(structured)) == pytest.approx(measure(structured), rel=1e-7)


@pytest.mark.parametrize("name", SHAPE_MEASURES)
def test_measures_of_shape_are_changed_by_stretching_one_direction(structured, name):
    stretched = structured * np.array([30, *[1] * (structured.shape[1] - 1)])
    assert SHAPE_MEASURES[name](stretched) != pytest.approx(
        SHAPE_MEASURES[name](structured), rel=0.01
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_is_summed(structured, kind):
    half = torch.from_numpy(structured).to(kind).requires_grad_()
    wide = half.detach().double().numpy()
    for measure in SHAPE_MEASURES.values():
        assert measure(half) == pytest.approx(measure(wide), rel=1e-6)


# ------------------------------------------------------------------------ undefined


def test_constant_features_have_a_reason_instead_of_a_value():
    features, labels = np.full((20, 5), 0.1, np.float32), np.arange(20) % 2
    for measure in (effective_rank, participation_ratio):
        with pytest.raises(Undefined, match="the same for every image"):
            measure(features)
    for measure in (class_separability, silhouette, nc1, nc2):
        with pytest.raises(Undefined, match="the same for every image"):
            measure(features, labels)
    with pytest.raises(Undefined, match="at least 10 different images, and there are 1"):
        two_nn(features)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_have_a_reason(value):
    features, labels = blobs()
    features[3, 2] = value
    for measure in (effective_rank, participation_ratio, two_nn, sparsity, dead_units):
        with pytest.raises(Undefined, match="not all finite"):
            measure(features)
    for measure in (class_separability, nc1, nc2, silhouette):
        with pytest.raises(Undefined, match="not all finite"):
            measure(features, labels)


@pytest.mark.parametrize("width", [5, 90])
def test_features_too_large_to_multiply_have_a_reason(rng, width):
    features = rng.normal(size=(60, width)) * 1e200
    for measure in (effective_rank, two_nn, feature_norms):
        with pytest.raises(Undefined, match="too large to multiply"):
            measure(features)


def test_a_single_class_has_a_reason():
    features, _ = blobs()
    for measure in (class_separability, silhouette, nc1, nc2, nearest_class_mean):
        with pytest.raises(Undefined, match="at least 2 classes"):
            measure(features, np.full(200, 3))


def test_too_few_images_have_a_reason(rng):
    features = rng.normal(size=(9, 4))
    with pytest.raises(Undefined, match="a spectrum needs at least 2 images"):
        effective_rank(features[:1])
    with pytest.raises(Undefined, match="at least 10 different images, and there are 9"):
        two_nn(features)
    with pytest.raises(Undefined, match="no class has 2 images"):
        nc1(features, np.arange(9))
    with pytest.raises(Undefined, match="a class has a single image"):
        nearest_class_mean(features, [0] * 8 + [1])
    with pytest.raises(Undefined, match="dead takes at least 2 images"):
        dead_units(features[:1])
    with pytest.raises(Undefined, match="deviation needs at least 2 images"):
        feature_norms(features[:1])


def test_degenerate_classes_have_a_reason():
    features = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    with pytest.raises(Undefined, match="all classes have the same mean"):
        nc1(features, [0, 0, 1, 1])
    with pytest.raises(Undefined, match="so it has no angle"):
        nc2([[1.0, 0], [-1, 0], [0, 0]], [0, 1, 2])
    with pytest.raises(Undefined, match="no activity|not all zero"):
        sparseness(np.zeros((4, 3)))
    with pytest.raises(Undefined, match="equally near"):
        two_nn(np.eye(12))


def test_a_classifier_that_does_not_fit_has_a_reason():
    features, labels = blobs()
    with pytest.raises(Undefined, match=r"shape \(4, 5\), but the class means \(4, 12\)"):
        nc3(features, labels, np.ones((4, 5)))
    with pytest.raises(Undefined, match="no images of class 4"):
        nc3(features, labels, np.ones((5, 12)))
    with pytest.raises(Undefined, match="weights are all zero"):
        nc3(features, labels, np.zeros((4, 12)))


def test_shapes_and_options_that_make_no_sense_are_refused(rng):
    features = rng.normal(size=(20, 4))
    with pytest.raises(ValueError, match=r"shape \(N, \.\.\.\)"):
        effective_rank(np.ones(5))
    with pytest.raises(ValueError, match=r"shape \(N, \.\.\.\)"):
        effective_rank(np.ones((0, 5)))
    with pytest.raises(ValueError, match=r"20 images need labels of the shape \(20,\)"):
        nc1(features, np.zeros(19, int))
    for labels in (np.zeros(20), np.full(20, -1)):
        with pytest.raises(ValueError, match="labels must be whole numbers from 0"):
            nc1(features, labels)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"discarded share must be in \[0, 1\)"):
            two_nn(features, discarded=share)


# ------------------------------------------------------------------------ many layers


def layers(samples=240):
    """Layers of three kinds: pooled, wide with fewer images, wide with more."""
    features, labels = blobs(samples=samples)
    generator = np.random.default_rng(8)
    return {
        "pooled": np.maximum(features, 0).astype(np.float32),
        "wide": (features @ generator.normal(size=(12, 400)) + 5).astype(np.float32),
        "medium": np.tanh(features @ generator.normal(size=(12, 20))).reshape(-1, 5, 2, 2),
    }, labels


def assert_same(left, right, rel=1e-9):
    for field in fields(left):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        if field.name in ("values", "standard_errors", "low", "high", "samples_by_measure"):
            for measure in left.measures:
                np.testing.assert_allclose(
                    mine[measure], theirs[measure], rtol=rel, atol=1e-10, err_msg=measure
                )
        else:
            assert mine == theirs


@pytest.mark.parametrize("name", ["pooled", "wide", "medium"])
def test_every_measure_of_a_layer_is_that_of_the_function_on_arrays(name):
    features_by_layer, labels = layers()
    features = features_by_layer[name]
    weights = np.random.default_rng(2).normal(size=(4, features[0].size))
    result = measure_geometry(
        features_by_layer, labels, classifier=Classifier(name, weights), groups=0
    )
    predictions = (features.reshape(240, -1) @ weights.T).argmax(axis=1)
    expected = {
        "effective_rank": effective_rank(features),
        "participation_ratio": participation_ratio(features),
        "two_nn": two_nn(features).value,
        "class_separability": class_separability(features, labels),
        "silhouette": silhouette(features, labels),
        "nc1": nc1(features, labels),
        "nc2_norms": nc2(features, labels).norms,
        "nc2_angles": nc2(features, labels).angles,
        "nc3": nc3(features, labels, weights),
        "nc4": nc4(features, labels, predictions),
        "class_mean_accuracy": nc4(features, labels, labels),
        "sparsity": sparsity(features),
        "sparseness": sparseness(features),
        "dead_units": dead_units(features),
        "norm_mean": feature_norms(features).mean,
        "norm_deviation": feature_norms(features).deviation,
    }
    assert result.measures == tuple(GEOMETRY_MEASURES) == tuple(expected)
    row = result.layers.index(name)
    for measure, value in expected.items():
        assert result.values[measure][row] == pytest.approx(value, rel=1e-6, abs=1e-9), measure
    assert result.widths == (12, 400, 20)


def test_values_lie_in_the_ranges_that_the_definitions_give():
    features_by_layer, labels = layers()
    result = measure_geometry(features_by_layer, labels, classifier=Classifier(predictions=labels))
    for name, measure in GEOMETRY_MEASURES.items():
        values = result.values[name][np.isfinite(result.values[name])]
        assert name == "nc3" or len(values) == 3
        assert measure.lowest is None or (values >= measure.lowest).all()
        assert measure.highest is None or (values <= measure.highest).all()
        assert measure.direction.startswith(("higher: ", "lower: "))
        assert measure.definition.endswith(".")
        assert all((measure.title, measure.unit, measure.source))


def accumulate(features_by_layer, labels, indices, **options):
    accumulator = GeometryAccumulator(**options)
    for layer, features in features_by_layer.items():
        for rows in np.array_split(indices, 5):
            accumulator.update(layer, torch.from_numpy(features[rows]), labels[rows], rows)
    return accumulator


@pytest.mark.parametrize("sample", [100, 1000])
def test_merged_parts_in_any_order_equal_one_pass(rng, sample):
    features_by_layer, labels = layers()
    whole = GeometryAccumulator(sample=sample, seed=3)
    for layer, features in features_by_layer.items():
        whole.update(layer, features, labels)
    order = rng.permutation(240)
    merged = accumulate(features_by_layer, labels, order[150:], sample=sample, seed=3)
    merged.merge(accumulate(features_by_layer, labels, order[:150], sample=sample, seed=3))
    assert_same(merged.result(model="m"), whole.result(model="m"))
    if sample == 1000:
        direct = measure_geometry(features_by_layer, labels, seed=3, model="m")
        assert_same(whole.result(model="m"), direct)


def test_classes_may_appear_late_and_layers_far_from_zero_merge_exactly(rng):
    features, labels = blobs(samples=200)
    features = features + 1e4 * rng.normal(size=12)
    order = np.argsort(labels, kind="stable")
    parts = accumulate({"a": features}, labels, order)
    whole = measure_geometry({"a": features}, labels)
    assert_same(parts.result(), whole, rel=1e-5)


def test_features_may_be_overwritten_after_they_were_added():
    features, labels = blobs()
    wide = np.tile(features, 30)
    accumulator, expected = GeometryAccumulator(), measure_geometry({"a": wide}, labels)
    shared = torch.from_numpy(wide.copy())
    accumulator.update("a", shared, labels)
    shared.zero_()
    assert_same(accumulator.result(), expected)


def test_the_seed_decides_sample_and_groups():
    features_by_layer, labels = layers()
    results = [
        measure_geometry(features_by_layer, labels, seed=seed, sample=50) for seed in (0, 0, 1)
    ]
    assert_same(results[0], results[1], rel=0)
    assert results[0].values["two_nn"][0] != results[2].values["two_nn"][0]
    assert results[0].values["norm_mean"][0] == pytest.approx(results[2].values["norm_mean"][0])
    assert results[0].standard_errors["norm_mean"][0] != results[2].standard_errors["norm_mean"][0]
    assert results[0].samples_by_measure["nc1"].tolist() == [240, 50, 240]
    assert results[0].samples_by_measure["two_nn"].tolist() == [50, 50, 50]


# ------------------------------------------------------------------------ intervals


def test_jackknife_of_a_mean_over_equal_groups_is_the_spread_of_group_means(rng):
    groups = rng.normal(size=(10, 7))
    left_out = [np.delete(groups, index, axis=0).mean() for index in range(10)]
    error, factor = jackknife(groups.mean(), left_out, [7] * 10)
    assert error == pytest.approx(groups.mean(axis=1).std(ddof=1) / math.sqrt(10))
    assert factor == pytest.approx(2.262157, abs=1e-6)  # Student's t, 9 degrees of freedom


def test_jackknife_weighs_groups_of_unequal_size(rng):
    errors, means = [], []
    for _ in range(2000):
        sizes = [2, 5, 9, 3, 8, 12, 4, 7, 20, 6]
        parts = [rng.normal(size=size) for size in sizes]
        total, count = sum(part.sum() for part in parts), sum(sizes)
        left_out = [(total - part.sum()) / (count - len(part)) for part in parts]
        means.append(total / count)
        errors.append(jackknife(means[-1], left_out, sizes)[0])
    assert np.mean(np.square(errors)) == pytest.approx(1 / count, rel=0.05)


COVERED = ["effective_rank", "participation_ratio", "class_separability", "silhouette", "nc1",
           "nc2_norms", "class_mean_accuracy", "sparseness", "norm_mean"]  # fmt: skip


@pytest.mark.slow
def test_intervals_cover_at_their_rate():
    results = []
    for seed in range(150):
        features, labels = blobs(seed, samples=200, classes=3, width=8, noise=1.5)
        results.append(measure_geometry({"a": features}, labels, measures=COVERED, seed=seed))
    for measure in COVERED:
        values, low, high = (
            np.array([getattr(result, name)[measure][0] for result in results])
            for name in ("values", "low", "high")
        )
        # At the same number of images, other images give this on average.
        covered = np.mean((low <= values.mean()) & (values.mean() <= high))
        assert 0.90 <= covered <= 0.99, measure
        errors = [result.standard_errors[measure][0] for result in results]
        assert np.mean(errors) == pytest.approx(values.std(), rel=0.2), measure


def test_what_has_no_sound_interval_says_why():
    features_by_layer, labels = layers()
    result = measure_geometry(features_by_layer, labels)
    for measure in ("effective_rank", "participation_ratio"):
        assert "number of images decides" in result.notes[f"wide/{measure}"]
        assert f"pooled/{measure}" not in result.notes
        assert np.isnan(result.low[measure]).tolist() == [False, True, False]
    assert all("can only raise" in result.notes[f"{name}/dead_units"] for name in result.layers)
    none = measure_geometry(features_by_layer, labels, groups=0)
    assert "needs 8 groups of images, and there are 1" in none.notes["pooled/nc1"]
    assert np.isnan(none.standard_errors["nc1"]).all()
    assert np.isfinite(none.low["two_nn"]).all()


def test_a_value_that_hangs_on_one_group_has_no_interval():
    features = np.zeros((100, 3))
    features[5] = 1
    result = measure_geometry({"a": features}, measures=["effective_rank"])
    assert result.values["effective_rank"][0] == pytest.approx(1)
    assert "without one group of images" in result.notes["a/effective_rank"]


# ------------------------------------------------------------------------ classifier


def test_nc3_belongs_to_the_classifiers_layer_and_nc4_to_every_layer():
    features_by_layer, labels = layers()
    means = naive_means(features_by_layer["pooled"], labels)[1]
    bias = [0.0, 5.0, 0.0, 0.0]
    head = Classifier("pooled", torch.from_numpy(means).requires_grad_(), bias)
    result = measure_geometry(features_by_layer, labels, classifier=head)
    assert result.values["nc3"][0] == pytest.approx(0, abs=1e-9)
    for layer in ("wide", "medium"):
        assert "reads this very layer" in result.reason(layer, "nc3")
    predictions = (features_by_layer["pooled"] @ means.T + bias).argmax(axis=1)
    for row, features in enumerate(features_by_layer.values()):
        expected = nc4(features, labels, predictions)
        assert result.values["nc4"][row] == pytest.approx(expected)
    accumulated = accumulate(features_by_layer, labels, np.arange(240))
    assert_same(accumulated.result(classifier=head), result)
    given = measure_geometry(
        features_by_layer, labels, classifier=Classifier(None, None, None, predictions)
    )
    np.testing.assert_array_equal(given.values["nc4"], result.values["nc4"])


def test_without_a_classifier_nc3_and_nc4_have_a_reason():
    result = measure_geometry(*layers())
    assert "needs the classifier" in result.reason("pooled", "nc4")
    assert "linear classifier" in result.reason("pooled", "nc3")
    assert result.reason("pooled", "nc1") is None
    assert np.isnan(result.values["nc4"]).all()


def test_classifiers_that_do_not_fit_are_refused():
    features_by_layer, labels = layers()
    for classifier, message in (
        (Classifier("pooled"), "needs weights, or what it predicts"),
        (Classifier("head", np.ones((4, 12))), "reads the layer 'head'"),
        (Classifier("wide", np.ones((4, 12))), "reads 12 features, but its layer has 400"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_geometry(features_by_layer, labels, classifier=classifier)
    few = measure_geometry(
        features_by_layer, labels, classifier=Classifier(predictions=labels[:10])
    )
    assert "prediction for image 10 is missing" in few.reason("wide", "nc4")


# ------------------------------------------------------------------------ corner cases


@pytest.mark.parametrize("width", [12, 400])
def test_a_layer_without_values_leaves_the_others_alone(width):
    features_by_layer, labels = layers()
    broken = np.zeros((240, width), np.float32)
    broken[200, 3] = math.nan
    mixed = {"broken": broken, "dead": np.full((240, width), 2.0), **features_by_layer}
    result = measure_geometry(mixed, labels, classifier=Classifier(predictions=labels))
    for measure in result.measures:
        assert "not all finite" in result.reason("broken", measure)
        assert np.isnan(result.values[measure][0])
    assert "same for every image" in result.reason("dead", "effective_rank")
    assert result.values["dead_units"][1] == 1
    alone = measure_geometry(features_by_layer, labels, classifier=Classifier(predictions=labels))
    for measure in result.measures:
        np.testing.assert_array_equal(result.values[measure][2:], alone.values[measure])
    parts = accumulate(mixed, labels, np.arange(240))
    assert_same(parts.result(classifier=Classifier(predictions=labels)), result)


def test_without_labels_only_measures_of_classes_are_undefined():
    features_by_layer, _ = layers()
    result = measure_geometry(features_by_layer)
    for measure in ("class_separability", "silhouette", "nc1", "nc2_norms", "class_mean_accuracy"):
        assert "at least 2 classes" in result.reason("pooled", measure)
    for measure in ("effective_rank", "two_nn", "sparsity", "norm_mean"):
        assert np.isfinite(result.values[measure]).all()


def test_a_stopped_run_keeps_the_layers_that_are_done():
    features_by_layer, labels = layers()
    done = []
    options = {
        "measures": ["norm_mean", "nc1"],
        "progress": lambda *steps: done.append(steps),
        "cancelled": lambda: len(done) == 2,
    }
    result = measure_geometry(features_by_layer, labels, **options)
    assert done == [(1, 3), (2, 3)]
    assert np.isnan(result.values["nc1"]).tolist() == [False, False, True]
    assert "stopped before this layer" in result.reason("medium", "norm_mean")
    assert result.widths == (12, 400, 20)
    done.clear()
    assert_same(accumulate(features_by_layer, labels, np.arange(240)).result(**options), result)


def test_options_that_make_no_sense_are_refused():
    features_by_layer, labels = layers()
    with pytest.raises(ValueError, match="no measure 'rank' of geometry; choose from effective"):
        measure_geometry(features_by_layer, labels, measures=["rank"])
    with pytest.raises(ValueError, match="8 groups of images or more, but 4"):
        measure_geometry(features_by_layer, labels, groups=4)
    with pytest.raises(ValueError, match="at least 1 image, but 0"):
        measure_geometry(features_by_layer, labels, sample=0)
    with pytest.raises(ValueError, match="numbers of images are: 3 of a, 2 of b"):
        measure_geometry({"a": np.ones((3, 2)), "b": np.ones((2, 2))})
    with pytest.raises(ValueError, match="numbers of images are: none"):
        measure_geometry({})
    with pytest.raises(ValueError, match="at least one batch of images"):
        GeometryAccumulator().result()


def test_batches_that_do_not_fit_are_refused():
    features, labels = blobs()
    accumulator = GeometryAccumulator()
    accumulator.update("a", features, labels)
    with pytest.raises(ValueError, match="batches of a differ in width: 12 and 11"):
        accumulator.update("a", features[:, 1:], labels)
    with pytest.raises(ValueError, match="image 3 was added twice"):
        accumulator.update("a", features[:2], labels[:2], [400, 3])
    for indices in ([1, 2, 3], [0.5, 1.5]):
        with pytest.raises(ValueError, match="as many whole numbers as indices"):
            accumulator.update("a", features[:2], labels[:2], indices)
    with pytest.raises(ValueError, match="groups, sample and seed are the same"):
        accumulator.merge(GeometryAccumulator(seed=1))


def test_importing_geometry_loads_neither_torch_nor_scikit_learn_nor_scipy():
    code = (
        "import sys, analysis.geometry, analysis.projection;"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'umap') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
