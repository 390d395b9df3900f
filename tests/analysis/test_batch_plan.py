"""How images are cut into batches, and whether their order allows it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.batch_plan import batch_plan, batch_slices, looks_sorted


@pytest.mark.parametrize(("samples", "batch_size"), [(1000, 256), (1000, 125), (9, 5), (4, 4)])
def test_batches_cover_all_images_in_order_and_differ_by_one_at_most(samples, batch_size):
    batches = batch_slices(samples, batch_size)
    sizes = [batch.stop - batch.start for batch in batches]
    assert len(batches) == -(-samples // batch_size)
    assert np.concatenate([np.arange(samples)[batch] for batch in batches]).tolist() == list(
        range(samples)
    )
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("samples", "batch_size"), [(0, 4), (10, 0)])
def test_batches_of_nothing_are_refused(samples, batch_size):
    with pytest.raises(ValueError, match="must be at least 1"):
        batch_slices(samples, batch_size)
    with pytest.raises(ValueError, match="must be at least 1"):
        batch_plan(samples, batch_size)


@pytest.mark.parametrize("batch_size", [4, 7, 64, 256])
def test_a_plan_has_eight_batches_wherever_there_are_images_enough(batch_size):
    for samples in [*range(4, 140), 1000, 2048, 2049, 10_000]:
        if samples // -(-samples // batch_size) < 4:
            with pytest.raises(ValueError, match="at least 4 images in every batch"):
                batch_plan(samples, batch_size)
        else:
            check_plan(batch_plan(samples, batch_size), samples, batch_size)


def check_plan(plan, samples, batch_size):
    assert sum(plan.batch_sizes) == plan.samples == samples
    assert [batch.start for batch in plan.slices[1:]] == [batch.stop for batch in plan.slices[:-1]]
    assert min(plan.batch_sizes) >= 4
    assert max(plan.batch_sizes) == plan.batch_size <= batch_size
    assert max(plan.batch_sizes) - min(plan.batch_sizes) <= 1
    assert len(plan.slices) >= min(8, samples // 4)


def test_a_plan_takes_the_size_asked_for_where_that_gives_enough_batches():
    plan = batch_plan(2048, 256)
    assert plan.batch_sizes == (256,) * 8
    assert plan.note == "2,048 images in 8 batches of 256"


def test_a_plan_says_why_batches_are_smaller_than_asked():
    assert batch_plan(1000, 256).note == (
        "1,000 images in 8 batches of 125, smaller than the 256 asked for, so that intervals rest "
        "on 8 batches"
    )


@pytest.mark.parametrize(("ragged", "sizes"), [(1, "232 or 233"), (2, "232 or 233"), (3, "233")])
def test_a_ragged_last_batch_of_one_to_three_images_is_spread_over_all(ragged, sizes):
    plan = batch_plan(2560 + ragged, 256)
    assert min(plan.batch_sizes) >= 232
    assert plan.note == (
        f"{2560 + ragged:,} images in 11 batches of {sizes}; the last {ragged} were spread over "
        "all, not left as a short batch"
    )


def test_sorted_labels_are_noticed_and_shuffled_ones_are_not():
    rng = np.random.default_rng(0)
    for classes in (2, 10, 100):
        labels = np.repeat(np.arange(classes), 1000 // classes)
        assert looks_sorted(labels)
        assert looks_sorted(labels.tolist())
        assert not any(looks_sorted(rng.permutation(labels)) for _ in range(200))


def test_labels_in_runs_are_noticed_however_the_classes_lie():
    rng = np.random.default_rng(0)
    runs = np.repeat(rng.integers(0, 10, 100), 10)
    assert looks_sorted(runs)


def test_uneven_classes_in_random_order_are_not_called_sorted():
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(1000) < 950, 0, 1)
    assert not any(looks_sorted(rng.permutation(labels)) for _ in range(200))


@pytest.mark.parametrize("labels", [[], [3], [1] * 50, list(range(50))])
def test_labels_that_have_no_order_to_speak_of_are_not_sorted(labels):
    assert not looks_sorted(labels)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(N,\), but they have \(3, 2\)"):
        looks_sorted(np.zeros((3, 2)))
