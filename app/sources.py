"""Everything the pages draw: checkpoints, studies, data sets and jobs; the only place that caches.

In: folders on disk and what a page asks. Out: frozen results, shared by sessions and read-only.
Nothing here imports torch or scikit-learn before a checkpoint is opened or a job runs, so that the
first picture comes from a file at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.cka import CKAPair
from analysis.errors import InputError
from analysis.probes import ProbeResult
from analysis.study import Study, StudyCheckpoint, load_study
from app import jobs
from auglocal.errors import writing
from auglocal.files import file_sha256, write_whole

if TYPE_CHECKING:
    from auglocal.checkpoint import CheckpointMetadata

ROOT = Path(__file__).resolve().parent.parent
MOST_UPLOADS = 50
MOST_UPLOADED_BYTES = 64 * 2**20
PENALTY = 1.0
FOLDER_PREFIX = "imagefolder:"
# What tells that a set was downloaded, by auglocal's name; reading the sets takes seconds.
DATASET_FILES = {
    "cifar10": ("CIFAR-10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR-100", "cifar-100-python"),
    "svhn": ("SVHN", "test_32x32.mat"),
    "stl10": ("STL-10", "stl10_binary"),
}


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on this machine.

    Attributes:
        name: a short readable one; text from outside, to be shown as text only.
        path, sha256, size: the file, its checksum and its bytes.
        uploaded: whether it came through the page rather than with the project.
        rule: the rule that trained it.
    """

    name: str
    path: Path
    sha256: str
    size: int
    uploaded: bool
    rule: str


@dataclass(frozen=True)
class StudyFile:
    """A study on this machine, and whether it came with the project."""

    path: Path
    shipped: bool
    study: Study


@dataclass(frozen=True)
class Request:
    """What a page asks: some checkpoints, some images, one measure ("cka" or "probe").

    The order of the checkpoints does not matter; `sha256s` are the files' checksums.
    """

    measure: str
    sha256s: tuple[str, ...]
    dataset: str
    samples: int
    seed: int
    batch_size: int

    @property
    def key(self) -> str:
        """A name for this question that depends on the contents of the files only."""
        values = {**asdict(self), "sha256s": sorted(set(self.sha256s)), "penalty": PENALTY}
        text = json.dumps(values, sort_keys=True)
        return folder_prefix(self.dataset) + hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------- folders


def shipped_folder() -> Path:
    """Where the project's own checkpoints and studies lie."""
    return Path(os.environ.get("AUGLOCAL_SHIPPED") or ROOT / "checkpoints")


def library_folder() -> Path:
    """Where uploaded checkpoints and computed studies are kept; not made before it is needed."""
    chosen = os.environ.get("AUGLOCAL_LIBRARY")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "auglocal" / "library"


def _stamp(path: Path) -> tuple[str, int, int]:
    """Path, size and time of change of a file: what a cached reading of it depends on."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


# --------------------------------------------------------------------------------- checkpoints


def checkpoint_files() -> tuple[list[CheckpointFile], list[str]]:
    """All checkpoints on this machine, and a sentence for each file that cannot be opened."""
    shipped = sorted(shipped_folder().glob("*.safetensors"))
    uploaded = sorted((library_folder() / "checkpoints").glob("*.safetensors"))
    rules = _studied_rules()
    found: dict[str, CheckpointFile] = {}
    problems: list[str] = []
    for path in (*shipped, *uploaded):
        try:
            entry = _open_checkpoint(path, path in uploaded, rules)
            found.setdefault(entry.sha256, entry)
        except ValueError as error:
            problems.append(jobs.sentence(error))
        except OSError as error:
            problems.append(f"{path.name} could not be read: {error.strerror or error}.")
    return _with_distinct_names(list(found.values())), problems


def _studied_rules() -> dict[str, str]:
    """Rules by checksum of the checkpoints of all studies; saves importing torch for them."""
    return {
        entry.sha256: entry.rule
        for file in study_files()
        for entry in file.study.question.checkpoints
    }


def _open_checkpoint(path: Path, uploaded: bool, rules: dict[str, str]) -> CheckpointFile:
    """What the lists of pages show of a file."""
    stamp = _stamp(path)
    sha256 = _sha256(*stamp)
    rule = rules.get(sha256) or _metadata(*stamp).rule
    name = _uploaded_name(path) if uploaded else path.stem
    return CheckpointFile(name, path, sha256, stamp[1], uploaded, rule)


def metadata(entry: CheckpointFile) -> CheckpointMetadata:
    """What a checkpoint says about itself."""
    return _metadata(*_stamp(entry.path))


def with_metadata(
    entries: Sequence[CheckpointFile],
) -> list[tuple[CheckpointFile, CheckpointMetadata]]:
    """Checkpoints with what they say about themselves."""
    return [(entry, metadata(entry)) for entry in entries]


@st.cache_resource(max_entries=256, show_spinner=False)
def _sha256(path: str, size: int, changed: int) -> str:
    """A file's checksum; cached by path, size and time of change."""
    return file_sha256(path)


@st.cache_resource(max_entries=256, show_spinner=False)
def _metadata(path: str, size: int, changed: int) -> CheckpointMetadata:
    """A file's header; cached by path, size and time of change."""
    from auglocal.checkpoint import read_metadata

    return read_metadata(path)


def _uploaded_name(path: Path) -> str:
    """The name an uploaded file came with, kept beside the copy."""
    with contextlib.suppress(OSError, ValueError):
        return Path(path.with_suffix(".name").read_text(encoding="utf-8").strip()).stem[:80]
    return path.stem[:12]


def _with_distinct_names(entries: list[CheckpointFile]) -> list[CheckpointFile]:
    """Add the start of the checksum to every name that occurs twice."""
    names = [entry.name for entry in entries]
    return [
        replace(entry, name=f"{entry.name} {entry.sha256[:6]}")
        if names.count(entry.name) > 1
        else entry
        for entry in entries
    ]


def keep_upload(name: str, content: bytes) -> CheckpointFile:
    """Check an uploaded checkpoint and keep a copy named by its checksum.

    Args:
        name: the file's name where it came from.
        content: its bytes.

    Raises:
        ValueError: not a checkpoint of ours, too large, or too many are kept; one sentence.
        auglocal.errors.WorkError: the copy cannot be written.
    """
    from auglocal.checkpoint import load_checkpoint

    if len(content) > MOST_UPLOADED_BYTES:
        raise InputError(
            f"The file is larger than {MOST_UPLOADED_BYTES // 2**20} MB; upload a smaller one, or "
            "train without keeping the auxiliary networks."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    present = next((entry for entry in checkpoint_files()[0] if entry.sha256 == sha256), None)
    if present is not None:
        return present
    folder = library_folder() / "checkpoints"
    path = folder / f"{sha256}.safetensors"
    if not path.exists() and len(list(folder.glob("*.safetensors"))) >= MOST_UPLOADS:
        raise InputError(
            f"There are already {MOST_UPLOADS} uploaded checkpoints; delete one first."
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    candidate = folder / f"{sha256}.candidate"
    try:
        write_whole(candidate, content)
        load_checkpoint(candidate)
        write_whole(path.with_suffix(".name"), name[:200].encode())
        candidate.replace(path)
    except ValueError as error:
        raise InputError(str(error).replace(candidate.name, "The file")) from error
    finally:
        candidate.unlink(missing_ok=True)
    return _open_checkpoint(path, True, {})


def keep_study(content: bytes) -> Study:
    """Check a study made elsewhere and keep a copy named by its checksum.

    Raises:
        ValueError: not a study that can be read; one sentence.
        auglocal.errors.WorkError: the copy cannot be written.
    """
    folder = library_folder() / "studies"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    candidate = folder / f"{hashlib.sha256(content).hexdigest()}.candidate"
    try:
        write_whole(candidate, content)
        study = load_study(candidate)
        candidate.replace(candidate.with_suffix(".study.json"))
    except ValueError as error:
        raise InputError(str(error).replace(candidate.name, "The file")) from error
    finally:
        candidate.unlink(missing_ok=True)
    return study


def delete_upload(entry: CheckpointFile) -> None:
    """Delete an uploaded checkpoint; shipped ones are never touched."""
    if entry.uploaded:
        entry.path.unlink(missing_ok=True)
        entry.path.with_suffix(".name").unlink(missing_ok=True)


def by_prefix(entries: Sequence[CheckpointFile], prefix: str) -> CheckpointFile | None:
    """The one checkpoint whose checksum starts like this; links carry such starts."""
    matches = [entry for entry in entries if len(prefix) >= 6 and entry.sha256.startswith(prefix)]
    return matches[0] if len(matches) == 1 else None


# ------------------------------------------------------------------------------------- studies


def study_files() -> list[StudyFile]:
    """All studies that can be read, shipped ones first; damaged ones are left out."""
    shipped = sorted(shipped_folder().glob("*.study.json"))
    computed = sorted((library_folder() / "studies").glob("*.study.json"))
    found = []
    for path in (*shipped, *computed):
        with contextlib.suppress(ValueError, OSError):
            found.append(StudyFile(path, path in shipped, _read_study(*_stamp(path))))
    return found


@st.cache_resource(max_entries=128, show_spinner=False)
def _read_study(path: str, size: int, changed: int) -> Study:
    """Read a study; cached by path, size and time of change."""
    return load_study(path)


def pairs() -> list[Study]:
    """Studies that the overview can show: CIFAR-10 before digits before others."""
    pairs = [
        file.study
        for file in study_files()
        if file.study.cka and len(file.study.cka.models) > 1 and file.study.probes
    ]
    order = {"CIFAR-10 (JPEG)": 0, "scikit-learn digits": 1}
    return sorted(pairs, key=lambda study: order.get(study.question.dataset_title, 2))


def find_study(request: Request) -> Study | None:
    """A study on this machine that answers a request, without computing anything."""
    for file in study_files():
        if _answers(file, request):
            return file.study
    return None


def _answers(file: StudyFile, request: Request) -> bool:
    """Whether a study holds the answers, on the same images."""
    question = file.study.question
    if (request.samples, request.seed) != (question.samples, question.seed):
        return False
    is_folder = request.dataset.startswith(FOLDER_PREFIX)
    if is_folder and not file.shipped:
        # A folder may change on disk: its contents are in the file's name.
        if not file.path.name.startswith(folder_prefix(request.dataset)):
            return False
    elif request.dataset != question.dataset:
        return False
    if not set(request.sha256s) <= {checkpoint.sha256 for checkpoint in question.checkpoints}:
        return False
    if request.measure == "probe":
        return bool(file.study.probes) and question.penalty == PENALTY
    return file.study.cka is not None and question.batch_size == request.batch_size


def studies_of(sha256s: Sequence[str], measure: str) -> list[Study]:
    """Studies that hold all of these checkpoints and this measure, whatever the images."""
    return [
        file.study
        for file in study_files()
        if set(sha256s) <= {checkpoint.sha256 for checkpoint in file.study.question.checkpoints}
        and (file.study.probes if measure == "probe" else file.study.cka)
    ]


def command_of(study: Study, dataset: str) -> str:
    """The command that redoes a study, with the path of an image folder as it is here."""
    stored, here = (shlex.quote(name) for name in (study.question.dataset, dataset))
    return study.provenance.command.replace(f"--dataset {stored} ", f"--dataset {here} ")


def study_checkpoint(study: Study, sha256: str) -> StudyCheckpoint:
    """A checkpoint of a study by its checksum."""
    return next(entry for entry in study.question.checkpoints if entry.sha256 == sha256)


def study_pair(study: Study, sha256_a: str, sha256_b: str) -> CKAPair:
    """The similarities of two checkpoints of a study, by their checksums."""
    if study.cka is None:
        raise ValueError("this study has no CKA")
    names = [study_checkpoint(study, sha256).name for sha256 in (sha256_a, sha256_b)]
    return study.cka.pair(*names)


@dataclass(frozen=True)
class ProbeAnswer:
    """The probes of one checkpoint, its rule, and the study that holds them."""

    probe: ProbeResult
    rule: str
    study: Study


def probes_of(request: Request, entries: Sequence[CheckpointFile]) -> dict[str, ProbeAnswer]:
    """The probes on this machine that a request asks for, by checksum; from any of the studies."""
    found: dict[str, ProbeAnswer] = {}
    for entry in entries:
        study = find_study(narrowed(request, [entry]))
        if study is not None:
            name = study_checkpoint(study, entry.sha256).name
            probe = replace(study.probe(name), model=entry.name)
            found[entry.sha256] = ProbeAnswer(probe, entry.rule, study)
    return found


def narrowed(request: Request, entries: Sequence[CheckpointFile]) -> Request:
    """The same question about some of its checkpoints."""
    return replace(request, sha256s=tuple(entry.sha256 for entry in entries))


def first_pair(entries: Sequence[CheckpointFile]) -> tuple[CheckpointFile, CheckpointFile]:
    """The pair to start with: that of the overview if it is here, else the first two."""
    by_sha256 = {entry.sha256: entry for entry in entries}
    for study in pairs():
        pair = [by_sha256.get(entry.sha256) for entry in study.question.checkpoints[:2]]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return entries[0], entries[min(1, len(entries) - 1)]


# ------------------------------------------------------------------------------------ data sets


def datasets_on_disk() -> dict[str, str]:
    """Titles by name of the data sets that can be used now."""
    found = {"digits": "scikit-learn digits"}
    for name, (title, file) in DATASET_FILES.items():
        if (Path("data") / file).exists():
            found[name] = title
    return found


def is_missing_folder(dataset: str) -> bool:
    """Whether data is an image folder that is not on this machine."""
    root = Path(dataset.removeprefix(FOLDER_PREFIX)).expanduser()
    return dataset.startswith(FOLDER_PREFIX) and not (root / "train").is_dir()


def folder_prefix(dataset: str) -> str:
    """What names of results on an image folder start with; empty for a named data set."""
    return f"{_folder_fingerprint(dataset)}-" if dataset.startswith(FOLDER_PREFIX) else ""


@st.cache_data(ttl=10, max_entries=16, show_spinner=False)
def _folder_fingerprint(dataset: str) -> str:
    """Changes when images of a folder come, go or change; read anew after ten seconds."""
    root = Path(dataset.removeprefix(FOLDER_PREFIX)).expanduser()
    digest = hashlib.sha256(str(root.absolute()).encode())
    for split in ("train", "test", "val"):
        for folder in sorted(root.glob(f"{split}/*/")):
            for file in sorted(os.scandir(folder), key=lambda entry: entry.name):
                status = file.stat()
                digest.update(f"{folder.name}/{file.name}:{status.st_size}".encode())
                digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------------------- jobs


def registry() -> jobs.Registry:
    """The jobs of this server; one registry a library folder."""
    return _registry(str(library_folder() / "jobs"))


@st.cache_resource(show_spinner=False)
def _registry(folder: str) -> jobs.Registry:
    """One registry for all sessions."""
    return jobs.Registry(Path(folder))


def start(request: Request, entries: Sequence[CheckpointFile], title: str) -> jobs.Job:
    """Compute the answer to a request in a job and keep it as a study file.

    Raises:
        jobs.BusyError: another job runs.
    """
    result = library_folder() / "studies" / f"{request.key}.study.json"
    return registry().start(request.key, title, _work(request, entries), result)


def _work(request: Request, entries: Sequence[CheckpointFile]) -> jobs.Work:
    """The work of a job: open the models and run the study."""

    def work(report: Callable[[str, int, int], None], cancelled: Callable[[], bool]) -> Study:
        report("Opening checkpoints", 0, 0)
        from analysis.models import open_model
        from analysis.run import run_study

        models = [
            replace(open_model(_readable(entry.path), "auto"), name=entry.name) for entry in entries
        ]
        return run_study(
            models,
            dataset=request.dataset,
            samples=request.samples,
            seed=request.seed,
            batch_size=request.batch_size,
            measures=(request.measure,),
            penalty=PENALTY,
            # Images of a folder are resized where they differ; equal ones stay as they are.
            image_size=models[0].metadata.input_size[1]
            if request.dataset.startswith(FOLDER_PREFIX)
            else None,
            out=f"{request.measure}.study.json",
            progress=lambda step: report(step.stage, step.done, step.total),
            cancelled=cancelled,
        )

    return work


def _readable(path: Path) -> Path:
    """A path as people would type it: from the working directory where it lies below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def num_layers(metadata: CheckpointMetadata) -> int:
    """How many layers a checkpoint's backbone has."""
    return _num_layers(metadata.architecture, metadata.num_classes)


@st.cache_resource(max_entries=64, show_spinner=False)
def _num_layers(architecture: str, num_classes: int) -> int:
    """Build the backbone once to count."""
    from auglocal.backbones.registry import build_meta_backbone

    return len(build_meta_backbone(architecture, num_classes).layer_names)
