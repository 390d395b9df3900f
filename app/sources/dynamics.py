"""Training runs on this machine, and what is known of their layers along training.

In: run folders (./runs, the library's and the shipped ones), studies of snapshots (shipped, opened,
computed). Out: `Run`s, and the study that holds their snapshots on the images asked for. Computed
studies are kept in the library's folder `dynamics` under the contents of the snapshots and the
options.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.dynamics import Trajectory, trajectories
from analysis.study import Study, load_study
from app import jobs
from app.sources import computing, datasets, folders, studies
from auglocal.files import file_sha256

KEY_LENGTH = 12
RECORDED = ("dataset", "dataset_title", "image_size", "architecture", "rule", "seed", "epochs")
BATCH_SIZE = 125


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: of its folder, or of the run in a study; text from outside.
        rule: that trained it; "" where that is unknown.
        folder: None for a run that is known from a study alone.
        snapshots: files, first epoch to last.
        epochs: of the snapshots.
        sha256s: of the snapshots.
        lines: of metrics.jsonl.
        config: the part of config.json that pages use.
    """

    name: str
    rule: str
    folder: Path | None
    snapshots: tuple[Path, ...]
    epochs: tuple[int, ...]
    sha256s: tuple[str, ...]
    lines: tuple[dict[str, Any], ...]
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """Name and contents, as they stand in an address: another training has another key."""
        text = json.dumps([self.sha256s, len(self.lines) if not self.sha256s else 0])
        return f"{self.name}~{hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]}"

    @property
    def is_finished(self) -> bool:
        """Whether all its epochs are recorded."""
        planned = self.config.get("epochs")
        return not isinstance(planned, int) or len(self.lines) >= planned


@dataclass(frozen=True)
class Question:
    """What is asked of runs: all their snapshots, on these images.

    Attributes:
        sha256s: of the snapshots of all runs.
        dataset, samples, seed: test images, as in `analysis.request.StudyRequest`.
        train_samples: of the probes; 0 asks for no probes.
    """

    sha256s: tuple[str, ...]
    dataset: str
    samples: int
    seed: int
    train_samples: int

    @property
    def key(self) -> str:
        """A name that depends on the contents of the files only."""
        values = {**asdict(self), "sha256s": sorted(self.sha256s)}
        text = json.dumps({"dynamics": 1, **values}, sort_keys=True)
        prefix = datasets.folder_prefix(self.dataset)
        return f"dynamics-{prefix}{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def path(self) -> Path:
        """Where the answer is kept."""
        return _kept_folder() / f"{self.key}.study.json"

    @property
    def stopped_path(self) -> Path:
        """Where an answer is kept that was stopped before it was whole; `find` never reads it."""
        return folders.library_folder() / studies.PARTS / f"{self.key}.study.json"


def _kept_folder() -> Path:
    return folders.library_folder() / "dynamics"


# -------------------------------------------------------------------------------------------- runs


def runs() -> list[Run]:
    """All runs that can be shown: those with snapshots first, then those with records alone."""
    found: list[Run] = []
    known: set[tuple[str, ...]] = set()
    for path in _run_folders():
        opened = _open_run(path)
        if opened is not None and opened.sha256s not in known:  # a copy of a run shows nothing new
            found.append(opened)
            known |= {opened.sha256s} - {()}
    for study in _all_studies():
        for trajectory in trajectories(study):
            run = _studied_run(study, trajectory)
            if not any(set(run.sha256s) <= set(sha256s) for sha256s in known):
                found.append(run)
                known.add(run.sha256s)
    shown = [run for run in found if run.snapshots or run.sha256s or run.lines]
    return _distinct(
        sorted(shown, key=lambda run: (len(run.sha256s) < 2, run.rule != "bp", run.name))
    )


def _run_folders() -> list[Path]:
    """Folders that look like runs."""
    homes = (Path(), folders.library_folder(), folders.shipped_folder())
    return [path.parent for home in homes for path in sorted(home.glob("runs/*/config.json"))]


def _open_run(path: Path) -> Run | None:
    """A run's folder; None where its configuration cannot be read."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            return None
        snapshots = _snapshots(path)
        sha256s = tuple(_sha256(*folders.stamp(file)) for file in snapshots)
        lines = _read_lines(path / "metrics.jsonl")
    except (OSError, ValueError):
        return None
    return Run(
        name=path.name,
        rule=str(config.get("rule", "")),
        folder=path,
        snapshots=snapshots,
        epochs=tuple(_epoch(file) for file in snapshots),
        sha256s=sha256s,
        lines=lines,
        config={name: config.get(name) for name in RECORDED},
    )


def _read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """The epochs recorded so far, up to a line that a crash cut short.

    As `auglocal.runs.read_metrics`, which comes with torch: pictures from files must not wait for
    it.
    """
    found: list[dict[str, Any]] = []
    if not path.exists():
        return ()
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if isinstance(line, dict) and isinstance(line.get("epoch"), int):
            found.append(line)
    return tuple(found)


def _snapshots(path: Path) -> tuple[Path, ...]:
    """Checkpoints kept along training, first epoch to last."""
    return tuple(sorted((path / "snapshots").glob("epoch-*.safetensors"), key=_epoch))


def _epoch(path: Path) -> int:
    """The epoch that a snapshot's name tells."""
    return int("".join(filter(str.isdigit, path.stem)) or 0)


@st.cache_resource(max_entries=512, show_spinner=False)
def _sha256(path: str, size: int, changed: int) -> str:
    """A file's checksum; cached by path, size and time of change."""
    return file_sha256(path)


def _studied_run(study: Study, trajectory: Trajectory) -> Run:
    """A run as a study knows it."""
    by_name = {entry.name: entry for entry in study.question.checkpoints}
    entries = [by_name[name] for name in trajectory.names]
    question = study.question
    return Run(
        name=f"{entries[-1].architecture}-{entries[-1].rule}-seed{entries[-1].seed}",
        rule=entries[-1].rule,
        folder=None,
        snapshots=(),
        epochs=trajectory.epochs,
        sha256s=tuple(entry.sha256 for entry in entries),
        lines=(),
        config={"dataset": question.dataset, "dataset_title": question.dataset_title},
    )


def _distinct(found: Sequence[Run]) -> list[Run]:
    """Runs with a number where others have the same name."""
    names: list[str] = []
    for run in found:
        count = sum(name == run.name or name.startswith(f"{run.name} (") for name in names)
        names.append(f"{run.name} ({count + 1})" if count else run.name)
    return [replace(run, name=name) for run, name in zip(found, names, strict=True)]


# ----------------------------------------------------------------------------------------- answers


def _all_studies() -> list[Study]:
    """Studies that can hold snapshots: computed here, shipped, and opened from files."""
    return [*(study for _, study in _computed()), *(file.study for file in studies.study_files())]


def _computed() -> list[tuple[Path, Study]]:
    """Studies of snapshots that this app computed."""
    found = []
    for path in sorted(_kept_folder().glob("*.study.json")):
        with contextlib.suppress(ValueError, OSError):
            found.append((path, _read(*folders.stamp(path))))
    return found


@st.cache_resource(max_entries=64, show_spinner=False)
def _read(path: str, size: int, changed: int) -> Study:
    """Read a study; cached by path, size and time of change."""
    return load_study(path)


def find(question: Question) -> Study | None:
    """A study that holds all these snapshots on these images; that of the question itself first."""
    with contextlib.suppress(ValueError, OSError):
        return _read(*folders.stamp(question.path))
    prefix = f"dynamics-{datasets.folder_prefix(question.dataset)}"
    is_folder = question.dataset.startswith(datasets.FOLDER_PREFIX)
    for path, study in _computed():
        # A folder may change on disk: its contents are in the file's name.
        if _answers(study, question) and (
            path.name.startswith(prefix)
            if is_folder
            else study.question.dataset == question.dataset
        ):
            return study
    for file in studies.study_files():
        if _answers(file.study, question) and file.study.question.dataset == question.dataset:
            return file.study
    return None


def _answers(study: Study, question: Question) -> bool:
    """Whether a study holds all snapshots; more of them, and more measures, do no harm."""
    asked = study.question
    here = {entry.sha256 for entry in asked.checkpoints}
    is_same = (asked.samples, asked.seed) == (question.samples, question.seed)
    has_probes = bool(study.probes) or not question.train_samples or study.cka is not None
    return is_same and has_probes and set(question.sha256s) <= here


def settings_of(sha256s: Sequence[str]) -> tuple[str, int, int] | None:
    """Data, number of images and seed of a study that holds these snapshots, if there is one."""
    for study in _all_studies():
        if sha256s and set(sha256s) <= {entry.sha256 for entry in study.question.checkpoints}:
            return study.question.dataset, study.question.samples, study.question.seed
    return None


def trajectory_of(study: Study, run: Run) -> Trajectory | None:
    """A run as a study names it; None where the study does not hold all its snapshots."""
    names = {entry.sha256: entry.name for entry in study.question.checkpoints if not entry.role}
    if len(run.sha256s) < 2 or not set(run.sha256s) <= set(names):
        return None
    return Trajectory(run.name, tuple(names[sha256] for sha256 in run.sha256s), run.epochs)


def start(question: Question, chosen: Sequence[Run]) -> jobs.Job:
    """Measure all snapshots of runs in a job.

    Raises:
        jobs.BusyError, OSError: as `jobs.Registry.start`.
    """
    title = f"Snapshots of {' and '.join(run.name for run in chosen)}"
    work, stopped = _work(question, chosen), question.stopped_path
    return computing.registry().start(question.key, title, work, question.path, stopped)


def find_stopped(question: Question) -> Study | None:
    """What a stopped job kept of the answer; None where it kept nothing."""
    with contextlib.suppress(ValueError, OSError):
        return _read(*folders.stamp(question.stopped_path))
    return None


def _work(question: Question, chosen: Sequence[Run]) -> jobs.Work:
    """The work of a job, as `python -m analysis dynamics` does it."""

    def work(report: jobs.Report, cancelled: Callable[[], bool]) -> Study:
        report("Opening snapshots", 0, 0)
        from analysis.models import open_model
        from analysis.run import run_study

        models = [open_model(path, "auto") for run in chosen for path in run.snapshots]
        is_folder = question.dataset.startswith(datasets.FOLDER_PREFIX)
        return run_study(
            models,
            dataset=question.dataset,
            dataset_title=chosen[0].config.get("dataset_title") if is_folder else None,
            image_size=models[0].metadata.input_size[1] if is_folder else None,
            samples=question.samples,
            seed=question.seed,
            batch_size=BATCH_SIZE,
            measures=("cka", "probe") if question.train_samples else ("cka",),
            train_samples=question.train_samples or None,
            num_neighbours=0,
            num_shuffles=0,
            title=f"Snapshots of {' and '.join(run.name for run in chosen)}",
            out="dynamics.study.json",
            progress=lambda step: report(step.stage, step.done, step.total),
            partial=report.publish,
            cancelled=cancelled,
            keep_partial=True,
        )

    return work


def seconds_of(question: Question, num_snapshots: int) -> float | None:
    """About how long such a question takes here, by earlier ones; None where there were none."""
    rates = []
    for path in _kept_folder().glob("*.study.json"):
        with contextlib.suppress(ValueError, OSError):
            study = _read(*folders.stamp(path))
            asked = study.question
            images = asked.samples + (asked.train_samples or 0)
            rates.append(study.provenance.seconds / (images * len(asked.checkpoints)))
    images = question.samples + question.train_samples
    return max(rates) * images * num_snapshots if rates else None


def command(question: Question, chosen: Sequence[Run]) -> str:
    """The command that computes the same in a terminal."""
    words = ["python", "-m", "analysis", "dynamics", *(str(run.folder) for run in chosen)]
    words += ["--dataset", question.dataset, "--samples", str(question.samples)]
    words += ["--seed", str(question.seed), "--batch-size", str(BATCH_SIZE)]
    words += ["--train-samples", str(question.train_samples), "--num-neighbours", "0"]
    return shlex.join([*words, "--out", "dynamics.study.json"])
