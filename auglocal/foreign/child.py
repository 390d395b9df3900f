"""Reading a file in a process of its own, so that nothing in it can harm the one that asked.

In: a path and a folder. Out: a clean copy in the folder, named by its SHA-256, and a summary. The
child has no input, a bare environment, and limits on computing, memory and file size; it imports
neither PyTorch nor anything that the file names. It writes a temporary file, which the parent
renames when all is done and deletes otherwise. On Windows, which has no such limits, only the time
is limited.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from auglocal.errors import InputError, WorkError, writing
from auglocal.foreign.clean import clean_copy
from auglocal.foreign.limits import MIB, Limits
from auglocal.foreign.reader import FileContent, read_file
from auglocal.foreign.refusal import printable

HAS_LIMITS = sys.platform != "win32"
if HAS_LIMITS:
    import resource

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
SETTINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}
# Memory beside the file and its tensors: pickled objects (2,000,000 instructions), texts of up to
# 4 bytes a character, and what testing for NaN takes.
WORKING_BYTES = 768 * MIB
DONE, FAILED, REFUSED = 0, 1, 2


@dataclass(frozen=True)
class Imported:
    """A file that was read, and its clean copy.

    Attributes:
        path: of the clean copy, "SHA256.safetensors".
        clean_sha256: of the clean copy's bytes.
        sha256: of the original's bytes.
        name: of the original file, on one line, cut to 80 characters.
        num_tensors: in the state dict.
        num_bytes: of its tensors.
        dtype: the one that most of its bytes have, "F32" say.
        container, wrapped_in, header, beside, other_states, not_finite, warnings: see
            `auglocal.foreign.reader.FileContent`.
    """

    path: Path
    clean_sha256: str
    sha256: str
    name: str
    num_tensors: int
    num_bytes: int
    dtype: str
    container: str
    wrapped_in: str | None
    header: dict[str, str]
    beside: dict[str, Any]
    other_states: tuple[str, ...]
    not_finite: tuple[str, ...]
    warnings: tuple[str, ...]


def read_in_child(
    path: Path | str, folder: Path | str, limits: Limits, state: str | None = None
) -> Imported:
    """Read a file in a process of its own, and keep a clean copy.

    Args:
        path: of any file.
        folder: of the copies; made if missing.
        limits: what the file may take.
        state: see `read_file`.

    Raises:
        InputError: the file cannot be opened; see `read_file`.
        WorkError: the copy cannot be written.
    """
    path, folder = Path(path).absolute(), Path(folder).absolute()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
        os.close(handle)
    try:
        summary = _ask(path, Path(temporary), limits, state)
        clean = folder / f"{summary['clean_sha256']}.safetensors"
        with writing(clean):
            Path(temporary).chmod(0o644)
            Path(temporary).replace(clean)
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
    for name in ("other_states", "not_finite", "warnings"):
        summary[name] = tuple(summary[name])
    return Imported(path=clean, name=printable(path.name), **summary)


def _ask(path: Path, temporary: Path, limits: Limits, state: str | None) -> dict[str, Any]:
    """Start the child, wait for it, and take its answer."""
    question = {
        "path": str(path),
        "temporary": str(temporary),
        "limits": asdict(limits),
        "state": state,
    }
    name = printable(path.name)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "auglocal.foreign.child", json.dumps(question)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=limits.wall_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{name} took more than {limits.wall_seconds} s to read, so it was not opened; "
            "give a smaller file, or try again when the machine is less busy."
        ) from error
    if done.returncode == DONE:
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary
    if done.returncode == REFUSED:
        raise InputError(json.loads(done.stdout))
    if done.returncode == FAILED and done.stdout:
        raise WorkError(json.loads(done.stdout))
    raise InputError(_death(name, done.returncode, limits))


def _environment() -> dict[str, str]:
    """What the child needs to start, and nothing that the user set."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed_on, **SETTINGS, "PYTHONPATH": str(Path(__file__).parents[2])}


def _death(name: str, status: int, limits: Limits) -> str:
    """The sentence about a child that gave no answer."""
    if HAS_LIMITS and -status in (signal.SIGXCPU, signal.SIGKILL):
        reason = f"took more than {limits.cpu_seconds} s of computing, or all memory, to read"
    else:
        reason = f"stopped the process that read it (status {status})"
    return (
        f"{name} {reason}, so it was not opened; save the weights alone with "
        "torch.save(model.state_dict(), PATH), or give another file."
    )


# In the child


def main(question: str) -> int:
    """Read a file, write its clean copy, and print a summary or a sentence as JSON."""
    asked = json.loads(question)
    limits = Limits(**asked["limits"])
    path, temporary = Path(asked["path"]), Path(asked["temporary"])
    answer: dict[str, Any] | str
    try:
        _limit_this_process(path, limits)
        content = read_file(path, limits, asked["state"])
        answer, status = _summary(content, _write(content, temporary)), DONE
    except InputError as error:
        answer, status = str(error), REFUSED
    except WorkError as error:
        answer, status = str(error), FAILED
    except MemoryError:
        answer, status = _out_of_memory(printable(path.name)), REFUSED
    print(json.dumps(answer))
    return status


def _out_of_memory(name: str) -> str:
    return f"{name} takes more memory than allowed, so it was not opened; give a smaller file."


def _limit_this_process(path: Path, limits: Limits) -> None:
    """Bound computing, memory, file size and core dumps from here on."""
    if not HAS_LIMITS:
        return
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + limits.cpu_seconds
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _limit(resource.RLIMIT_CORE, 0, 0)
    written = limits.tensor_bytes + 8 * limits.header_bytes
    _limit(resource.RLIMIT_FSIZE, written, written)
    mapped = _mapped_bytes()
    if mapped is not None:
        memory = mapped + _size(path, limits) + limits.tensor_bytes + WORKING_BYTES
        _limit(resource.RLIMIT_AS, memory, memory)


def _size(path: Path, limits: Limits) -> int:
    """Bytes of a file that will be mapped; 0 where it will be refused."""
    try:
        return min(path.stat().st_size, limits.file_bytes)
    except (OSError, ValueError):
        return 0


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or leave a stricter one that stands already."""
    standing = resource.getrlimit(kind)[1]
    if standing != resource.RLIM_INFINITY:
        soft, hard = min(soft, standing), min(hard, standing)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (soft, hard))


def _mapped_bytes() -> int | None:
    """Address space in use by this process; None where the system does not say (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()


def _write(content: FileContent, temporary: Path) -> str:
    """Write the clean copy; its SHA-256."""
    digest = hashlib.sha256()
    with writing(temporary), temporary.open("wb") as file:
        for piece in clean_copy(content):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _summary(content: FileContent, clean_sha256: str) -> dict[str, Any]:
    """What the parent is told: all but the tensors."""
    sizes: Counter[str] = Counter()
    for tensor in content.tensors.values():
        sizes[tensor.dtype] += len(tensor.data)
    return {
        "clean_sha256": clean_sha256,
        "sha256": content.sha256,
        "num_tensors": len(content.tensors),
        "num_bytes": sum(sizes.values()),
        "dtype": sizes.most_common(1)[0][0],
        "container": content.container,
        "wrapped_in": content.wrapped_in,
        "header": content.header,
        "beside": content.beside,
        "other_states": content.other_states,
        "not_finite": content.not_finite,
        "warnings": content.warnings,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
