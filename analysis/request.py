"""What is asked of an analysis run: a frozen, validated record of images, measures and options."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.similarity import MEASURES as SIMILARITY_MEASURES

# The measures of a study by the command line's names.
MEASURES = ("cka", "probe", "geometry", *SIMILARITY_MEASURES)
KERNELS = ("linear", "rbf")
ESTIMATORS = ("unbiased", "debiased", "biased")
PRECISIONS = ("fp32", "bf16")
DEFAULT_BATCH_SIZE = 125  # 1,000 images in 8 batches: enough for a jackknife over batches
DEFAULT_SHUFFLES = 100
DEFAULT_PENALTY = 1.0
DEFAULT_NEIGHBOURS = 20


@dataclass(frozen=True)
class StudyRequest:
    """One question to some models.

    Attributes:
        dataset: a name, or "imagefolder:PATH".
        split: the split that everything is measured on.
        samples: images of it; None takes 1,000, or all where there are fewer.
        seed: decides which images, shuffles and parts.
        balanced: draw as many images of each class.
        measures: of `MEASURES`.
        batch_size: most images a batch; CKA shrinks it where it would make fewer than 8.
        kernel, bandwidth: of CKA: "linear", or "rbf" of a fraction of the median distance.
        estimator: of CKA: "unbiased" by minibatches, "debiased" or "biased" over the whole set.
        pooling: CKA of features pooled to s x s; None takes them flattened.
        precision: of CKA's Gram matrices: "fp32" or "bf16".
        num_shuffles: of CKA's null level; 0 leaves it out. Minibatches only.
        memory: most bytes that a full-set estimator may take.
        train_samples: training images of the probes; None takes 5,000, or all where there are
            fewer.
        penalty: weight of the probes' squared norm, 1 / C in scikit-learn.
        penalties: choose among these by layer, on a fifth of the training images.
        probe_pooling: probes, geometry and the measures beside CKA read features pooled to s x s;
            None takes them flattened.
        num_neighbours: of the k-nearest-neighbour probe; 0 leaves it out.
        groups: parts of the images for the jackknife of the measures beside CKA (10 or more); 0
            gives them no intervals.
        geometry_groups: the same for geometry.
        folder: where downloaded data sets lie.
        image_size: pixels; resizes the images of a folder. Where one network takes them as they are
            then, others read them at their own size.
        dataset_title: what to call the data of a folder.
        download: fetch a data set that is not there.
        title: of the study; made of the models' names if None.
        out: the file that the recorded command writes.
        grams: folder that keeps Gram matrices between runs; None keeps none.
    """

    dataset: str
    split: str = "test"
    samples: int | None = None
    seed: int = 0
    balanced: bool = False
    measures: tuple[str, ...] = ("cka", "probe")
    batch_size: int = DEFAULT_BATCH_SIZE
    kernel: str = "linear"
    bandwidth: float = 0.8
    estimator: str = "unbiased"
    pooling: int | None = None
    precision: str = "fp32"
    num_shuffles: int = DEFAULT_SHUFFLES
    memory: int | None = None
    train_samples: int | None = None
    penalty: float = DEFAULT_PENALTY
    penalties: tuple[float, ...] = ()
    probe_pooling: int | None = 1
    num_neighbours: int = DEFAULT_NEIGHBOURS
    groups: int = 0
    geometry_groups: int = 16
    folder: Path | str = "data"
    image_size: int | None = None
    dataset_title: str | None = None
    download: bool = False
    title: str | None = None
    out: str = "again.study.json"
    grams: Path | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "measures", tuple(self.measures))
        if not self.measures or not set(self.measures) <= set(MEASURES):
            raise InputError(
                f"The measures must be of {', '.join(MEASURES)}, not "
                f"{', '.join(self.measures) or 'none'}; choose at least one."
            )
        if "probe" in self.measures and self.split == "train":
            raise InputError(
                "Probes learn from training images and cannot be scored on the train split; choose "
                "another --split."
            )
        for penalty in (self.penalty, *self.penalties):
            if not 0 < penalty < math.inf:
                raise InputError(
                    f"The penalty of a probe must be above 0, not {penalty:g}; give another "
                    "--penalty."
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"There is no {name} {getattr(self, name)!r} of CKA; choose one of "
                    f"{', '.join(choices)}."
                )
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Refuse numbers below what makes sense."""
        for name, smallest in SMALLEST.items():
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                raise InputError(
                    f"The {name.replace('_', ' ')} must be at least {smallest}, not {value}; give "
                    f"another --{name.replace('_', '-')}."
                )
        if not 0 < self.bandwidth < math.inf:
            raise InputError(
                f"The bandwidth must be above 0, not {self.bandwidth:g}; give another --bandwidth."
            )
        for name in ("groups", "geometry_groups"):
            if 0 < getattr(self, name) < FEWEST_GROUPS:
                raise InputError(
                    f"A jackknife needs at least {FEWEST_GROUPS} groups of images, not "
                    f"{getattr(self, name)}; give more, or 0 for no intervals."
                )

    @property
    def similarities(self) -> tuple[str, ...]:
        """The measures beside CKA that compare two models."""
        return tuple(name for name in self.measures if name in SIMILARITY_MEASURES)

    @property
    def full_set(self) -> bool:
        """True if CKA looks at all images at once."""
        return "cka" in self.measures and self.estimator != "unbiased"

    @property
    def keeps_features(self) -> bool:
        """True if a measure needs the pooled features of all images."""
        return bool(set(self.measures) - {"cka"})

    def command_options(self) -> dict[str, Any]:
        """The options that are not at their default, as the command line spells them."""
        options = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in NOT_RECORDED and value != item.default:
                options[f"--{item.name.replace('_', '-')}"] = value
        return options


CHOICES = {"kernel": KERNELS, "estimator": ESTIMATORS, "precision": PRECISIONS}
SMALLEST = {
    "batch_size": 1,
    "seed": 0,
    "pooling": 1,
    "probe_pooling": 1,
    "num_shuffles": 0,
    "num_neighbours": 0,
    "memory": 1,
    "groups": 0,
    "geometry_groups": 0,
}
FEWEST_GROUPS = 10
# The run itself knows these better, or they say where this machine keeps things.
NOT_RECORDED = (
    "dataset",
    "split",
    "samples",
    "seed",
    "measures",
    "batch_size",
    "train_samples",
    "folder",
    "out",
    "grams",
    "memory",
    "download",
    "title",
)
