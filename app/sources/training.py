"""Training runs that the app starts: detached processes that outlive the page and the app.

A run is a folder in the library, as `python -m auglocal train` writes it, with three files of ours:

launch.json    what was started: arguments, process, when, and whether somebody asked it to stop
log.txt        what the command said on stderr
outcome.json   what it printed at its end; empty before, and for ever if it was killed

Nothing else is remembered: another session, or another server, finds the same state there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import jobs
from app.sources import folders
from app.sources.catalogue import Field, Recipe, catalogue
from auglocal.errors import InputError, writing
from auglocal.files import write_whole

if TYPE_CHECKING:
    from app.sources.checkpoints import CheckpointFile

PROGRAM = (sys.executable, "-m", "auglocal", "train")
LAUNCH, LOG, OUTCOME = "launch.json", "log.txt", "outcome.json"
RUNNING, STOPPING, FINISHED = "running", "stopping", "finished"
STOPPED, FAILED, INTERRUPTED = "stopped", "failed", "interrupted"
ALIVE = (RUNNING, STOPPING)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
BAR = re.compile(r"(\d+)/(\d+) \[[\d:]+<([\d:]+|\?)")
SPEED = re.compile(r"loss ([\d.]+), accuracy ([\d.]+)%, ([\d,]+) images/s")
ERROR = re.compile(r"auglocal(?: train)?: (.+)")
EXCEPTION = re.compile(r"([A-Za-z_.]+(?:Error|Exception))\b")
LOG_TAIL = 16384  # bytes of a log that are read
DRY_RUN_SECONDS = 300
KILLED = (
    "The process ended without a word: it was killed, ran out of memory, or the machine went off. "
    "What it had saved is intact"
)


@dataclass(frozen=True)
class Run:
    """A training run in the library.

    Attributes:
        name, path: its folder.
        state: one of the six constants of this module.
        message: why it failed or what happened, one sentence; text from a log.
        values: what it was asked, by the names of `TrainConfig`; those left out are defaults.
        epoch, epochs: completed, and in all.
        test_accuracy: after the last completed epoch, a fraction; None before.
        started: when, as an ISO date in UTC.
    """

    name: str
    path: Path
    state: str
    message: str
    values: dict[str, Any]
    epoch: int
    epochs: int
    test_accuracy: float | None
    started: str

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        return self.state in ALIVE

    @property
    def checkpoint(self) -> Path:
        """The network after the last completed epoch."""
        return self.path / "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run is within all its steps, as its progress bar says.

    `left` is a text such as 01:20, empty while unknown; `loss`, `accuracy` (a fraction) and
    `images_per_second` are of the epoch so far, None while unknown.
    """

    step: int
    steps: int
    left: str
    loss: float | None
    accuracy: float | None
    images_per_second: float | None


# ---------------------------------------------------------------------------------- what to train


def config_fields() -> dict[str, Field]:
    """All fields of `TrainConfig`, by name."""
    return catalogue().fields


def is_relevant(name: str, rule: str) -> bool:
    """Whether a rule knows an option; options that are no rule's matter to all."""
    owners = config_fields()[name].rules
    return not owners or rule in owners


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers of a text such as 0,1,4.

    Raises:
        InputError: it is no such text.
    """
    try:
        return tuple(int(part) for part in text.replace(" ", "").split(",") if part)
    except ValueError as error:
        raise InputError(
            f"The snapshot epochs must be whole numbers with commas between them, such as 0,1,4, "
            f"not {text!r}."
        ) from error


@st.cache_resource(max_entries=256, show_spinner=False)
def problem(values: tuple[tuple[str, Any], ...]) -> str:
    """Why these values are no configuration, one sentence; empty when they are one."""
    from auglocal.config import TrainConfig

    try:
        TrainConfig(**dict(values))
    except InputError as error:
        return jobs.sentence(error)
    return ""


def recipes() -> dict[str, Recipe]:
    """Every shipped recipe, by name."""
    return catalogue().recipes


def option_arguments(values: Mapping[str, Any]) -> list[str]:
    """Arguments of `auglocal train` for the values that are not at their default.

    A value is part of its flag's own argument, so that no text can be taken for another flag.
    """
    arguments = []
    for item in config_fields().values():
        value = values.get(item.name, item.default)
        if value == item.default or value is None:
            continue
        flag = item.name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (tuple, list)):
            arguments.append(f"--{flag}={','.join(map(str, value))}")
        else:
            arguments.append(f"--{flag}={value}")
    return arguments


def command(values: Mapping[str, Any], *more: str) -> str:
    """The command that trains with these values, to be copied into a terminal."""
    return shlex.join(["python", "-m", "auglocal", "train", *option_arguments(values), *more])


def default_name(values: Mapping[str, Any]) -> str:
    """A name that no run has: DATA-ARCHITECTURE-RULE-SEED, and a number if need be."""
    data = Path(values["dataset"].partition(":")[2] or values["dataset"]).name
    parts = (data, values["architecture"], values["rule"], f"seed{values['seed']}")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).lstrip("._-")[:70] or "run"
    number, taken = 2, name
    while (runs_folder() / taken).exists():
        taken, number = f"{name}-{number}", number + 1
    return taken


def dry_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run would do and how long it would take, as `auglocal train --dry-run` says.

    Raises:
        InputError: it could not be run; the command's own sentence.
    """
    arguments = [*option_arguments(values), "--dry-run", "--json"]
    try:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=DRY_RUN_SECONDS,
            check=False,
        )
        outcome: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise InputError("Three steps took more than five minutes; take a smaller one.") from error
    except ValueError as error:
        raise InputError(_failure(done.stderr) or "The command said nothing.") from error
    return outcome


# ------------------------------------------------------------------------------- starting, stopping


def runs_folder() -> Path:
    """Where the runs that the app starts lie."""
    return folders.library_folder() / "runs"


def start(name: str, values: Mapping[str, Any], *, download: bool = False) -> None:
    """Start a run in a process of its own.

    Args:
        name: of its folder.
        values: fields of `TrainConfig`.
        download: fetch the data set if it is not there.

    Raises:
        InputError: the name will not do.
        jobs.BusyError: another run is alive.
        auglocal.errors.WorkError: the folder cannot be written.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            "A run's name has letters, digits, dots, dashes and underscores, 80 at most, and "
            "begins with a letter or digit."
        )
    path = runs_folder() / name
    if path.exists():
        raise InputError(
            f"There is already a run called {name}; go on with it under Runs, delete it, or take "
            "another name."
        )
    arguments = [*option_arguments(values), f"--out={path.absolute()}"]
    _launch(path, [*arguments, *(["--download"] if download else [])], dict(values))


def resume(run: Run) -> None:
    """Go on with a run that was stopped, was interrupted or failed.

    One that was ended before it had written anything begins again.

    Raises: as `start`.
    """
    launch = _read_json(run.path / LAUNCH)
    arguments = list(launch.get("arguments", []))
    if (run.path / "config.json").exists():
        arguments = [f"--resume={run.path.absolute()}"]
        arguments += ["--download"] if "--download" in launch.get("arguments", []) else []
    _launch(run.path, arguments, run.values)


def stop(run: Run) -> None:
    """Ask a run to save everything and end after the step at hand."""
    _end(run, signal.SIGTERM)


def kill(run: Run) -> None:
    """End a run at once; what it had saved stays."""
    _end(run, getattr(signal, "SIGKILL", signal.SIGTERM))


def delete(run: Run) -> None:
    """Delete a run's folder and all in it; one that is alive stays."""
    if find(run.name) is not None and not _is_alive(_read_json(run.path / LAUNCH)):
        shutil.rmtree(run.path, ignore_errors=True)


def _launch(path: Path, arguments: Sequence[str], values: Mapping[str, Any]) -> None:
    """Start the command; one at a time."""
    with _lock():
        alive = running()
        if alive is not None:
            raise jobs.BusyError(f"{alive.name} is still training; stop it or wait for its end.")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            launch = {
                "arguments": [text for text in arguments if not text.startswith("--resume")]
                or _read_json(path / LAUNCH).get("arguments", []),
                "values": dict(values),
                # A resumed run began when it was first started.
                "started": _read_json(path / LAUNCH).get("started")
                or datetime.now(UTC).isoformat(timespec="seconds"),
            }
            _write_json(path / LAUNCH, launch)
            with (path / OUTCOME).open("wb") as outcome, (path / LOG).open("wb") as log:
                process = subprocess.Popen(
                    [*PROGRAM, *arguments, "--json"],
                    stdin=subprocess.DEVNULL,
                    stdout=outcome,
                    stderr=log,
                    env=_environment(),
                    start_new_session=True,
                )
            _children()[process.pid] = process
            identity = {"pid": process.pid, "process_started": _process_started(process.pid)}
            _write_json(path / LAUNCH, {**launch, **identity})


def _environment() -> dict[str, str]:
    """That of the app; its own copy of the packages first, and a quieter progress bar."""
    paths = [str(folders.ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TQDM_MININTERVAL": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def _end(run: Run, number: int) -> None:
    """Send a signal to a run's process, if it is still that process."""
    launch = _read_json(run.path / LAUNCH)
    if _is_alive(launch):
        _write_json(run.path / LAUNCH, {**launch, "stop_asked": True})
        with contextlib.suppress(ProcessLookupError):
            os.kill(launch["pid"], number)


@st.cache_resource(show_spinner=False)
def _lock() -> threading.Lock:
    """Two sessions never start a run at the same time."""
    return threading.Lock()


@st.cache_resource(show_spinner=False)
def _children() -> dict[int, subprocess.Popen[bytes]]:
    """Processes that this server started; asking them how they are lets ended ones go."""
    return {}


# --------------------------------------------------------------------------------------- the state


def runs() -> list[Run]:
    """All runs in the library, the latest first."""
    found = (_read_run(path.parent) for path in runs_folder().glob(f"*/{LAUNCH}"))
    return sorted(found, key=lambda run: (run.is_alive, run.started), reverse=True)


def find(name: str) -> Run | None:
    """A run by its name."""
    path = runs_folder() / name
    return _read_run(path) if NAME.fullmatch(name) and (path / LAUNCH).exists() else None


def running() -> Run | None:
    """The run whose process is there."""
    return next((run for run in runs() if run.is_alive), None)


def metrics(run: Run) -> list[dict[str, Any]]:
    """The epochs recorded so far, as `auglocal.runs.read_metrics` reads them."""
    return _metric_lines(run.path)


def progress(run: Run) -> Progress | None:
    """Where a run is, by the last of its progress bar; None before its first step."""
    for line in reversed(_log_lines(run.path)):
        bar = BAR.search(line)
        if bar is None:
            continue
        speed = SPEED.search(line)
        values = [float(part.replace(",", "")) for part in speed.groups()] if speed else None
        return Progress(
            step=int(bar[1]),
            steps=int(bar[2]),
            left="" if bar[3] == "?" else bar[3],
            loss=values[0] if values else None,
            accuracy=values[1] / 100 if values else None,
            images_per_second=values[2] if values else None,
        )
    return None


def log_text(run: Run) -> str:
    """The last lines that a run said, progress bars left out; text from outside."""
    lines = [line for line in _log_lines(run.path) if BAR.search(line) is None]
    return "\n".join(lines[-30:])


def finished_checkpoints() -> list[Path]:
    """Checkpoints of finished runs: those of the library, and of runs/ in the working directory.

    AUGLOCAL_RUNS names another folder than runs/.

    Reads neither weights nor PyTorch.
    """
    here = Path(os.environ.get("AUGLOCAL_RUNS") or "runs")
    patterns = ((runs_folder(), "*"), (here, "*"), (here, "*/seed-*"))
    found = [folder for root, pattern in patterns for folder in sorted(root.glob(pattern))]
    paths = [folder / "checkpoint.safetensors" for folder in found if _is_finished(folder)]
    return [path for path in paths if path.exists()]


def metrics_beside(checkpoint: Path) -> list[dict[str, Any]]:
    """What was measured while a checkpoint was trained, a line an epoch; empty if not kept.

    A run's metrics lie beside its checkpoint; those of a shipped one have its name before theirs.
    """
    for path in (checkpoint.with_suffix(".metrics.jsonl"), checkpoint.parent / "metrics.jsonl"):
        if path.is_file():
            return _read_lines(*folders.stamp(path))
    return []


def partner(
    mine: Run, sha256: str, entries: Sequence[tuple[CheckpointFile, Any]]
) -> CheckpointFile | None:
    """The checkpoint to compare a run with: of the same data and architecture and another rule.

    Of several such the one of the same seed.

    Args:
        mine: the run.
        sha256: of its checkpoint.
        entries: all checkpoints with their metadata, as `checkpoints.with_metadata` gives them.
    """
    rule, architecture = (mine.values.get(name) for name in ("rule", "architecture"))
    dataset = next((about.dataset for entry, about in entries if entry.sha256 == sha256), None)

    def fit(about: Any) -> tuple[int, bool]:
        alike = (about.architecture == architecture, about.rule != rule)
        same_seed = about.seed == mine.values.get("seed") and "opened_from" not in about.config
        return int(sum(alike) + 2 * (dataset in (None, about.dataset))), same_seed

    others = [(entry, about) for entry, about in entries if entry.sha256 != sha256]
    return max(others, key=lambda pair: fit(pair[1]))[0] if others else None


def _read_run(path: Path) -> Run:
    """A run's state, as its files tell it."""
    launch = _read_json(path / LAUNCH)
    config = _read_json(path / "config.json")
    lines = _metric_lines(path)
    state, message = _state(path, launch)
    given = {**launch.get("values", {}), **config}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return Run(
        name=path.name,
        path=path,
        state=state,
        message=message,
        values=values,
        epoch=lines[-1]["epoch"] if lines else 0,
        epochs=int(given.get("epochs", 0)),
        test_accuracy=lines[-1].get("test_accuracy") if lines else None,
        started=str(launch.get("started", "")),
    )


def _state(path: Path, launch: Mapping[str, Any]) -> tuple[str, str]:
    """State and message of a run."""
    if _is_alive(launch):
        return (STOPPING if launch.get("stop_asked") else RUNNING), ""
    outcome = _read_json(path / OUTCOME)
    if outcome.get("finished"):
        return FINISHED, ""
    if outcome or launch.get("stop_asked"):
        return STOPPED, "" if outcome else "It was ended before it could save its last steps."
    failure = _failure("\n".join(_log_lines(path)))
    return (FAILED, failure) if failure else (INTERRUPTED, f"{KILLED}.")


def _failure(log: str) -> str:
    """The sentence with which a command failed; empty if it did not say one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    said = ERROR.match(lines[-1])
    if said is not None:
        text = said[1].strip()
        return text[0].upper() + text[1:] if text != "interrupted." else ""
    exception = EXCEPTION.match(lines[-1])
    if exception is not None:
        return f"Something unexpected went wrong ({exception[1]}); its log has the details."
    return ""


def _is_alive(launch: Mapping[str, Any]) -> bool:
    """Whether the process that was started is there: its number, and when it began."""
    pid = launch.get("pid")
    if not isinstance(pid, int):
        return False
    child = _children().get(pid)
    if child is not None and child.poll() is not None:
        del _children()[pid]
        return False
    return _process_started(pid) == launch.get("process_started") is not None


def _process_started(pid: int) -> str | None:
    """When a process began, as this system tells it; None if there is none.

    Numbers of processes come round again; a number with this is one process.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The name before the bracket may hold anything; state and start time come after it.
            parts = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if parts[0] in "ZX" else f"{boot} {parts[19]}"
    done = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, began = done.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else began.strip()


def _is_finished(folder: Path) -> bool:
    """Whether a run folder's last epoch is its configuration's last."""
    lines = _metric_lines(folder)
    return bool(lines) and lines[-1].get("epoch") == _read_json(folder / "config.json").get(
        "epochs"
    )


def _metric_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, read anew when the file changes."""
    path = folder / "metrics.jsonl"
    try:
        return _read_lines(*folders.stamp(path))
    except OSError:
        return []


@st.cache_resource(max_entries=256, show_spinner=False)
def _read_lines(path: str, size: int, changed: int) -> list[dict[str, Any]]:
    """Epochs of a file; a last line cut short is left out (as `auglocal.runs.read_metrics` does).

    That one would import PyTorch, which the list of checkpoints can do without.
    """
    lines = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _log_lines(folder: Path) -> list[str]:
    """The last lines of a run's log; each state of its progress bar is one."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=2).encode())
