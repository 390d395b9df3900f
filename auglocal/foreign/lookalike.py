"""What a file that is no checkpoint looks like, so that its owner is told what to give instead.

In: the first bytes of a file, or the names in an archive. Out: a refusal that names it.
"""

from __future__ import annotations

from auglocal.foreign.refusal import Refusal, shown_list
from auglocal.foreign.zip_file import Archive

GIVE = "give the file of a PyTorch checkpoint (.pt, .pth, .ckpt, .bin or .safetensors)"
UNPACK = "unpack it, and give the checkpoint inside"
TORCH_ONLY = "give the PyTorch checkpoint of the same network"
# What a file begins with, after spaces in the case of text: (offset, bytes, what it is, advice).
BEGINNINGS = (
    (
        0,
        b"version https://git-lfs",
        "is a git-LFS pointer, not the file itself",
        "fetch it with `git lfs pull`",
    ),
    (
        0,
        b"<",
        "is a web page (HTML or XML), not a checkpoint",
        "download the file itself, perhaps with the page's own download button",
    ),
    (0, b"\x1f\x8b", "is a gzip archive", UNPACK),
    (0, b"BZh", "is a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ\x00", "is an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "is a Zstandard archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", UNPACK),
    (0, b"Rar!", "is a RAR archive", UNPACK),
    (0, b"\x89HDF\r\n", "is an HDF5 file, as Keras writes", TORCH_ONLY),
    (0, b"\x93NUMPY", "is a NumPy array", GIVE),
    (0, b"GGUF", "is a GGUF language model", TORCH_ONLY),
    (4, b"TFL3", "is a TensorFlow Lite model", TORCH_ONLY),
    (0, b"\x89PNG", "is an image (PNG)", GIVE),
    (0, b"\xff\xd8\xff", "is an image (JPEG)", GIVE),
    (0, b"GIF8", "is an image (GIF)", GIVE),
    (0, b"BM", "is an image (BMP)", GIVE),
    (8, b"WEBP", "is an image (WebP)", GIVE),
    (0, b"%PDF", "is a PDF document", GIVE),
    (0, b"\x7fELF", "is a program, not a checkpoint", GIVE),
    (0, b"MZ", "is a program, not a checkpoint", GIVE),
    (0, b"{", "is a text file (JSON), not a checkpoint", GIVE),
)
TAR_MAGIC = b"ustar"
TAR_PLACE = 257
SAMPLE = 4096


def beginning(content: memoryview) -> Refusal | None:
    """The refusal of a file by how it begins, None where that says nothing."""
    head = bytes(content[:SAMPLE])
    if not head:
        return Refusal("is empty (0 bytes)", "copy or download it again")
    for offset, signature, what, advice in BEGINNINGS:
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip() if signature in b"<{" else head
        if text[offset : offset + len(signature)] == signature:
            return Refusal(what, advice)
    if head[TAR_PLACE : TAR_PLACE + len(TAR_MAGIC)] == TAR_MAGIC:
        return _tar(content)
    if head[:1] == b"\x08" and b"\x12" in head[:8] and (b"pytorch" in head or b"onnx" in head):
        return Refusal("is an ONNX model", TORCH_ONLY)
    return None


def remainder(content: memoryview) -> Refusal:
    """The refusal of a file that begins like nothing known."""
    head = bytes(content[:SAMPLE])
    if not head.strip(b"\x00"):
        return Refusal("begins with nothing but zeros", "copy or download it again")
    if _is_text(head):
        return Refusal("is a text file, not a checkpoint", GIVE)
    return Refusal("is not a checkpoint, or is damaged", f"{GIVE}, or copy it again")


def of_archive(archive: Archive) -> Refusal:
    """The refusal of a ZIP archive that torch.save did not write."""
    names = list(archive.entries)
    if not names:
        return Refusal("is an empty ZIP archive", GIVE)
    if any(name.endswith(".npy") for name in names):
        return Refusal("is a NumPy archive (.npz)", TORCH_ONLY)
    if any(name.endswith(".weights.h5") for name in names):
        return Refusal("is a Keras model", TORCH_ONLY)
    if any(name.endswith("version") for name in names) and any("/data/" in n for n in names):
        return Refusal("is damaged (its part 'data.pkl' is missing)", "copy or download it again")
    return Refusal(
        f"is a ZIP archive but no checkpoint (it holds {shown_list(names, 3)})",
        UNPACK,
    )


def _tar(content: memoryview) -> Refusal:
    """A tape archive: PyTorch's oldest form, or somebody's folder."""
    if bytes(content[:16]).split(b"\x00")[0] in (b"sys_info", b"pickle", b"tensors", b"storages"):
        return Refusal(
            "has the form that PyTorch wrote before version 0.1.10",
            "load it with an older PyTorch, and save model.state_dict() again with torch.save",
        )
    return Refusal("is a tar archive of files", UNPACK)


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 or UTF-16 text, perhaps cut inside a character."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    text = head.decode("utf-8", errors="replace").removesuffix("\ufffd")
    return all(each.isprintable() or each in "\t\r\n\f" for each in text.replace("\ufeff", ""))
