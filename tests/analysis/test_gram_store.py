"""Grams on disk: what comes back, what is refused, what goes first."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from analysis.cka import CKAAccumulator
from analysis.gram import centred_gram, packed
from analysis.gram_store import GramStore, gram_key

QUESTION = {"checkpoint": "c", "images": "i", "layer": "l", "batch_sizes": (8, 8)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def store(tmp_path):
    return GramStore(tmp_path / "grams")


@pytest.fixture
def grams(rng):
    return [centred_gram(rng.normal(size=(20, 9)).astype(np.float32)) for _ in range(3)]


def test_grams_come_back_packed_and_rounded_by_less_than_a_step(store, grams):
    assert store.get("key") is None
    assert store.put("key", grams)
    for kept, matrix in zip(store.get("key"), grams, strict=True):
        assert kept.dtype == np.float32
        step = np.abs(matrix).max() / (2**15 - 1)
        assert np.abs(kept - packed(matrix)).max() <= 0.51 * step


@pytest.mark.parametrize("spread", [1, 50])
def test_cka_of_kept_grams_is_the_same_to_three_millionths(store, rng, spread):
    """`spread` stretches one image, so that one row holds the largest entries."""
    shared = rng.normal(size=(512, 8))
    fresh, kept = (CKAAccumulator({"m": ["x", "y", "z"]}) for _ in range(2))
    layers = {}
    for name in "xyz":
        features = (shared @ rng.normal(size=(8, 60)) + rng.normal(size=(512, 60))).astype("f4")
        features[3] *= spread
        layers[name] = [centred_gram(features[start : start + 128]) for start in range(0, 512, 128)]
        store.put(name, layers[name])
    found = {name: store.get(name) for name in "xyz"}
    for index in range(4):
        fresh.update({("m", name): layers[name][index] for name in "xyz"})
        kept.update({("m", name): found[name][index] for name in "xyz"})
    np.testing.assert_allclose(kept.result().values, fresh.result().values, atol=3e-6)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e80])
def test_grams_of_any_size_come_back(store, grams, scale):
    scaled = [matrix.astype(np.float64) * scale for matrix in grams]
    store.put("key", scaled)
    for kept, matrix in zip(store.get("key"), scaled, strict=True):
        assert np.abs(kept - packed(matrix)).max() <= 2e-5 * np.abs(matrix).max()


def test_marks_of_layers_without_a_value_come_back(store):
    marks = [
        centred_gram(np.ones((8, 3))),
        centred_gram(np.full((8, 3), np.nan)),
        centred_gram(np.eye(8)),
    ]
    store.put("key", marks)
    for kept, mark in zip(store.get("key"), marks, strict=True):
        np.testing.assert_array_equal(kept, packed(mark))


def test_a_resnet56_over_2048_images_takes_less_than_15_mb(store, rng):
    matrices = [centred_gram(rng.normal(size=(256, 20)).astype(np.float32)) for _ in range(8)]
    store.put("layer", matrices)
    assert 28 * store.size() < 15e6


def test_keys_tell_everything_apart_that_grams_depend_on():
    changes = [
        {},
        {"checkpoint": "other"},
        {"images": "other"},
        {"layer": "other"},
        {"batch_sizes": (16,)},
        {"kernel": "rbf", "bandwidth": 0.4},
        {"kernel": "rbf", "bandwidth": 0.8},
        {"pooling": 1},
        {"pooling": 2},
        {"precision": "bf16"},
    ]
    assert len({gram_key(**{**QUESTION, **change}) for change in changes}) == len(changes)
    assert gram_key(**QUESTION, bandwidth=0.4) == gram_key(**QUESTION)
    assert gram_key(**{**QUESTION, "batch_sizes": [np.int64(8), 8]}) == gram_key(**QUESTION)


# ------------------------------------------------------------------------ damage


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another format":
        path.write_bytes(b"something else that is long enough to have a header")
    else:
        content[int(how)] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["cut", "empty", "another format", "0", "17", "21", "30", "60", "200", "-1"]
)
def test_a_damaged_file_is_as_good_as_none_and_is_made_anew(store, grams, how):
    store.put("key", grams)
    (path,) = store.folder.iterdir()
    damage(path, how)
    assert store.get("key") is None
    assert not path.exists()
    store.put("key", grams)
    assert len(store.get("key")) == 3


def test_a_writer_that_dies_leaves_no_entry(store, grams, monkeypatch):
    def fail(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        store.put("key", grams)
    assert list(store.folder.iterdir()) == []
    assert store.get("key") is None


def test_half_written_files_of_dead_writers_go_and_those_of_living_ones_stay(store, grams):
    store.put("first", grams)
    old, new = store.folder / ".writing-old", store.folder / ".writing-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.put("second", grams)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_written_keeps_nothing_and_breaks_nothing(tmp_path, grams):
    (tmp_path / "file").write_text("in the way")
    store = GramStore(tmp_path / "file")
    assert not store.put("key", grams)
    assert store.get("key") is None


def test_many_writers_of_one_entry_leave_a_whole_one(store, grams):
    writers = [threading.Thread(target=store.put, args=("key", grams)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(store.get("key")) == 3
    assert [path.name for path in store.folder.iterdir()] == ["key.gram"]


# ------------------------------------------------------------------------ room


def test_what_was_not_used_for_longest_goes_first(tmp_path, grams):
    store = GramStore(tmp_path)
    store.put("a", grams)
    store.max_bytes = 3 * store.size()
    for age, key in enumerate("bc"):
        store.put(key, grams)
        os.utime(tmp_path / f"{key}.gram", (1000 + age, 1000 + age))
    os.utime(tmp_path / "a.gram", (500, 500))
    assert store.get("a") is not None  # used now
    store.put("d", grams)
    assert store.get("b") is None
    assert all(store.get(key) is not None for key in "acd")
    assert store.size() <= store.max_bytes


def test_an_entry_larger_than_the_store_is_not_kept_and_drives_nothing_out(tmp_path, grams):
    store = GramStore(tmp_path)
    store.put("a", grams)
    store.max_bytes = store.size()
    assert not store.put("b", grams * 2)
    assert store.get("a") is not None
