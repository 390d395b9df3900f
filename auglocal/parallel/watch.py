"""Whether all ranks are alive and get on; the first to see that one does not ends the run.

Each rank's watch publishes a heartbeat in the store that torchrun keeps, and reads the others'. A
rank whose heartbeat stops is dead or frozen; one that beats but neither gets on nor waits for
another hangs. Clocks are never compared: what counts is how long a reader has seen no change, while
it was not paused itself (as a batch system pauses all ranks of a job).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch._C._distributed_c10d import Store

from auglocal.errors import WorkError

FAILED = 1
# Of the timeout, but seldom enough not to burden the store.
BEATS_PER_TIMEOUT, LONGEST_BEAT = 10, 0.5
# After a connection broke: a rank that missed so many beats is the one that died.
MISSED_BEATS = 4
# After a rank failed and said why: seconds until who still waits for it is ended. Over gloo the
# others notice at once; NCCL may wait on a GPU for ever.
PARTING = 10.0
ADVICE = "what was saved is intact: go on with --resume (torchrun --max-restarts does so by itself)"


@dataclass(frozen=True)
class Sign:
    """What a rank says about itself.

    Attributes:
        beat: counts its heartbeats.
        progress: counts what it has done.
        waiting: whether it waits for another rank.
        left: why it is no longer there: "done", "failed", "lost"; "" while it is.
        host, pid: its process.
    """

    beat: int
    progress: int
    waiting: bool
    left: str
    host: str
    pid: int


@dataclass
class Seen:
    """A rank's last sign, and when its beat and its progress last changed, by this clock."""

    sign: Sign
    beat_at: float
    progress_at: float


class Watch:
    """A rank's own heartbeat, and its eye on the others; runs in a thread of its own.

    Args:
        rank: of this process.
        names: what each rank does, for messages.
        timeout: seconds without a sign of life, or of progress, that are too many.
        store: of the ranks; only this thread and `explain` use it.
        keeper: the rank whose process holds the store; None where torchrun's does.
    """

    def __init__(
        self, rank: int, names: Sequence[str], timeout: float, store: Store, keeper: int | None
    ) -> None:
        self._rank, self._names, self._timeout, self._store = rank, names, timeout, store
        self._keeper = keeper
        self._asked_at: float | None = None  # since when the store has owed an answer
        self._interval = min(LONGEST_BEAT, timeout / BEATS_PER_TIMEOUT)
        self._beat = self._progress = self._waits = 0
        self._left = ""
        self._host = socket.gethostname()
        self._seen: dict[int, Seen] = {}
        self._lock = threading.Lock()
        self._ended, self._left_store = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._guard = threading.Thread(target=self._guard_store, name="guard", daemon=True)
        self._publish()

    def start(self) -> None:
        """Begin; every rank must have made its watch."""
        self._thread.start()
        self._guard.start()

    def progress(self) -> None:
        """Note that this rank got on."""
        self._progress += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that this rank waits for another meanwhile."""
        self._waits += 1
        try:
            yield
        finally:
            self._progress += 1
            self._waits -= 1

    def leave(self, reason: str) -> None:
        """Say why this rank goes, and stop watching."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._left = reason
        with contextlib.suppress(RuntimeError):  # the store may be gone
            self._publish()
        self._left_store.set()

    def see_off(self) -> None:
        """Where this process holds the store, keep it until the others have read why it goes."""
        if self._keeper != self._rank:
            return
        deadline = time.monotonic() + self._last_look
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline:
                self._look()
                if all(item.sign.left for item in self._seen.values()):
                    return
                time.sleep(self._interval / 2)

    @property
    def _last_look(self) -> float:
        """Seconds in which a rank that goes can see whether the others live, and they it."""
        return 3 * MISSED_BEATS * self._interval

    def explain(self, error: RuntimeError) -> BaseException:
        """Find out why communication failed.

        Returns:
            What to raise: a WorkError that names the rank that died, on the first rank to notice;
            SystemExit on the others, and where another rank failed and said so; `error` itself if
            all ranks are well.
        """
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            return self._explain(error)
        except RuntimeError:
            return self._store_lost()
        finally:
            self.leave("lost")

    def _explain(self, error: RuntimeError) -> BaseException:
        deadline = time.monotonic() + self._last_look
        while time.monotonic() < deadline:
            self._look()
            if any(seen.sign.left == "failed" for seen in self._seen.values()):
                return SystemExit(FAILED)
            now = time.monotonic()
            for rank, seen in self._seen.items():
                missed = now - seen.beat_at > MISSED_BEATS * self._interval
                if missed and not seen.sign.left:
                    return self._end(f"Rank {rank} ({self._names[rank]}) ended without a word")
            time.sleep(self._interval / 2)
        if any(seen.sign.left == "lost" for seen in self._seen.values()):
            return SystemExit(FAILED)
        return error

    def _end(self, what: str) -> BaseException:
        """The sentence, for the first rank that has one to say."""
        if self.speaks_first():
            return WorkError(f"{what}; {ADVICE}.")
        return SystemExit(FAILED)

    def speaks_first(self) -> bool:
        """Whether no other rank has told people what is wrong; from now on this one has."""
        try:
            with self._asking():
                return self._store.add("announced", 1) == 1
        except RuntimeError:  # no store, no others
            return True

    def _store_lost(self) -> WorkError:
        return WorkError(
            f"{self._keeper_name} ended, and with it the ranks' meeting place; {ADVICE}."
        )

    @property
    def _keeper_name(self) -> str:
        """Who holds the store: torchrun, or a rank where something else started the processes."""
        if self._keeper is None:
            return "torchrun"
        return f"Rank {self._keeper} ({self._names[self._keeper]})"

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Note that the store owes an answer meanwhile."""
        self._asked_at = time.monotonic()
        try:
            yield
        finally:
            self._asked_at = None

    def _guard_store(self) -> None:
        """End the process when the store's keeper is frozen: then no timeout of the store holds."""
        woke_at = looked_at = time.monotonic()
        while not self._left_store.wait(self._interval):
            if time.monotonic() - looked_at > MISSED_BEATS * self._interval:
                woke_at = time.monotonic()  # after a pause of this process: all may have had one
            looked_at = time.monotonic()
            asked_at = self._asked_at
            if asked_at is None or looked_at - max(asked_at, woke_at) <= self._limit:
                continue
            print(
                f"auglocal: {self._keeper_name}, who keeps the ranks' meeting place, has given no "
                f"sign of life for {time.monotonic() - asked_at:.0f} s; {ADVICE}.",
                file=sys.stderr,
                flush=True,
            )
            if self._keeper in self._seen:
                self._kill(self._seen[self._keeper].sign)
            os._exit(FAILED)

    def _publish(self) -> None:
        self._beat += 1
        sign = Sign(
            self._beat, self._progress, self._waits > 0, self._left, self._host, os.getpid()
        )
        with self._asking():
            self._store.set(f"sign/{self._rank}", json.dumps(asdict(sign)))

    def _look(self) -> None:
        """Publish, read the others' signs, and note what has changed."""
        self._publish()
        now = time.monotonic()
        others = [rank for rank in range(len(self._names)) if rank != self._rank]
        with self._asking():
            texts = self._store.multi_get([f"sign/{rank}" for rank in others])
        for rank, text in zip(others, texts):
            sign = Sign(**json.loads(text))
            before = self._seen.get(rank)
            if before is None:
                self._seen[rank] = Seen(sign, now, now)
                continue
            moved = sign.progress != before.sign.progress or sign.waiting
            self._seen[rank] = Seen(
                sign,
                now if sign.beat != before.sign.beat else before.beat_at,
                now if moved else before.progress_at,
            )

    def _run(self) -> None:
        """Watch until told to stop; ends the process when a rank is found dead or hanging."""
        looked_at = time.monotonic()
        while not self._ended.wait(self._interval):
            self._forgive(time.monotonic() - looked_at)
            looked_at = time.monotonic()
            try:
                self._look()
                now = time.monotonic()
                if has_failed(self._seen, now, min(self._limit, PARTING)):
                    break  # who failed has told people why
                found = find_silent(self._seen, now, self._limit)
                if found is None:
                    continue
                rank, what = found
                told = self._end(f"Rank {rank} ({self._names[rank]}) {what}")
            except RuntimeError:
                rank, told = None, self._store_lost()
            if self._ended.is_set():
                return
            if isinstance(told, WorkError):
                print(f"auglocal: {told}", file=sys.stderr, flush=True)
            if rank is not None:
                self._kill(self._seen[rank].sign)
                self._kill_silent()
            break
        if not self._ended.is_set():
            # The main thread may wait in the communication library for ever.
            os._exit(FAILED)

    def _forgive(self, asleep: float) -> None:
        """Do not count a time in which this process was paused itself: all may have been."""
        if asleep > MISSED_BEATS * self._interval:
            for item in self._seen.values():
                item.beat_at += asleep
                item.progress_at += asleep

    @property
    def _limit(self) -> float:
        """Seconds without change after which the run ends just inside its timeout."""
        return self._timeout - 2 * self._interval

    def _kill_silent(self) -> None:
        """End the others that are frozen too, if the first was not the only one."""
        now = time.monotonic()
        for item in self._seen.values():
            if not item.sign.left and now - item.beat_at > MISSED_BEATS * self._interval:
                self._kill(item.sign)

    def _kill(self, sign: Sign) -> None:
        """End a process that hangs on this machine: it would not hear of the run's end."""
        if sign.host == self._host:
            with contextlib.suppress(OSError):
                os.kill(sign.pid, signal.SIGKILL)


def has_failed(seen: Mapping[int, Seen], now: float, limit: float) -> bool:
    """Whether another rank failed, and has been gone for longer than `limit` seconds."""
    gone = [item for item in seen.values() if item.sign.left in ("failed", "lost")]
    return any(now - item.beat_at > limit for item in gone)


def find_silent(seen: Mapping[int, Seen], now: float, limit: float) -> tuple[int, str] | None:
    """The rank that holds the run up, if any, and what is wrong with it.

    Args:
        seen: of the other ranks.
        now: by the clock of `seen`.
        limit: seconds.

    Returns:
        (rank, words), a rank without a heartbeat before one that hangs; None if all is well.
    """
    present = {rank: item for rank, item in seen.items() if not item.sign.left}
    for rank, item in present.items():
        if now - item.beat_at > limit:
            return rank, f"has given no sign of life for {now - item.beat_at:.0f} s"
    for rank, item in present.items():
        if now - item.progress_at > limit:
            return rank, f"has not got on for {now - item.progress_at:.0f} s"
    return None
