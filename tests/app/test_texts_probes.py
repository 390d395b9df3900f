"""Words and tables about probes."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from analysis.paired import compare_layers
from app import texts_probes
from app.texts_probes import ANYTHING, CLASSIFIER, Gallery
from tests.app.conftest import make_probe

LAYERS = ("stem", "middle", "last")
LABELS = np.array([0, 0, 1, 1, 2])
# Image 1 is mended by the last layer, image 2 is lost by it, image 4 is wrong everywhere.
PREDICTIONS = np.array([[0, 2, 1, 0, 1], [0, 1, 1, 1, 1], [0, 0, 2, 1, 1]])
CONFIDENCE = np.array([[0.5, 0.6, 0.5, 0.9, 0.7]] * 3)
CLASSES = ("ant", "bee", "cat")


def probe_with(**values):
    probe = make_probe("net", layers=LAYERS)
    values = {"predictions": PREDICTIONS, "confidence": CONFIDENCE, **values}
    return replace(probe, classifier_predictions=np.array([0, 0, 1, 1, 1]), **values)


def chosen(**values):
    return texts_probes.chosen_images(probe_with(), LABELS, Gallery(**values)).tolist()


def test_a_gallery_holds_what_a_layer_gets_wrong_and_a_later_one_right_surest_first():
    assert chosen(layer="stem", later="last") == [3, 1]


def test_the_other_way_round_are_images_that_are_lost():
    assert chosen(layer="stem", later="last", mended=False) == [2]


def test_without_a_later_layer_all_that_is_wrong_counts():
    assert chosen(layer="stem", later=ANYTHING) == [3, 4, 1]
    assert chosen(layer="stem", later=ANYTHING, mended=False) == [0, 2]


def test_the_network_s_own_classifier_counts_as_a_later_layer():
    assert chosen(layer="middle", later=CLASSIFIER) == [1]


def test_a_gallery_can_be_narrowed_to_a_cell_of_the_confusions():
    assert chosen(layer="stem", later="last", true_class=0) == [1]
    assert chosen(layer="stem", later="last", predicted=0) == [3]
    assert chosen(layer="stem", later="last", true_class=0, predicted=1) == []


def test_a_layer_without_a_probe_has_no_images():
    probe = probe_with(predictions=np.array([[-1] * 5, PREDICTIONS[1], PREDICTIONS[2]]))
    for mended in (True, False):
        gallery = Gallery("stem", "last", mended)
        assert texts_probes.chosen_images(probe, LABELS, gallery).size == 0
    assert texts_probes.chosen_images(probe, LABELS, Gallery("middle", "stem")).size == 0


def test_the_last_layer_can_be_held_against_the_classifier_or_nothing():
    assert texts_probes.later_choices(probe_with(), "last") == [CLASSIFIER, ANYTHING]
    assert texts_probes.later_choices(probe_with(), "stem") == [
        *("last", "middle"),
        *(CLASSIFIER, ANYTHING),
    ]
    without = replace(probe_with(), classifier_predictions=None)
    assert texts_probes.later_choices(without, "last") == [ANYTHING]


def test_the_sentence_says_what_the_images_are():
    gallery = Gallery("stem", CLASSIFIER, True, 0, 2)
    assert texts_probes.gallery_sentence(gallery, CLASSES, 1, 1000) == (
        "**1 of 1,000 images** that stem gets wrong and the network's own classifier gets right, "
        "of class ant, read here as cat"
    )
    gallery = Gallery("stem", ANYTHING, False)
    assert texts_probes.gallery_sentence(gallery, CLASSES, 2, 5) == (
        "**2 of 5 images** that stem gets right"
    )


def test_names_of_classes_stay_text_in_a_sentence():
    gallery = Gallery("stem", ANYTHING, True, 0)
    assert "![" not in texts_probes.gallery_sentence(gallery, ["![x](http://y)"], 1, 5)


def test_a_gallery_as_a_table_names_images_and_classes():
    text = texts_probes.gallery_csv(
        probe_with(), LABELS, CLASSES, np.array([10, 11, 12, 13, 14]), Gallery("stem", "last")
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        "image": "3",
        "number_in_split": "13",
        "true": "bee",
        "read_at_stem": "ant",
        "confidence": "0.9",
        "read_at_last": "bee",
    }


def right(*hits):
    """Which of 40 images are right: as many as given."""
    return [np.arange(40) < count if count is not None else None for count in hits]


def test_the_paired_sentence_names_layers_that_differ_after_correction():
    probes = (make_probe("a", layers=LAYERS), make_probe("b", layers=LAYERS))
    paired = compare_layers(right(40, 20, 10), right(20, 20, 40))
    sentence = texts_probes.paired_sentence(paired, probes, ("BP, a", "AugLocal, b"))
    assert sentence.startswith("2 of 3 layers differ significantly")
    assert "the same 40 images" in sentence
    assert "correction for 3 tests" in sentence
    assert "**BP\\, a** reads more at stem;".replace("\\", "") in sentence.replace("\\", "")
    assert "**AugLocal, b** reads more at last;" in sentence.replace("\\", "")


def test_a_difference_that_correction_takes_away_is_not_called_one():
    # 6 images against none: p = 2 / 2 ** 6 = 0.031 alone, 0.094 as the smallest of three.
    probes = (make_probe("a", layers=LAYERS), make_probe("b", layers=LAYERS))
    paired = compare_layers(right(26, 20, 20), right(20, 20, 20))
    assert paired.p_values[0] == pytest.approx(2 / 2**6)
    sentence = texts_probes.paired_sentence(paired, probes, ("A", "B"))
    assert sentence.startswith("0 of 3 layers differ significantly")
    assert "reads more" not in sentence
    assert sentence.endswith("no difference is no proof of equality.")


def test_layers_without_probes_are_no_tests():
    probes = (make_probe("a", layers=LAYERS), make_probe("b", layers=LAYERS))
    paired = compare_layers(right(40, None, None), right(20, 20, 20))
    assert "correction for 1 tests" in texts_probes.paired_sentence(paired, probes, ("A", "B"))


def test_the_table_of_differences_holds_counts_and_both_p_values():
    probes = (make_probe("a", layers=LAYERS), make_probe("b", layers=LAYERS))
    paired = compare_layers(right(26, None, 20), right(20, 20, 20))
    rows = list(csv.DictReader(io.StringIO(texts_probes.paired_csv(paired, probes))))
    assert (rows[0]["only_a"], rows[0]["only_b"]) == ("6", "0")
    assert float(rows[0]["p_value_holm"]) == pytest.approx(2 * 2 / 2**6)
    assert (rows[1]["difference"], rows[1]["p_value"]) == ("", "")


def test_scores_as_a_table_leave_undefined_values_empty_with_their_reason():
    probe = make_probe("net", layers=LAYERS, undefined="stem")
    rows = list(csv.DictReader(io.StringIO(texts_probes.scores_csv([probe]))))
    assert (rows[0]["accuracy"], rows[0]["neighbours_accuracy"]) == ("", "")
    assert "same for every image" in rows[0]["reason"]
    assert float(rows[1]["accuracy"]) == pytest.approx(0.54)
    shown = texts_probes.score_rows([probe])
    assert shown[0]["Linear probe"].startswith("undefined: its features are the same")
    assert shown[1]["Linear probe"] == "54.0% (52.0% to 56.0%)"
    assert shown[1]["Nearest neighbours"] == "not kept"


def test_classes_as_a_table_have_a_line_a_cell():
    confusion = np.arange(27).reshape(3, 3, 3)
    confusion[0] = -1
    recall = np.full((3, 3), 0.25)
    recall[0] = np.nan
    probe = replace(probe_with(), confusion=confusion, recall=recall)
    rows = list(csv.DictReader(io.StringIO(texts_probes.classes_csv(probe, CLASSES))))
    assert len(rows) == 27
    assert (rows[0]["images"], rows[0]["recall_of_true"]) == ("", "")
    assert rows[9 + 3 + 2] == {
        "model": "net",
        "layer": "middle",
        "true": "bee",
        "read_as": "cat",
        "images": "14",
        "recall_of_true": "0.25",
    }


def test_runs_of_layers_are_named_by_their_ends():
    assert texts_probes.runs([0, 2, 3, 5, 6, 7, 9]) == [[0], [2], [3], [5, 6, 7], [9]]
    layers = ("a", "b", "c", "d", "e")
    probes = (make_probe("x", layers=layers), make_probe("y", layers=layers))
    paired = compare_layers(right(40, 40, 40, 20, 40), right(20, 20, 20, 20, 20))
    sentence = texts_probes.paired_sentence(paired, probes, ("X", "Y"))
    assert "**X** reads more at a to c (3 layers) and e;" in sentence.replace("\\", "")


def test_networks_that_differ_in_more_than_the_rule_are_told(make_study):
    first, second = make_study().question.checkpoints
    probes = make_study().probes[:2]
    assert texts_probes.unlike_sentence(first, second, probes) == ""
    other = replace(second, architecture="resnet32", dataset="CIFAR-10")
    told = texts_probes.unlike_sentence(first, other, probes)
    assert "architecture (resnet20 and resnet32)" in told
    assert "training data (scikit-learn digits and CIFAR-10)" in told
    assert "relative depth" not in told
    short = replace(probes[1], layers=probes[1].layers[:5])
    assert "10 and 5 layers" in texts_probes.unlike_sentence(first, other, (probes[0], short))
