"""Parallel runs that lose ranks at random moments and go on in other layouts, as long as you like.

    python -m tests.auglocal.soak --minutes 30

Ranks are killed, frozen or asked to stop; now and then two at once, or while they still start. What
is left must end by itself and name who is gone. In the end, after several deaths and in whatever
layouts, each run's weights and momenta must be equal to the last bit to those of a run that nothing
happened to. The status is 0 if all were; else what went wrong is said, and the folder is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from auglocal.runs import RunFolder, load_state, read_metrics
from tests.auglocal.ranks import PATIENCE, Command, Ranks, assert_same_run, free_port

EPOCHS = 12
TIMEOUT = 8.0  # seconds
GRACE = 10.0  # seconds that a busy machine may take on top
COMMON = ["--dataset", "digits", "--device", "cpu", "--epochs", str(EPOCHS), "--width", "0.25"]
COMMON += ["--batch-size", "30", "--validation-samples", "500", "--snapshot-epochs", "0,5"]
# Layouts by ranks; of a family all learn the same, to the last bit.
BLOCKS = {"alone": 1, "layers=2": 2, "layers=3": 3, "layers=4": 4}
SHARES = {"data=2": 2, "layers=2,data=2": 4}
RUNS: list[tuple[Mapping[str, int], list[str]]] = [
    (BLOCKS, ["--rule", "auglocal", "--modules", "5", "--auxiliary-depth", "2"]),
    (SHARES, ["--rule", "dgl", "--modules", "4"]),
    (BLOCKS, ["--rule", "infopro", "--modules", "4", "--accumulate", "2"]),
    (SHARES, ["--rule", "auglocal", "--modules", "4", "--sync-batch-norm", "--accumulate", "2"]),
    (BLOCKS, ["--rule", "predsim", "--modules", "4", "--step-per-block"]),
]
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "stop": signal.SIGTERM}


@dataclass
class Soak:
    """What is needed all the time.

    Attributes:
        folder: of all runs.
        draw: decides what happens when.
        ends: when to begin nothing new, by the monotonic clock.
        ranks: starts processes.
        counts: of what happened.
        undisturbed: runs that nothing happened to, by the options.
    """

    folder: Path
    draw: random.Random
    ends: float
    ranks: Ranks
    counts: Counter[str] = field(default_factory=Counter)
    undisturbed: dict[int, RunFolder] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="decides what happens when")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    ends = time.monotonic() + 60 * options.minutes
    soak = Soak(folder, random.Random(options.seed), ends, Ranks(folder))
    try:
        for index in itertools.count():
            disturb_a_run(soak, index % len(RUNS), folder / f"run-{index}")
            if time.monotonic() > ends:
                break
    except AssertionError as error:
        print(f"soak: {error}\nWhat happened lies in {folder}.", file=sys.stderr)
        return 1
    finally:
        soak.ranks.clean_up()
        print(", ".join(f"{name}: {count}" for name, count in sorted(soak.counts.items())))
    shutil.rmtree(folder)
    return 0


def disturb_a_run(soak: Soak, kind: int, path: Path) -> None:
    """A run that is disturbed until it is done, and compared with one that was not."""
    layouts, options = RUNS[kind]
    run = RunFolder(path)
    while committed_epochs(run) < EPOCHS - 2 and time.monotonic() < soak.ends:
        layout = soak.draw.choice(list(layouts))
        soak.ranks.start(layouts[layout], command(run, layout, options))
        soak.counts["starts"] += 1
        before = committed_epochs(run)
        what = disturb(soak, run)
        after = committed_epochs(run)
        say(f"{run.path.name} {layout}: {what}; epochs {before} -> {after}")
        assert after >= before, "an epoch that was saved is gone"
    finish(soak, run, layouts, options)
    soak.counts["runs"] += 1
    assert_same_run(undisturbed(soak, kind), run, same_sums=RUNS[kind][0] is BLOCKS)
    assert not [file for file in run.path.rglob(".*") if file.is_file()], "files were left over"
    say(f"{run.path.name}: equal to the last bit to an undisturbed run")
    shutil.rmtree(run.path)


def undisturbed(soak: Soak, kind: int) -> RunFolder:
    """The same run without any disturbance, in the first layout of its family."""
    if kind not in soak.undisturbed:
        layouts, options = RUNS[kind]
        layout, size = next(iter(layouts.items()))
        run = RunFolder(soak.folder / f"undisturbed-{kind}")
        soak.ranks.start(size, command(run, layout, options))
        assert soak.ranks.wait() == [0] * size, soak.ranks.said()
        soak.undisturbed[kind] = run
    return soak.undisturbed[kind]


def command(run: RunFolder, layout: str, options: Sequence[str]) -> Command:
    """Begin a run, or go on with it."""
    return Command(train_options(run, layout, options))


def train_options(run: RunFolder, layout: str, options: Sequence[str]) -> list[str]:
    """What `train` is to do."""
    chosen = ["--resume", str(run.path)]
    if not run.config.exists():
        chosen = [*COMMON, *options, "--out", str(run.path)]
    if layout == "alone":
        return chosen
    return ["--parallel", layout, "--timeout", str(TIMEOUT), *chosen]


def committed_epochs(run: RunFolder) -> int:
    """Epochs that a run would go on from."""
    saved = load_state(run)
    return 0 if saved is None else int(saved["epoch"])


def disturb(soak: Soak, run: RunFolder) -> str:
    """Do something to the ranks that were just started, and see that all ends as it should."""
    ranks, draw = soak.ranks, soak.draw
    size = len(ranks.processes)
    starting = draw.random() < 0.2
    kind = "kill"
    if starting:
        time.sleep(draw.uniform(0, 3))
    else:
        wait_for_epoch(ranks, run)
        time.sleep(draw.uniform(0, 1))
        kind = draw.choices(list(SIGNALS), [6, 0 if size == 1 else 2, 2])[0]
    victims = draw.sample(range(size), 2 if size > 2 and draw.random() < 0.2 else 1)
    if kind == "stop":  # as a terminal and torchrun do
        victims = list(range(size))
    alive = [victim for victim in victims if ranks.processes[victim].is_alive()]
    for victim in alive:
        os.kill(ranks.processes[victim].pid or 0, SIGNALS[kind])
    statuses = ranks.wait(TIMEOUT + GRACE)
    if not alive or set(statuses) == {0}:
        assert set(statuses) == {0}, f"undisturbed ranks ended as {statuses}:\n{ranks.said()}"
        soak.counts["too late"] += 1
        return "done before anything happened"
    if starting and None in statuses:
        # Who has not met anybody yet is ended by torchrun.
        for process in ranks.processes:
            process.kill()
        soak.counts["kills at the meeting"] += 1
        return f"killed {alive} at the meeting"
    if kind == "freeze" and 0 in alive:
        # With rank 0 goes what the ranks know of each other; torchrun ends who is frozen too.
        for victim in alive:
            ranks.processes[victim].kill()
        statuses = ranks.wait()
    soak.counts[f"{kind}s{' at the start' if starting else ''}"] += 1
    check_ends(kind, alive, statuses, ranks.said(), starting=starting)
    return f"{kind} {alive}{' at the start' if starting else ''}"


def check_ends(
    kind: str,
    victims: Sequence[int],
    statuses: Sequence[int | None],
    said: str,
    *,
    starting: bool,
) -> None:
    """See that every rank ended as it should, and that people were told why."""
    what = f"{kind} {victims} ended as {statuses}:\n{said}"
    assert "Traceback" not in said, what
    if kind == "stop":
        assert set(statuses) == {130}, what
        return
    others = [status for rank, status in enumerate(statuses) if rank not in victims]
    assert all(statuses[victim] == -signal.SIGKILL for victim in victims), what
    assert set(others) <= {0, 1}, what
    if 1 in others:
        named = any(f"Rank {victim} (" in said for victim in victims)
        # Who has not met the others does not know who is missing.
        assert named or (starting and "processes did not find each other" in said), what


def wait_for_epoch(ranks: Ranks, run: RunFolder) -> None:
    """Wait until another epoch is recorded, or the ranks are done."""
    first, deadline = len(read_metrics(run)), time.monotonic() + PATIENCE
    while len(read_metrics(run)) <= first and any(item.is_alive() for item in ranks.processes):
        assert time.monotonic() < deadline, f"no epoch came to its end:\n{ranks.said()}"
        time.sleep(0.01)


def finish(soak: Soak, run: RunFolder, layouts: Mapping[str, int], options: Sequence[str]) -> None:
    """Go on to the end: undisturbed, or under torchrun, which restarts after a death by itself."""
    layout = soak.draw.choice(list(layouts))
    size = layouts[layout]
    if size > 1 and soak.draw.random() < 0.4:
        finish_under_torchrun(soak, run, layout, size, options)
        return
    soak.ranks.start(size, command(run, layout, options))
    statuses = soak.ranks.wait()
    assert statuses == [0] * size, f"undisturbed ranks ended as {statuses}:\n{soak.ranks.said()}"


def finish_under_torchrun(
    soak: Soak, run: RunFolder, layout: str, size: int, options: Sequence[str]
) -> None:
    """Kill a rank that torchrun started, and let torchrun do the rest."""
    log = soak.folder / "torchrun.log"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    torchrun += ["--max-restarts", "2", "--master-port", str(free_port()), "-m", "auglocal"]
    with (
        log.open("w") as output,
        ended_with_its_children(
            subprocess.Popen(
                [*torchrun, "train", *train_options(run, layout, options)],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        ) as process,
    ):
        first, deadline = len(read_metrics(run)), time.monotonic() + PATIENCE
        while len(read_metrics(run)) <= first and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if process.poll() is None and (found := children.read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(soak.draw.choice(found[-size:])), signal.SIGKILL)
                soak.counts["kills under torchrun"] += 1
        assert process.wait(PATIENCE) == 0, log.read_text()
    say(f"{run.path.name} {layout}: finished under torchrun")


@contextlib.contextmanager
def ended_with_its_children(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session of its own, which ends with this context."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def say(text: str) -> None:
    """A line for people who watch."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
