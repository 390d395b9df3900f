"""Studies on this machine, and which of them answers a question; read without torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.cka import CKAPair
from analysis.dynamics import trajectories
from analysis.errors import InputError
from analysis.request import StudyRequest
from analysis.similarity import MEASURES, SimilarityResult
from analysis.study import Study, StudyCheckpoint, load_study, study_record
from analysis.study_panels import study_panels
from app.sources import datasets, folders
from auglocal.errors import WorkError, writing
from auglocal.files import write_whole

if TYPE_CHECKING:
    from app.sources.checkpoints import CheckpointFile


OPENED_NAME = 64  # letters: a study from elsewhere is named by its whole checksum
DEFAULTS = {item.name: item.default for item in fields(StudyRequest)}
# What makes two answers of a measure differ, beside checkpoints and images.
OPTIONS_OF = {
    "cka": ("kernel", "bandwidth", "estimator", "pooling"),
    "probe": ("penalty", "penalties", "probe_pooling"),
    "geometry": ("probe_pooling",),
}
PARTS = "stopped"  # the folder of answers that are not whole


@dataclass(frozen=True)
class StudyFile:
    """A study on this machine, and whether it came with the project."""

    path: Path
    shipped: bool
    study: Study


@dataclass(frozen=True)
class Request:
    """What a page asks: some checkpoints, some images, one measure, and its options.

    Attributes:
        measure: of `analysis.request.MEASURES`.
        sha256s: checksums of the checkpoints' files; their order matters to a measure that is not
            symmetric only.
        dataset, samples, seed, split: the images, as in `analysis.request.StudyRequest`.
        batch_size: of CKA; as asked, a run may take smaller ones.
        ceiling: checksum of the network that should be alike, None for none.
        floor: seed of the untrained network that should not be alike, None for none.
        options: other fields of `StudyRequest` that are not at their default, sorted by name.
    """

    measure: str
    sha256s: tuple[str, ...]
    dataset: str
    samples: int
    seed: int
    batch_size: int
    split: str = "test"
    ceiling: str | None = None
    floor: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """A name for this question that depends on the contents of the files only."""
        order = sorted(set(self.sha256s)) if is_symmetric(self.measure) else self.sha256s
        values = {**asdict(self), "sha256s": order}
        text = json.dumps(values, sort_keys=True)
        return datasets.folder_prefix(self.dataset) + hashlib.sha256(text.encode()).hexdigest()[:16]

    def option(self, name: str) -> Any:
        """The value of one of `StudyRequest`'s fields."""
        return dict(self.options).get(name, DEFAULTS[name])


def is_symmetric(measure: str) -> bool:
    """Whether a measure says the same of A and B as of B and A."""
    return measure not in MEASURES or MEASURES[measure]().symmetric


def keep_study(content: bytes) -> Study:
    """Check a study made elsewhere and keep a copy named by its checksum.

    Raises:
        ValueError: not a study that can be read; one sentence.
        auglocal.errors.WorkError: the copy cannot be written.
    """
    folder = folders.library_folder() / "studies"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    candidate = folder / f"{hashlib.sha256(content).hexdigest()}.candidate"
    try:
        write_whole(candidate, content)
        study = load_study(candidate)
        record = study_record(study)
        if any(record == study_record(file.study) for file in study_files()):
            raise InputError("This study is on this machine already.")
        candidate.replace(candidate.with_suffix(".study.json"))
    except ValueError as error:
        raise InputError(str(error).replace(candidate.name, "The file")) from error
    finally:
        candidate.unlink(missing_ok=True)
    return study


def study_files() -> list[StudyFile]:
    """All studies that can be read, shipped ones first; damaged ones are left out."""
    shipped = sorted(folders.shipped_folder().glob("*.study.json"))
    computed = sorted((folders.library_folder() / "studies").glob("*.study.json"))
    found = []
    for path in (*shipped, *computed):
        with contextlib.suppress(ValueError, OSError):
            found.append(StudyFile(path, path in shipped, _read_study(*folders.stamp(path))))
    return found


@st.cache_resource(max_entries=128, show_spinner=False)
def _read_study(path: str, size: int, changed: int) -> Study:
    """Read a study; cached by path, size and time of change."""
    return load_study(path)


def pairs() -> list[Study]:
    """Studies of two networks or more with CKA and probes: CIFAR-10 before digits before others.

    Those of snapshots are left out.
    """
    studies = [file.study for file in cards() if not trajectories(file.study)]
    return [study for study in studies if study.cka and len(study.models) > 1 and study.probes]


def cards() -> list[StudyFile]:
    """Studies that a picture can be drawn of, shipped and opened ones, not answers to a question.

    CIFAR-10 before digits before others, and networks before snapshots.
    """
    order = {"CIFAR-10 (JPEG)": 0, "scikit-learn digits": 1}
    found = [
        file
        for file in study_files()
        if (file.shipped or len(file.path.name.split(".")[0]) == OPENED_NAME)
        and has_card(file.study)
    ]

    def place(file: StudyFile) -> tuple[int, bool]:
        return order.get(file.study.question.dataset_title, 2), bool(trajectories(file.study))

    return sorted(found, key=place)


def has_card(study: Study) -> bool:
    """Whether a picture can be drawn of it."""
    return bool(study_panels(study))


def find_study(request: Request) -> Study | None:
    """A study on this machine that answers a request, without computing anything.

    Of several, one that says what was read of every image comes before older ones that do not, and
    one that came with the project before one of this machine.
    """
    found = [file.study for file in study_files() if is_answer(file, request)]
    if request.measure == "probe":
        return max(found, key=has_images, default=None)  # the first of equals
    return next(iter(found), None)


def has_images(study: Study) -> bool:
    """Whether a study's probes say what was read of every image; those of format 1 do not."""
    parts = ("predictions", "confusion", "recall")
    return bool(study.question.classes) and all(
        getattr(probe, part) is not None for probe in study.probes for part in parts
    )


def result_path(request: Request) -> Path:
    """The file that a job keeps its answer in."""
    return folders.library_folder() / "studies" / f"{request.key}.study.json"


def stopped_path(request: Request) -> Path:
    """The file of an answer that was stopped before it was whole; `find_study` never reads it."""
    return folders.library_folder() / PARTS / f"{request.key}.study.json"


def find_stopped(request: Request) -> Study | None:
    """What a stopped job kept of the answer; None where it kept nothing."""
    with contextlib.suppress(ValueError, OSError):
        return _read_study(*folders.stamp(stopped_path(request)))
    return None


def note_path(path: Path) -> Path:
    """The file beside a study of this machine that says what was asked, folders by their paths."""
    return path.with_name(f"{path.name.split('.')[0]}.request.json")


def note_request(request: Request) -> None:
    """Keep what is asked, so that its answer can be opened again from the list of studies."""
    path = note_path(result_path(request))
    with contextlib.suppress(OSError, WorkError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(request)).encode())


def asked(file: StudyFile) -> Request:
    """What a study of this machine was computed for; of one from elsewhere, what it says."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        record = json.loads(note_path(file.path).read_text(encoding="utf-8"))
        options = tuple(
            (str(name), tuple(value) if isinstance(value, list) else value)
            for name, value in record.pop("options")
        )
        sha256s = tuple(map(str, record.pop("sha256s")))
        return Request(**record, sha256s=sha256s, options=options)
    question = file.study.question
    by_role = {entry.role: entry for entry in question.checkpoints if entry.role}
    given = {name: getattr(question, name, default) for name, default in DEFAULTS.items()}
    given["groups"] = next((pair.result.groups for pair in file.study.similarity), 0)
    known = {"balanced", "groups", *(name for names in OPTIONS_OF.values() for name in names)}
    changed = {
        name: given[name]
        for name in known
        if given[name] is not None and given[name] != DEFAULTS[name]
    }
    ceiling, floor = by_role.get("ceiling"), by_role.get("floor")
    return Request(
        (file.study.measures or ("cka",))[0],
        tuple(entry.sha256 for entry in question.checkpoints if not entry.role),
        question.dataset,
        question.samples,
        question.seed,
        question.batch_size,
        split=question.split,
        ceiling=ceiling.sha256 if ceiling else None,
        floor=(floor.seed or 0) if floor else None,
        options=tuple(sorted(changed.items())),
    )


def added() -> list[StudyFile]:
    """Studies that were computed or opened on this machine, the latest first."""
    found = [file for file in study_files() if not file.shipped]
    return sorted(found, key=lambda file: file.study.provenance.date, reverse=True)


def delete(file: StudyFile) -> None:
    """Delete a study that was computed or opened here, and what was noted of it."""
    if not file.shipped:
        file.path.unlink(missing_ok=True)
        note_path(file.path).unlink(missing_ok=True)


def is_answer(file: StudyFile, request: Request) -> bool:
    """Whether a study answers a request: it was computed for it, or holds it on the same images."""
    if file.path.name == f"{request.key}.study.json":
        return True
    question = file.study.question
    asked = (request.samples, request.seed, request.split, request.option("balanced"))
    given = (question.samples, question.seed, question.split, question.balanced)
    if asked != given or file.study.provenance.stopped is not None:
        return False
    is_folder = request.dataset.startswith(datasets.FOLDER_PREFIX)
    if is_folder and not file.shipped:
        # A folder may change on disk: its contents are in the file's name.
        if not file.path.name.startswith(datasets.folder_prefix(request.dataset)):
            return False
    elif request.dataset != question.dataset:
        return False
    if not _has_references(file.study, request) or not _has_options(file.study, request):
        return False
    return holds(file.study, request.sha256s, request.measure)


def _has_references(study: Study, request: Request) -> bool:
    """Whether the ceiling and the floor that were asked for are there; more do no harm."""
    by_role = {entry.role: entry for entry in study.question.checkpoints if entry.role}
    ceiling, floor = by_role.get("ceiling"), by_role.get("floor")
    if request.ceiling is not None and (ceiling is None or ceiling.sha256 != request.ceiling):
        return False
    return request.floor is None or (floor is not None and floor.seed == request.floor)


def _has_options(study: Study, request: Request) -> bool:
    """Whether the measure was computed as asked."""
    question = study.question
    if request.measure == "cka" and question.batch_size != request.batch_size:
        return False
    for name in OPTIONS_OF.get(request.measure, ()):
        is_idle = name == "bandwidth" and request.option("kernel") != "rbf"
        if not is_idle and getattr(question, name) != request.option(name):
            return False
    if request.measure not in MEASURES:
        return True
    groups = {entry.result.groups for entry in study.similarity}
    same_groups = groups == {request.option("groups")}
    return same_groups and question.probe_pooling == request.option("probe_pooling")


def holds(study: Study, sha256s: Sequence[str], measure: str) -> bool:
    """Whether a study holds a measure of all of these checkpoints."""
    if not set(sha256s) <= {checkpoint.sha256 for checkpoint in study.question.checkpoints}:
        return False
    if measure == "cka":
        return study.cka is not None
    if measure in ("probe", "geometry"):
        results = study.probes if measure == "probe" else study.geometry
        names = {study_checkpoint(study, sha256).name for sha256 in sha256s}
        return bool(results) and names <= {result.model for result in results}
    distinct = list(dict.fromkeys(sha256s))
    pairs = list(combinations(distinct, 2)) or [(distinct[0], distinct[0])]
    return all(study_similarity(study, a, b, measure) is not None for a, b in pairs)


def has_usual_options(study: Study, measure: str) -> bool:
    """Whether a measure was computed with the options that a page begins with."""
    question = study.question
    request = Request(measure, (), "", 0, 0, question.batch_size)
    return not question.balanced and _has_options(study, request)


def studies_of(sha256s: Sequence[str], measure: str) -> list[Study]:
    """Studies that hold all of these checkpoints and this measure, whatever the images."""
    return [file.study for file in study_files() if holds(file.study, sha256s, measure)]


def study_checkpoint(study: Study, sha256: str) -> StudyCheckpoint:
    """A checkpoint of a study by its checksum."""
    return next(entry for entry in study.question.checkpoints if entry.sha256 == sha256)


def study_pair(study: Study, sha256_a: str, sha256_b: str) -> CKAPair:
    """The similarities of two checkpoints of a study, by their checksums."""
    if study.cka is None:
        raise ValueError("this study has no CKA")
    names = [study_checkpoint(study, sha256).name for sha256 in (sha256_a, sha256_b)]
    return study.cka.pair(*names)


def study_similarity(
    study: Study, sha256_a: str, sha256_b: str, measure: str
) -> SimilarityResult | None:
    """A measure beside CKA of two checkpoints of a study, by their checksums; None without.

    Of a symmetric measure the study may hold them in the other order.
    """
    names = tuple(study_checkpoint(study, sha256).name for sha256 in (sha256_a, sha256_b))
    for entry in study.similarity:
        if entry.result.measure != measure:
            continue
        if (entry.model_a, entry.model_b) == names:
            return entry.result
        if (entry.model_b, entry.model_a) == names and is_symmetric(measure):
            return _turned(entry.result)
    return None


def _turned(result: SimilarityResult) -> SimilarityResult:
    """The same with rows and columns in each other's place."""
    sides = {"a": "b", "b": "a"}
    reasons = {}
    for key, why in result.undefined.items():
        side, slash, layer = key.partition("/")
        row, _, column = key.partition("|")
        reasons[f"{sides[side]}/{layer}" if slash and side in sides else f"{column}|{row}"] = why
    arrays = ("values", "standard_errors", "low", "high", "chance")
    return replace(
        result,
        rows=result.columns,
        columns=result.rows,
        undefined=reasons,
        **{name: getattr(result, name).T for name in arrays},
    )


def narrowed(request: Request, entries: Sequence[CheckpointFile]) -> Request:
    """The same question about some of its checkpoints."""
    return replace(request, sha256s=tuple(entry.sha256 for entry in entries))
