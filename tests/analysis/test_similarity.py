"""The interface of all measures: what each says of itself, maps of layers, intervals, reasons."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from analysis.arrays import UndefinedError
from analysis.cca import PWCCA, SVCCA
from analysis.neighbours import MutualNeighbours
from analysis.predictivity import LinearPredictivity
from analysis.procrustes import Procrustes
from analysis.rsa import RSA
from analysis.similarity import MEASURES, similarity, similarity_map

# With these options no measure depends on where zero is.
SHIFT_INVARIANT = [
    SVCCA(),
    SVCCA(variance=1),
    PWCCA(),
    Procrustes("distance"),
    Procrustes("similarity"),
    RSA("euclidean"),
    RSA("euclidean", "pearson"),
    MutualNeighbours(5, "euclidean"),
    LinearPredictivity(),
]
EVERY = [*SHIFT_INVARIANT, RSA(), RSA("cosine", "kendall"), MutualNeighbours(5)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def related(rng):
    """Features of 60 images, in fp32: two layers that share some of their content."""
    shared = rng.normal(size=(60, 2, 3, 2)) + 0.5
    x = np.concatenate([shared, rng.normal(size=(60, 1, 3, 2))], axis=1).astype(np.float32)
    y = (shared[:, :1] + rng.normal(size=(60, 1, 3, 2))).astype(np.float32)
    return x, y


@pytest.fixture
def layers(rng):
    """Two models of 60 images: three and two layers of which only the first are alike."""
    x = rng.normal(size=(60, 5))
    model_a = {"one": x, "two": np.tanh(x @ rng.normal(size=(5, 7))), "three": x[:, :3] ** 2}
    return model_a, {"one": x + 0.3 * rng.normal(size=(60, 5)), "two": rng.normal(size=(60, 4))}


# ------------------------------------------------------------------- what measures say


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_describes_itself(name):
    measure = MEASURES[name]()
    low, high = measure.range
    assert low < high
    assert measure.direction in ("higher is more alike", "lower is more alike")
    assert measure.title
    assert all(measure.invariances)
    assert measure.sample_limit >= 1000


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_a_layer_is_as_much_like_itself_as_the_range_and_direction_say(related, measure):
    low, high = measure.range
    best = high if measure.direction.startswith("higher") else low
    assert similarity(related[0], related[0], measure) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_symmetric_measures_are_and_others_are_not(related, measure):
    x, y = related
    there, back = similarity(x, y, measure), similarity(y, x, measure)
    assert (abs(there - back) < 1e-10) == measure.symmetric


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_values_of_layers_in_between_lie_inside_the_range(related, measure):
    low, high = measure.range
    assert low < similarity(*related, measure) < high


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
@pytest.mark.parametrize("measure", SHIFT_INVARIANT, ids=str)
def test_values_are_unchanged_far_from_zero_and_at_any_scale(related, measure, scale, offset):
    x, y = (features.astype(np.float64) for features in related)
    moved = ((x + offset) * scale).astype(np.float32)
    assert similarity(moved, y, measure) == pytest.approx(similarity(x, y, measure), abs=1e-4)
    assert similarity(y, moved, measure) == pytest.approx(similarity(y, x, measure), abs=1e-4)


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_scale_changes_nothing(related, measure):
    x, y = related
    for scale in (1e-3, 1e3):
        value = similarity(scale * x, y / scale, measure)
        assert value == pytest.approx(similarity(x, y, measure), abs=1e-4)


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_tensors_of_any_precision_count_as_arrays_do(related, measure):
    x, y = (torch.from_numpy(features).bfloat16() for features in related)
    expected = similarity(x.double().numpy(), y.float().numpy(), measure)
    assert similarity(x.requires_grad_(), y, measure) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_prepared_layers_do_not_change_when_features_are_overwritten(rng, measure):
    for width in (7, 50):
        if width == 50 and isinstance(measure, SVCCA | PWCCA):
            continue
        features = torch.from_numpy(rng.normal(size=(30, width)))
        kept = features.clone()
        prepared = measure.prepare(features)
        features.zero_()
        again = measure.prepare(kept)
        value = measure.compare(prepared, again)
        assert value == pytest.approx(measure.compare(again, again), abs=1e-12)


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_constant_and_infinite_features_say_so(related, measure):
    x, y = related
    with pytest.raises(ValueError, match="undefined for features_b: .* same for every image"):
        similarity(x, np.full((60, 4), 0.1, np.float32), measure)
    broken = y.copy()
    broken[3, 0] = np.nan
    with pytest.raises(ValueError, match="undefined for features_a: .* not all finite"):
        similarity(broken, x, measure)


def test_different_numbers_of_images_are_refused(rng):
    with pytest.raises(ValueError, match="there are 5 of features_a and 6 of features_b"):
        similarity(rng.normal(size=(5, 2)), rng.normal(size=(6, 2)), SVCCA())


# -------------------------------------------------------------------------------- maps


class Counting(Mapping):
    """Layers that are made when asked for."""

    def __init__(self, features):
        self.features, self.asked = features, []

    def __getitem__(self, name):
        self.asked.append(name)
        return self.features[name]

    def __iter__(self):
        return iter(self.features)

    def __len__(self):
        return len(self.features)


@pytest.mark.parametrize("measure", [kind() for kind in MEASURES.values()], ids=str)
def test_a_map_holds_what_pair_by_pair_gives(layers, measure):
    lazy = tuple(map(Counting, layers))
    result = similarity_map(*lazy, measure)
    assert (result.rows, result.columns) == (("one", "two", "three"), ("one", "two"))
    for row, name_a in enumerate(result.rows):
        for column, name_b in enumerate(result.columns):
            expected = similarity(layers[0][name_a], layers[1][name_b], measure)
            assert result.values[row, column] == pytest.approx(expected, abs=1e-12)
    assert [mapping.asked for mapping in lazy] == [list(mapping) for mapping in lazy]
    assert result.undefined == {}
    assert type(measure) is MEASURES[result.measure]
    assert MEASURES[result.measure](**json.loads(json.dumps(result.options))) == measure
    assert (result.range, result.direction) == (measure.range, measure.direction)
    assert np.isnan(result.standard_errors).all()


@pytest.mark.parametrize("measure", [Procrustes(), PWCCA()], ids=str)
def test_a_model_with_itself_is_prepared_once(layers, measure):
    lazy = Counting(layers[0])
    result = similarity_map(lazy, lazy, measure, groups=10)
    twice = similarity_map(layers[0], dict(layers[0]), measure, groups=10)
    assert lazy.asked == list(layers[0])
    np.testing.assert_allclose(result.values, twice.values, atol=1e-12)
    np.testing.assert_allclose(result.standard_errors, twice.standard_errors, atol=1e-10)


def test_predictors_of_a_row_are_let_go_after_the_row(layers, monkeypatch):
    kept = []
    prepare = LinearPredictivity.prepare
    monkeypatch.setattr(
        LinearPredictivity,
        "prepare",
        lambda *arguments: kept.append(prepare(*arguments)) or kept[-1],
    )
    similarity_map(*layers, LinearPredictivity())
    assert len(kept) == 5
    assert all("folds" not in vars(prepared) for prepared in kept)


def test_undefined_layers_leave_the_others_alone_and_say_why(layers, rng):
    model_a, model_b = layers
    model_a["two"] = np.ones((60, 4))
    model_b["wide"] = rng.normal(size=(60, 90))
    result = similarity_map(model_a, model_b, PWCCA())
    missing = np.isnan(result.values)
    np.testing.assert_array_equal(missing, [[0, 0, 1], [1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(np.isnan(result.chance), missing)
    assert set(result.undefined) == {"a/two", "b/wide"}
    assert result.reason(0, 0) is None
    assert "the same for every image" in result.reason(1, 2)
    assert "90 features for 60 images" in result.reason(0, 2)


def test_a_model_with_itself_has_reasons_on_both_sides(layers):
    model = {**layers[0], "flat": np.zeros((60, 2))}
    result = similarity_map(model, model, RSA("euclidean"))
    assert "same for every image" in result.reason(0, 3)
    assert "same for every image" in result.reason(3, 0)


class NoPair(Procrustes):
    """A measure with a hole."""

    def compare(self, prepared_a, prepared_b):
        if prepared_a.features.shape != prepared_b.features.shape:
            raise UndefinedError("their widths differ")
        return super().compare(prepared_a, prepared_b)


def test_undefined_pairs_say_why(layers):
    model = layers[0]
    result = similarity_map(model, model, NoPair())
    assert result.reason(0, 0) is None
    assert result.reason(0, 1) == result.reason(1, 0) == "their widths differ"
    with pytest.raises(ValueError, match="undefined for this pair: their widths differ"):
        similarity(model["one"], model["two"], NoPair())


def test_more_images_than_the_limit_are_drawn_at_random_and_recorded(layers):
    result = similarity_map(*layers, Procrustes(), sample_limit=25, seed=3)
    chosen = np.sort(np.random.default_rng(3).choice(60, 25, replace=False))
    expected = similarity(layers[0]["two"][chosen], layers[1]["one"][chosen], Procrustes())
    assert result.values[1, 0] == pytest.approx(expected, abs=1e-12)
    assert (result.samples, result.seed) == (25, 3)
    assert "25 of 60 images were drawn at random with seed 3" in result.notes
    other = similarity_map(*layers, Procrustes(), sample_limit=25, seed=4)
    assert abs(other.values[1, 0] - result.values[1, 0]) > 1e-3
    everything = similarity_map(*layers, Procrustes())
    assert (everything.samples, everything.notes[:1]) == (60, ())


def test_a_high_chance_level_is_told(rng):
    narrow, wide = ({"x": rng.normal(size=(400, width))} for width in (5, 200))
    assert similarity_map(narrow, narrow, SVCCA()).notes == ()
    for measure in (SVCCA(), PWCCA(), Procrustes(), Procrustes("similarity")):
        result = similarity_map(wide, wide, measure)
        level = {"lower": 2 - 2 * 0.7, "higher": 0.7}[measure.direction.split()[0]]
        assert result.chance[0, 0] == pytest.approx(level, abs=0.1)
        (note,) = result.notes
        assert "400 images are few for these features: in 1 of 1 cells" in note
        assert f"would score about {result.chance[0, 0]:.2f}" in note


def test_no_layers_different_images_and_odd_options_are_refused(layers, rng):
    with pytest.raises(ValueError, match="there are 0 and 2"):
        similarity_map({}, layers[1], RSA())
    with pytest.raises(ValueError, match="there are 60 of a/one and 59 of b/short"):
        similarity_map(layers[0], {"short": rng.normal(size=(59, 3))}, RSA())
    with pytest.raises(ValueError, match="a jackknife needs 10 or more groups.*groups is 5"):
        similarity_map(*layers, RSA(), groups=5)
    with pytest.raises(ValueError, match="sample_limit must be at least 3, but it is 2"):
        similarity_map(*layers, RSA(), sample_limit=2)


# ----------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("groups", [0, 10])
@pytest.mark.parametrize("same", [False, True])
def test_progress_counts_every_step(layers, groups, same):
    seen = []
    model_b = layers[0] if same else layers[1]
    similarity_map(
        layers[0], model_b, RSA(), groups=groups, progress=lambda *step: seen.append(step)
    )
    total = 3 + len(model_b) + 3 + groups * 4
    assert {step[1] for step in seen} == {total}
    skipped = range(3, 6) if same else ()
    assert [step[0] for step in seen] == [at for at in range(total) if at not in skipped]


def test_a_stopped_run_keeps_what_it_has_and_says_what_is_missing(layers):
    whole = similarity_map(*layers, RSA())
    for after in range(9):
        answers = iter([False] * after + [True] * 20)
        result = similarity_map(*layers, RSA(), groups=10, cancelled=answers.__next__)
        done = max(after - 5, 0)
        np.testing.assert_array_equal(result.values[:done], whole.values[:done])
        assert np.isnan(result.values[done:]).all()
        assert np.isnan(result.standard_errors).all()
        assert result.notes[0] == "the run was stopped: what was compared until then is here"
        if done < 3:
            assert "stopped before this pair" in result.reason(2, 1)


def test_a_run_stopped_among_the_intervals_keeps_the_values(layers):
    whole = similarity_map(*layers, RSA())
    answers = iter([False] * 20 + [True] * 20)
    result = similarity_map(*layers, RSA(), groups=10, cancelled=lambda: next(answers))
    np.testing.assert_array_equal(result.values, whole.values)
    assert np.isnan(result.low).all()
    assert result.undefined == {}


# ---------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_standard_errors_are_those_of_leaving_out_group_after_group(related, measure):
    x, y = (features.reshape(60, -1).astype(np.float64) for features in related)
    result = similarity_map({"x": x}, {"y": y}, measure, groups=10, seed=5)
    left_out = []
    for group in np.array_split(np.random.default_rng(5).permutation(60), 10):
        kept = np.setdiff1d(np.arange(60), group)
        if isinstance(measure, LinearPredictivity):  # each image stays in its fold
            whole = measure.prepare(x), measure.prepare(y)
            left_out.append(measure.compare(*(measure.restrict(part, kept) for part in whole)))
        else:
            left_out.append(similarity(x[kept], y[kept], measure))
    expected = np.sqrt(9 / 10 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    error, value = result.standard_errors[0, 0], result.values[0, 0]
    assert error == pytest.approx(expected, rel=1e-6)
    # Student's t with 9 degrees of freedom, from a printed table.
    assert result.low[0, 0] == pytest.approx(value - 2.262 * error, rel=1e-3)
    assert result.high[0, 0] == pytest.approx(value + 2.262 * error, rel=1e-3)
    assert "intervals cover the choice of images, not of training runs" in result.notes
    assert (measure.interval_caution in result.notes) == bool(measure.interval_caution)


def test_restricted_predictors_stay_in_their_folds(related):
    measure = LinearPredictivity()
    whole = measure.prepare(related[0])
    kept = np.arange(0, 60, 2)
    part = measure.restrict(whole, kept)
    np.testing.assert_array_equal(part.fold_by_image, whole.fold_by_image[kept])
    flat = related[0].reshape(60, -1).astype(np.float64)[kept]
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (part.features, flat)]
    np.testing.assert_allclose(*distances, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure", [RSA("euclidean"), LinearPredictivity(), Procrustes("similarity")], ids=str
)
def test_intervals_cover_the_mean_of_many_draws(measure):
    mixing = np.random.default_rng(1).normal(size=(2, 4, 6))

    def draw(seed):
        rng = np.random.default_rng(seed)
        content = rng.normal(size=(100, 4))
        return [np.maximum(content @ mix + rng.normal(size=(100, 6)), 0) for mix in mixing]

    truth = np.mean([similarity(*draw(1000 + seed), measure) for seed in range(200)])
    covered = 0
    for seed in range(120):
        x, y = draw(seed)
        result = similarity_map({"x": x}, {"y": y}, measure, groups=10, seed=seed)
        covered += result.low[0, 0] <= truth <= result.high[0, 0]
    # 0.95 give or take three standard errors of 120 trials.
    assert 0.89 < covered / 120 <= 1


def test_too_few_images_for_the_groups_leave_intervals_out_and_say_so(rng):
    x = {"x": rng.normal(size=(19, 2))}
    result = similarity_map(x, x, RSA("euclidean"), groups=10)
    assert np.isnan(result.low).all()
    assert "intervals are missing: 10 groups need two images each, and there are 19" in result.notes
    assert not np.isnan(result.values).any()


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize(
    "measure",
    [Procrustes(), SVCCA(), RSA("euclidean"), MutualNeighbours(3, "euclidean")],
    ids=str,
)
def test_a_layer_that_one_image_alone_moves_has_a_value_but_no_interval(rng, measure, width):
    lonely = np.tile(rng.normal(size=width), (40, 1))
    lonely[7] += rng.normal(size=width)
    model = {"lonely": lonely, "full": rng.normal(size=(40, 3))}
    result = similarity_map(model, {"full": model["full"]}, measure, groups=10)
    assert not np.isnan(result.values).any()
    assert np.isnan(result.standard_errors[0, 0])
    assert not np.isnan(result.standard_errors[1, 0])
    assert any("intervals of 1 cells are missing" in note for note in result.notes)
    assert result.undefined == {}


def test_importing_the_measures_loads_no_heavy_library():
    code = (
        "import sys, analysis.similarity as s; [kind() for kind in s.MEASURES.values()];"
        "print([n for n in ('torch', 'scipy', 'sklearn', 'auglocal') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
