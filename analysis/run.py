"""Models and a request in, a study out: every measure from one streamed pass.

At most one batch of one layer's features is alive at a time; what stays is a batch's Grams and,
for the measures that need all images at once, pooled features.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any

from threadpoolctl import threadpool_limits

from analysis.answers import (
    Questions,
    answer_geometry,
    answer_paired,
    answer_probes,
    answer_similarity,
)
from analysis.batch_plan import SMALLEST_BATCH, BatchPlan, batch_plan, batch_slices
from analysis.cka_result import CKAResult
from analysis.distributed import gathered, share_of_this_process
from analysis.errors import Cancelled, InputError
from analysis.features import ImageSample, fitting_images, sample_images, stream_features
from analysis.full_set import FullSetAccumulator, full_set_bytes, in_step
from analysis.gram import spatial_pool
from analysis.minibatch import CKAAccumulator
from analysis.models import Model, describe_device, short_name, unique_names
from analysis.reading import Progress, Reading, Watch, read_features, read_test
from analysis.request import StudyRequest
from analysis.study import Study, StudyCheckpoint, StudyProvenance, StudyQuestion

DEFAULT_TRAIN_SAMPLES = 5000
# A full-set estimator may take so much if nothing else is said.
DEFAULT_MEMORY = 4 * 2**30
PACKAGES = ("torch", "numpy", "scikit-learn", "auglocal")


def run_study(
    models: Sequence[Model],
    *,
    ceiling: Model | None = None,
    floor: Model | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    keep_partial: bool = False,
    partial: Callable[[Study], None] | None = None,
    **options: Any,
) -> Study:
    """Compare the layers of models by every measure asked for.

    Args:
        models: one or more; those of the same name get a suffix.
        ceiling: a network that should be alike, such as a second seed of the first one's rule.
        floor: one that should not, such as an untrained network of the same architecture.
        progress: called at the start of a stage, after every batch and after every probe.
        cancelled: asked before every batch and every probe.
        keep_partial: after `cancelled` give what there is so far: CKA of some batches, or of the
            other measures, and CKA over the whole set, some layers.
        partial: called with what there is so far, at most twice a second; that study's provenance
            says that it is not whole. Not under torchrun.
        options: fields of `StudyRequest`; `dataset` is needed.

    Returns:
        the study; under torchrun it is whole on rank 0 only, see `answers_here`.

    Raises:
        InputError: images, models and options do not fit together.
        Cancelled: `cancelled` said so, and there is nothing to keep.
    """
    request = StudyRequest(**options)
    if not models:
        raise InputError("There is no checkpoint to read; give at least one.")
    run = _Run(request, models, ceiling, floor, Watch(progress, cancelled))
    if partial is not None:
        run.show = _Refiner(run, partial)
    # NumPy's threads and PyTorch's wait for each other by spinning: together they took six times
    # as long as PyTorch's alone (40 s against 6.5 s on two busy cores).
    with threadpool_limits(1, user_api="blas"):
        answers = run.answer(keep_partial)
    return run.study(answers)


def answers_here() -> bool:
    """True in the one process of several that has the answers."""
    return share_of_this_process().index == 0


class _Run:
    """A request, the models and images it is about, and the order in which answers are made."""

    def __init__(
        self,
        request: StudyRequest,
        models: Sequence[Model],
        ceiling: Model | None,
        floor: Model | None,
        watch: Watch,
    ) -> None:
        self.started = time.perf_counter()
        self.request, self.watch = request, watch
        if ceiling is not None and ceiling.sha256 in {model.sha256 for model in models}:
            raise InputError(
                f"The ceiling {ceiling.name} is one of the networks that are compared; give a "
                "second seed's checkpoint as --ceiling."
            )
        references = {"ceiling": ceiling, "floor": floor}
        given = [*models, *(model for model in references.values() if model is not None)]
        names = unique_names([model.name for model in given])
        self.models = dict(zip(names, given, strict=True))
        self.compared = names[: len(models)]
        kinds = [role for role, model in references.items() if model is not None]
        self.roles = dict(zip(names, [*[""] * len(models), *kinds], strict=True))
        self.train: ImageSample | None = None
        self.trains: dict[str, ImageSample] = {}
        draw = partial(self._draw, request.split, request.samples, balanced=request.balanced)
        self.test = draw()
        self.tests = fitting_images(self.models, self.test, draw)
        if "probe" in request.measures:
            draw = partial(
                self._draw, "train", request.train_samples, default_samples=DEFAULT_TRAIN_SAMPLES
            )
            self.train = draw()
            self.trains = fitting_images(self.models, self.train, draw)
        self.plan = self._plan()
        self.share = share_of_this_process()
        self.stopped: str | None = None
        self.whole: dict[str, Any] = {"cka": None, "probes": ()}
        self.latest: _Part | None = None
        self.show: Callable[[], None] = lambda: None

    def _draw(
        self, split: str, samples: int | None, *, image_size: int | None = None, **options: Any
    ) -> ImageSample:
        request = self.request
        return sample_images(
            request.dataset,
            split,
            samples,
            request.seed,
            folder=request.folder,
            image_size=image_size or request.image_size,
            title=request.dataset_title,
            download=request.download,
            **options,
        )

    def _plan(self) -> BatchPlan:
        """Cut the test images into batches, naming the options where that fails."""
        count, size = len(self.test.images), self.request.batch_size
        if "cka" not in self.request.measures or self.request.full_set:
            slices = tuple(batch_slices(count, size, smallest=1))
            return BatchPlan(count, size, size, slices, f"{count:,} images, all at once")
        try:
            return batch_plan(count, size)
        except ValueError as error:
            raise InputError(
                f"CKA needs at least {SMALLEST_BATCH} images in every batch, but {count:,} images "
                f"in batches of at most {size} leave fewer; give more --samples or another "
                "--batch-size."
            ) from error

    # ------------------------------------------------------------------------------- answers

    def answer(self, keep_partial: bool) -> dict[str, Any]:
        """All answers of a study by name; what there is of them after a wish to stop."""
        try:
            return self._answer()
        except Cancelled:
            if not keep_partial or self.latest is None:
                raise
            return self.part("stopped")

    def keep(self, name: str, make: Callable[[], Any], so_far: str) -> None:
        """Take note of an answer that is not whole, and show it now and then."""
        self.latest = _Part(name, make, so_far)
        self.show()

    def part(self, word: str) -> dict[str, Any]:
        """The answers so far; the study's provenance then says how far they are, after `word`."""
        assert self.latest is not None
        self.stopped = f"{word} after {self.latest.so_far}"
        return {**self.whole, self.latest.name: self.latest.make()}

    def _answer(self) -> dict[str, Any]:
        """All answers of a study by name."""
        request = self.request
        if request.full_set:
            self._check_memory()
        reading = gathered(self._read_test(), self.share)
        train_features = {}
        if self.train is not None and not self.watch.cancelled():
            slices = batch_slices(len(self.train.images), request.batch_size, smallest=1)
            part = read_features(
                self.models, self.trains, slices, request.probe_pooling, self.watch, self.share
            )
            whole = gathered(part, self.share)
            train_features = {} if whole is None else whole.all_features()
        if reading is None:  # another process answers
            return {"cka": None, "probes": ()}
        if reading.cka is not None and (done := self._batches(reading.cka)):
            self.latest = _Part("cka", reading.cka.result, done)
        self.watch.check()
        return self._answers(reading, train_features)

    def _batches(self, accumulator: CKAAccumulator) -> str:
        """How many batches CKA has; "" for none."""
        done = len(accumulator.state()["indices"])
        return f"{done} of {len(self.plan.slices)} batches" if done else ""

    def _refined(self, accumulator: CKAAccumulator) -> None:
        """Keep CKA of the batches read so far."""
        self.keep("cka", accumulator.result, self._batches(accumulator))

    def _read_test(self) -> Reading:
        """Read this process's part of the test images, if a pass is needed."""
        if self.request.full_set and not self.request.keeps_features:
            return Reading()
        slices, request = self.plan.slices, self.request
        return read_test(
            self.models, self.tests, slices, request, self.watch, self.share, self._refined
        )

    def _answers(self, reading: Reading, train_features: Any) -> dict[str, Any]:
        request, answers = self.request, self.whole
        questions = Questions(self.models, self.test, request, self.watch, self.keep)
        if request.full_set:
            answers["cka"] = self._full_set()
        elif reading.cka is not None:
            answers["cka"] = reading.cka.result()
        if self.train is not None:
            answers["probes"] = answer_probes(questions, self.train, train_features, reading)
            answers["paired"] = answer_paired(questions, answers["probes"])
        if request.similarities:
            answers["similarity"] = answer_similarity(questions, reading, self._pairs())
        if "geometry" in request.measures:
            answers["geometry"] = answer_geometry(questions, reading)
        return answers

    def _pairs(self) -> list[tuple[str, str]]:
        """Every two models that are compared, and each reference with the first one of its rule."""
        pairs = list(combinations(self.compared, 2)) or [(self.compared[0],) * 2]
        references = [name for name, role in self.roles.items() if role]
        return [*pairs, *((self._partner(name), name) for name in references)]

    def _partner(self, reference: str) -> str:
        """The compared model with a reference's rule, or the first one."""
        rule = self.models[reference].metadata.rule
        same = (name for name in self.compared if self.models[name].metadata.rule == rule)
        return next(same, self.compared[0])

    def _full_set(self) -> CKAResult:
        """CKA over all images at once, layer after layer."""
        request, batches = self.request, self.plan.slices
        accumulator = FullSetAccumulator(
            {name: model.layer_names for name, model in self.models.items()},
            len(self.test.images),
            estimator=request.estimator,
            kernel=request.kernel,
            bandwidth=request.bandwidth,
            precision=request.precision,
        )
        total = sum(len(model.layer_names) for model in self.models.values())
        self.watch.start("Comparing whole layers", total)
        for name, model in self.models.items():
            streams = [stream_features(model, self.tests[name].images[batch]) for batch in batches]
            for layer, parts in in_step(streams):
                self.watch.check()
                accumulator.add((name, layer), [self._pooled(part) for part in parts])
                self.watch.step()
                self.keep("cka", accumulator.result, f"{self.watch.done} of {total} layers")
        return accumulator.result()

    def _pooled(self, features: Any) -> Any:
        pooling = self.request.pooling
        return features if pooling is None else spatial_pool(features, pooling)

    def _check_memory(self) -> None:
        """Refuse a full set that takes more memory than allowed, before anything is read."""
        request, samples = self.request, len(self.test.images)
        if samples < SMALLEST_BATCH:
            raise InputError(f"CKA needs at least {SMALLEST_BATCH} images; give more --samples.")
        widths = [
            math.prod(self._pooled(features).shape[1:])
            for name, model in self.models.items()
            for _, features in stream_features(model, self.tests[name].images[:1])
        ]
        needed = full_set_bytes(widths, samples, kernel=request.kernel, precision=request.precision)
        allowed = request.memory or DEFAULT_MEMORY
        if needed > allowed:
            raise InputError(
                f"The {request.estimator} estimator over {samples:,} images takes about "
                f"{needed / 2**20:,.0f} MiB, and {allowed / 2**20:,.4g} are allowed; give fewer "
                "--samples, more --memory, --pooling 1, or --estimator unbiased."
            )

    # ------------------------------------------------------------------ where it came from

    def study(self, answers: dict[str, Any]) -> Study:
        """Put answers together with the question and where they came from."""
        device = next(iter(self.models.values())).device
        return Study(
            title=self.request.title or f"{' and '.join(self.compared)} on {self.test.title}",
            question=self.question(),
            provenance=StudyProvenance(
                versions=_versions(),
                device=describe_device(device),
                seconds=round(time.perf_counter() - self.started, 3),
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                command=self.command(),
                stopped=self.stopped,
            ),
            **answers,
        )

    def question(self) -> StudyQuestion:
        """Record what was asked."""
        request, probes = self.request, self.train is not None
        return StudyQuestion(
            checkpoints=tuple(
                _checkpoint(name, model, self.roles[name], self.tests[name])
                for name, model in self.models.items()
            ),
            dataset=_portable_dataset(self.test.dataset),
            dataset_title=self.test.title,
            split=self.test.split,
            samples=len(self.test.labels),
            seed=self.test.seed,
            batch_size=request.batch_size,
            image_size=request.image_size,
            images_sha256=self.test.sha256,
            train_samples=None if self.train is None else len(self.train.labels),
            penalty=request.penalty if probes else None,
            measures=request.measures,
            classes=self.test.classes,
            labels=tuple(self.test.labels.tolist()),
            balanced=request.balanced,
            batch_note=self.plan.note if "cka" in request.measures else None,
            kernel=request.kernel,
            bandwidth=request.bandwidth if request.kernel == "rbf" else None,
            estimator=request.estimator,
            pooling=request.pooling,
            precision=request.precision,
            num_shuffles=0 if request.full_set else request.num_shuffles,
            probe_pooling=request.probe_pooling,
            penalties=request.penalties if probes else (),
            num_neighbours=request.num_neighbours if probes else 0,
            geometry_groups=request.geometry_groups if "geometry" in request.measures else 0,
        )

    def command(self) -> str:
        """Write the one command that redoes this run, with no path of this machine in it."""
        request = self.request
        options: dict[str, object] = {
            "--measures": ",".join(request.measures),
            "--dataset": _portable_dataset(self.test.dataset),
            "--split": self.test.split,
            "--samples": len(self.test.labels),
            "--seed": self.test.seed,
            "--batch-size": request.batch_size,
        }
        if self.train is not None:
            options |= {"--train-samples": len(self.train.labels)}
        options |= request.command_options()
        if str(request.folder) != "data":
            options["--data-folder"] = _portable(request.folder)
        options |= {"--title": request.title}
        words = ["python", "-m", "analysis", "study"]
        names = self._given_names()
        for name, model in self.models.items():
            role = self.roles[name]
            if role == "floor" and model.metadata.rule == UNTRAINED:
                words += ["--floor", str(model.metadata.seed)]
            else:
                words += [*([f"--{role}"] if role else []), _portable(model.path or model.name)]
        return shlex.join([*words, *names, *_words(options), "--out", _portable(request.out)])

    def _given_names(self) -> list[str]:
        """Options for names that do not come from the files, such as chosen ones."""
        named = {name: model for name, model in self.models.items() if self.roles[name] != "floor"}
        files = [short_name(model.path) for model in named.values() if model.path is not None]
        if tuple(named) == unique_names(files):
            return []
        return [f"--name={name}" for name in named]


UNTRAINED = "untrained"
REFINED_EVERY = 0.5  # seconds; a map that changes faster cannot be read
SHARE_SHOWN = 0.1  # of the time at most goes into what is shown before the end


@dataclass(frozen=True)
class _Part:
    """An answer that is not whole: its name, a function that gives it, how far it is."""

    name: str
    make: Callable[[], Any]
    so_far: str


class _Refiner:
    """Shows the answers so far, now and then."""

    def __init__(self, run: _Run, show: Callable[[Study], None]) -> None:
        self._run, self._show = run, show
        self._next = -math.inf

    def __call__(self) -> None:
        started = time.perf_counter()
        if self._run.share.count > 1 or started < self._next:
            return
        answers = self._run.part("so far")
        self._show(self._run.study(answers))
        self._run.stopped = None
        ended = time.perf_counter()
        self._next = ended + max(REFINED_EVERY, (ended - started) / SHARE_SHOWN)


def _words(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command; None leaves one out, and a list becomes 1,2,3."""
    words: list[str] = []
    for option, value in options.items():
        if value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words += [option, ",".join(f"{item:g}" for item in value)]
        else:
            words += [option, str(value)]
    return words


def _checkpoint(name: str, model: Model, role: str, images: ImageSample) -> StudyCheckpoint:
    """Record which checkpoint a model came from, and how it read the images."""
    metadata = model.metadata
    source = metadata.config.get("opened_from")
    is_foreign = isinstance(source, dict)
    order = source.get("channel_order") if isinstance(source, dict) else None
    return StudyCheckpoint(
        name=name,
        sha256=model.sha256,
        architecture=metadata.architecture,
        rule=metadata.rule,
        rule_options=metadata.rule_options,
        dataset=metadata.dataset,
        accuracy=metadata.accuracy,
        # A foreign file of neither has 0 in their places.
        epoch=None if is_foreign and not metadata.epoch else metadata.epoch,
        seed=None if is_foreign else metadata.seed,
        role=role,
        preprocessing={
            "input_size": list(images.images.shape[1:]),
            "mean": list(metadata.mean),
            "std": list(metadata.std),
            "channel_order": order or "RGB",
            "assumed": "preprocessing" in model.assumed,
        },
    )


def _versions() -> dict[str, str]:
    """Versions of what computed the answers; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _portable(path: Path | str) -> str:
    """Give a relative path as it is, of any other the last part."""
    pure = PurePath(path)
    return pure.name if pure.is_absolute() else str(pure)


def _portable_dataset(name: str) -> str:
    """Give a data set's name without the machine's folders."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{_portable(path)}" if colon else name
