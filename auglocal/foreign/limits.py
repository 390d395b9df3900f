"""How much a file from outside may take, before anything of it is read."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """Bounds on one file; what exceeds any of them is refused.

    Attributes:
        file_bytes: size on disk.
        tensor_bytes: of all tensors of the state dict that is taken, after copying apart those that
            share memory.
        entries: tensors in the state dict.
        dimensions: of one tensor.
        elements: of one tensor.
        key_characters: of one tensor's name.
        depth: dictionaries inside one another around the state dict.
        cpu_seconds: of computing in the child process.
        wall_seconds: until the child process is stopped, whatever it does.
        header_bytes: of a safetensors header, or of a ZIP archive's list of entries.
        steps: instructions of all pickles together; a tensor takes about 60.
        text_bytes: of all texts in the pickles together.
    """

    file_bytes: int
    tensor_bytes: int
    entries: int = 5_000
    dimensions: int = 5
    elements: int = 2**28
    key_characters: int = 256
    depth: int = 8
    cpu_seconds: int = 10
    wall_seconds: int = 60
    header_bytes: int = 8 * MIB
    steps: int = 2_000_000
    text_bytes: int = 64 * MIB


UPLOAD = Limits(file_bytes=512 * 10**6, tensor_bytes=GIB)
MAX_BYTES = 4 * GIB


def command_line_limits(max_bytes: int = MAX_BYTES) -> Limits:
    """Limits of a path given on the command line, by the value of --max-bytes.

    Four times the entries of an upload, since a ResNet-101 with its auxiliary networks has more
    than an upload may; and 10 more seconds of computing for each GiB, most of it for checksums.
    """
    seconds = 10 + 10 * -(-max_bytes // GIB)
    return Limits(
        file_bytes=max_bytes,
        tensor_bytes=max_bytes,
        entries=4 * UPLOAD.entries,
        cpu_seconds=seconds,
        wall_seconds=6 * seconds,
        header_bytes=4 * UPLOAD.header_bytes,
        steps=4 * UPLOAD.steps,
    )
