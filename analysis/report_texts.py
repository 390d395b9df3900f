"""What a report says in words: titles, definitions of measures with sources, caveats, gaps.

A study in, plain texts out; nothing here is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis.figures import cka_name
from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.study import Study, StudyQuestion

MOST_NAMED = 6  # names in a list of gaps before it says how many more there are


@dataclass(frozen=True)
class Definition:
    """What a measure is: its name, a sentence or two, and who says so."""

    term: str
    meaning: str
    source: str


ESTIMATOR_MEANINGS: dict[str, str] = {
    "unbiased": "HSIC is the unbiased estimator in minibatches, every batch counting equally, so "
    "that unrelated layers score 0 on average, whatever their width.",
    "debiased": "HSIC is the unbiased estimator over all images at once.",
    "biased": "HSIC is the biased estimator over all images at once: unrelated layers score above "
    "0, the more the wider they are.",
}
KERNEL_MEANINGS: dict[str, str] = {
    "linear": "The Gram matrices hold the inner products of the images' features: unchanged by "
    "rotation and isotropic scaling of either layer, not by other linear maps.",
    "rbf": "The Gram matrices hold a Gaussian kernel of the distances between images' features, "
    "its width a multiple of their median.",
}
CKA_SOURCE = (
    "Kornblith, Norouzi, Lee and Hinton 2019; Nguyen, Raghu and Kornblith 2021 for minibatches; "
    "Song et al. 2012 for the unbiased estimator"
)

SIMILARITY_DEFINITIONS: dict[str, Definition] = {
    "svcca": Definition(
        "SVCCA",
        "The mean canonical correlation of the principal directions that hold most of each layer's "
        "variance. Few images make it high for unrelated layers too, so compare it with the chance "
        "level.",
        "Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017",
    ),
    "pwcca": Definition(
        "Projection-weighted CCA",
        "The mean canonical correlation, weighted by how much of the row's layer each variate "
        "carries. Not symmetric.",
        "Morcos, Raghu and Bengio 2018",
    ),
    "procrustes": Definition(
        "Procrustes",
        "What is left between two layers, each centred and scaled to size 1, after the best "
        "rotation of one onto the other.",
        "Ding, Denain and Steinhardt 2021; Williams, Kunz, Kornblith and Linderman 2021",
    ),
    "rsa": Definition(
        "Representational similarity (RSA)",
        "The correlation of two layers' dissimilarities over all pairs of images.",
        "Kriegeskorte, Mur and Bandettini 2008; Nili et al. 2014",
    ),
    "neighbours": Definition(
        "Mutual nearest neighbours",
        "The share of an image's nearest neighbours that two layers have in common, averaged over "
        "images.",
        "Huh, Cheung, Wang and Isola 2024",
    ),
    "predictivity": Definition(
        "Linear predictivity",
        "The cross-validated R squared of predicting the column's features from the row's by ridge "
        "regression: 1 is perfect, 0 no better than the mean. Not symmetric.",
        "Yamins et al. 2014; Golub, Heath and Wahba 1979 for the choice of the penalty",
    ),
}

PROBE_DEFINITION = Definition(
    "Linear probe",
    "Multinomial logistic regression fitted to the features of one layer on training images and "
    "scored on test images: how much about the classes can be read off linearly. Intervals of "
    "accuracy and recall are Wilson's.",
    "Alain and Bengio 2016; Wilson 1927",
)
NEIGHBOURS_DEFINITION = Definition(
    "Nearest neighbours",
    "The class that most of the nearest training images have in this layer's features: a probe "
    "without a fit.",
    "Cover and Hart 1967; Wu, Xiong, Yu and Lin 2018",
)
SCORE_DEFINITIONS = {
    "cross_entropy": Definition(
        "Cross-entropy",
        "The mean over test images of -log p(true class), in nats; lower is better. Guessing gives "
        "the logarithm of the number of classes.",
        "by definition",
    ),
    "calibration_error": Definition(
        "Expected calibration error",
        "How far the probe's confidence is from its accuracy, averaged over bins of confidence; "
        "lower is better. Chance alone makes it larger than 0.",
        "Guo, Pleiss, Sun and Weinberger 2017",
    ),
}
AUXILIARY_DEFINITION = Definition(
    "Auxiliary networks",
    "What the small networks that trained each layer locally say themselves of the same images; "
    "the checkpoint carries them.",
    "by definition",
)
PAIRED_DEFINITION = Definition(
    "Paired difference",
    "The difference of two probes' accuracies on the same images with Tango's interval, and the "
    "exact McNemar test, corrected by Holm for the number of layers. A filled point is below 0.05 "
    "after the correction; intervals are of one layer each.",
    "McNemar 1947; Tango 1998; Holm 1979",
)
PLANE_DEFINITION = Definition(
    "Plane of layers",
    "Classical multidimensional scaling of the distances sqrt(2 - 2 CKA): layers lie near each "
    "other where they are alike. The axes have no meaning of their own; the percentages are how "
    "much of all distances they hold, and what they do not hold is not seen.",
    "Torgerson 1952; Williams, Kunz, Kornblith and Linderman 2021 for the distance",
)


def definitions(study: Study) -> list[Definition]:
    """What every measure in the study means, in the order of the page."""
    found: list[Definition] = []
    if study.cka is not None:
        meaning = (
            "Centred kernel alignment: the cosine between two layers' centred Gram matrices over "
            "the same images, 1 for layers alike up to rotation and scale and about 0 for "
            "unrelated ones. "
        )
        meaning += KERNEL_MEANINGS.get(study.cka.kernel, "") + " "
        meaning += ESTIMATOR_MEANINGS.get(study.cka.estimator, "")
        found += [Definition(cka_name(study), meaning.strip(), CKA_SOURCE), PLANE_DEFINITION]
    for measure in dict.fromkeys(pair.result.measure for pair in study.similarity):
        if measure in SIMILARITY_DEFINITIONS:
            found.append(SIMILARITY_DEFINITIONS[measure])
    found += _probe_definitions(study)
    measures = dict.fromkeys(name for result in study.geometry for name in result.measures)
    for name in measures:
        if name in GEOMETRY_MEASURES:
            kind = GEOMETRY_MEASURES[name]
            meaning = f"{kind.definition} {kind.direction[0].upper()}{kind.direction[1:]}."
            found.append(Definition(kind.title, meaning, kind.source))
    return found


def _probe_definitions(study: Study) -> list[Definition]:
    """Those that belong to probes."""
    if not study.probes:
        return []
    found = [PROBE_DEFINITION]
    if any(probe.neighbours_accuracy is not None for probe in study.probes):
        found.append(NEIGHBOURS_DEFINITION)
    for name, definition in SCORE_DEFINITIONS.items():
        if any(getattr(probe, name) is not None for probe in study.probes):
            found.append(definition)
    if any(probe.auxiliary_accuracy is not None for probe in study.probes):
        found.append(AUXILIARY_DEFINITION)
    return [*found, PAIRED_DEFINITION] if study.paired else found


def caveats(study: Study) -> list[str]:
    """What a reader should keep in mind, for the measures that the study has."""
    found = [
        "Intervals are 95%, of one layer or pair of layers each, and cover the choice of images, "
        "not of training runs: another seed of the same training may differ by more."
    ]
    if study.cka is not None:
        found.append(
            "CKA follows the directions of most variance. It can be high for networks that decide "
            "differently, and move with changes that alter no decision (Davari et al. 2023)."
        )
        if study.reference("ceiling") is None or study.reference("floor") is None:
            found.append(
                "The study lacks a ceiling (a second seed of the same rule), a floor (an untrained "
                "network), or both, so that high and low similarity have no scale."
            )
        found.append("A best match is a maximum over layers, which chance lifts a little.")
    if study.probes:
        found.append(
            "A probe tells what can be read off a layer, not what the network makes of it. It is "
            f"fitted to {_features(study.question)} of each layer."
        )
    if study.question.split == "train":
        found.append("The images are of the training split: the networks have seen them.")
    return found


def _features(question: StudyQuestion) -> str:
    """What probes read."""
    size = question.probe_pooling
    if size is None:
        return "all features"
    return "globally averaged features" if size == 1 else f"features pooled to {size} x {size}"


def gaps(study: Study) -> list[str]:
    """What is undefined and why, and what the measures noted; one sentence each."""
    found: list[str] = []
    if study.cka is not None:
        found += _grouped("CKA", study.cka.undefined)
    for probe in study.probes:
        found += _grouped(f"Probes of {probe.model}", probe.undefined)
    for pair in study.similarity:
        where = f"{pair.result.title}, {pair.model_a} and {pair.model_b}"
        found += _grouped(where, _named(pair.result.undefined, pair.model_a, pair.model_b))
        found += [f"{where}: {note.rstrip('.')}." for note in pair.result.notes]
    for result in study.geometry:
        found += _grouped(f"Geometry of {result.model}", result.undefined)
        found += _grouped(f"Intervals of {result.model}'s geometry", result.notes)
    return found


def _named(undefined: Mapping[str, str], model_a: str, model_b: str) -> dict[str, str]:
    """Reasons by model and layer, where a similarity says a/ and b/."""
    names = {"a/": f"{model_a}/", "b/": f"{model_b}/"}
    return {names.get(key[:2], key[:2]) + key[2:]: why for key, why in undefined.items()}


def _grouped(where: str, undefined: Mapping[str, str]) -> list[str]:
    """One sentence a reason, with the names that it holds for."""
    names_by_reason: dict[str, list[str]] = {}
    for name in sorted(undefined, key=_in_order):
        names_by_reason.setdefault(undefined[name], []).append(name)
    return [
        f"{where}, {_listed(names)}: {reason.rstrip('.')}."
        for reason, names in names_by_reason.items()
    ]


def _in_order(name: str) -> list[tuple[int, str]]:
    """A key that puts block2 before block10; the order in a file is that of its letters."""
    parts = re.split(r"([0-9]{1,9})", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _listed(names: Iterable[str]) -> str:
    """Some names, and how many more."""
    every = list(names)
    more = len(every) - MOST_NAMED
    return ", ".join(every[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
