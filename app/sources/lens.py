"""Lenses, the images that are put under them, and what is then seen; fitted once, then read.

In: checkpoints, data and images of the user's own. Out: frozen results, shared by sessions. A lens
is kept in the library under the contents of its checkpoint and its options, and an uploaded image
under the checksum of its file, as a plain PNG.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import streamlit as st

from analysis.errors import InputError
from app import jobs
from app.sources import computing, datasets, folders
from app.sources.checkpoints import CheckpointFile
from auglocal.errors import WorkError, writing
from auglocal.files import write_whole

if TYPE_CHECKING:
    from PIL import Image

    from analysis.features import ImageSample
    from analysis.lens import Lens, LensAnswer, Neighbours
    from analysis.models import Model
    from auglocal.data import Dataset

Pixels = npt.NDArray[np.uint8]

KEPT_LENSES = 40  # files; those not read for longest go first
MOST_UPLOADS = 200
MOST_UPLOADED_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000  # a camera's picture; 150 MB in memory
LONGEST_SIDE = 1024  # pixels of the copy that is kept
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
TYPES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")


@dataclass(frozen=True)
class LensRequest:
    """What a lens depends on.

    Attributes:
        sha256: of the checkpoint.
        dataset: a name, or "imagefolder:PATH".
        samples, seed: of the test images that readers are measured on.
        train_samples: of the images that probes are fitted to and neighbours are searched among.
        penalty: of the probes.
    """

    sha256: str
    dataset: str
    samples: int
    seed: int
    train_samples: int
    penalty: float = 1.0

    @property
    def key(self) -> str:
        """A name that depends on the contents of the files only."""
        text = json.dumps({"lens": 1, **asdict(self)}, sort_keys=True)
        prefix = datasets.folder_prefix(self.dataset)
        return f"lens-{prefix}{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def path(self) -> Path:
        """Where the fitted lens is kept."""
        return folders.library_folder() / "lenses" / f"{self.key}.npz"


# ------------------------------------------------------------------------------------------ lenses


def job_key(requests: Sequence[LensRequest]) -> str:
    """The key of the job that fits some lenses."""
    return "+".join(request.key for request in requests)


def start(requests: Sequence[LensRequest], entries: Sequence[CheckpointFile]) -> jobs.Job:
    """Fit lenses in a job, one after the other; each is kept as soon as it is done.

    Raises:
        jobs.BusyError, OSError: as `jobs.Registry.start`.
    """
    return computing.registry().start(
        job_key(requests),
        f"Fitting the probes of {' and '.join(entry.name for entry in entries)}",
        _work(requests, entries),
        requests[-1].path,
        save=lambda done, path: None,
    )


def _work(
    requests: Sequence[LensRequest], entries: Sequence[CheckpointFile]
) -> Callable[[jobs.Report, Callable[[], bool]], int]:
    """The work of a job; it returns how many lenses it kept."""

    def work(report: jobs.Report, cancelled: Callable[[], bool]) -> int:
        for request, entry in zip(requests, entries, strict=True):
            lens = _fit(request, entry, report, cancelled)
            request.path.parent.mkdir(parents=True, exist_ok=True)
            _keep(lens, request.path)
        return len(requests)

    return work


def _fit(
    request: LensRequest,
    entry: CheckpointFile,
    report: jobs.Report,
    cancelled: Callable[[], bool],
) -> Lens:
    """Open a checkpoint and fit its lens."""
    report(f"{entry.name}: opening", 0, 0)
    from analysis.lens import fit_lens

    started = time.perf_counter()
    model = open_entry(entry)
    samples = {"train": request.train_samples, "test": request.samples}
    drawn = {name: _draw(request, model, name, count) for name, count in samples.items()}
    fitted = fit_lens(
        model,
        drawn["train"],
        drawn["test"],
        penalty=request.penalty,
        progress=lambda step: report(
            f"{entry.name}: {step.stage[0].lower()}{step.stage[1:]}", step.done, step.total
        ),
        cancelled=cancelled,
    )
    images = sum(len(sample.labels) for sample in drawn.values())
    _note_speed((time.perf_counter() - started) / images)
    return fitted


def _note_speed(seconds: float) -> None:
    """Remember how long an image took, for the next estimate."""
    folder = folders.library_folder() / "lenses"
    with suppress(OSError, WorkError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "speed.json", json.dumps(seconds).encode())


def seconds_of(request: LensRequest) -> float | None:
    """About how long fitting takes here, by the last fit; None before the first."""
    try:
        text = (folders.library_folder() / "lenses" / "speed.json").read_text(encoding="utf-8")
        return float(json.loads(text)) * (request.samples + request.train_samples)
    except (OSError, ValueError, TypeError):
        return None


def _draw(request: LensRequest, model: Model, split: str, most: int) -> ImageSample:
    """So many images of a split, or all where there are fewer."""
    from analysis.features import sample_images

    return sample_images(
        request.dataset,
        split,
        seed=request.seed,
        default_samples=most,
        image_size=image_size(model, request.dataset),
    )


def _keep(lens: Lens, path: Path) -> None:
    """Write a lens, and let go of those that were not read for longest."""
    from analysis.lens_file import save_lens

    save_lens(lens, path)
    kept = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    for file in kept[:-KEPT_LENSES]:
        file.unlink(missing_ok=True)


def find(request: LensRequest) -> Lens | None:
    """A lens that was fitted before; None where there is none, or it cannot be read."""
    try:
        return _read(*folders.stamp(request.path))
    except (OSError, InputError):
        return None


@st.cache_resource(max_entries=6, show_spinner=False)
def _read(path: str, size: int, changed: int) -> Lens:
    """A lens's file; cached by path, size and time of change."""
    from analysis.lens_file import load_lens

    return load_lens(path)


def open_entry(entry: CheckpointFile) -> Model:
    """A checkpoint as a model with its auxiliary networks; shared, and read only."""
    return _open(entry.sha256, str(entry.path))


@st.cache_resource(max_entries=6, show_spinner=False)
def _open(sha256: str, path: str) -> Model:
    """A model by the contents of its file; one whose auxiliary networks are odd, without them."""
    from analysis.models import open_model

    try:
        return open_model(path, "auto", auxiliaries=True)
    except InputError:
        return open_model(path, "auto")


def image_size(model: Model, dataset: str) -> int | None:
    """To what a folder's images are resized for a model; None leaves the data as they are."""
    if dataset.startswith(datasets.FOLDER_PREFIX):
        return int(model.metadata.input_size[1])
    return None


# ------------------------------------------------------------------------------- images of the data


@dataclass(frozen=True)
class Seen:
    """One image as a network sees it.

    Attributes:
        pixels: (H, W, C) uint8, before the values are normalised.
        label: index of its class; None where that is unknown.
        name: what to call it.
    """

    pixels: Pixels
    label: int | None
    name: str


def split_size(dataset: str, size: int | None, split: str = "test") -> int:
    """How many images a split has."""
    return len(_data(dataset, size).splits[split])


def labels(dataset: str, size: int | None, split: str = "test") -> npt.NDArray[np.int64]:
    """Class indices (N,) of a split."""
    found: npt.NDArray[np.int64] = _data(dataset, size).splits[split].labels.numpy()
    return found


def data_images(
    dataset: str, size: int | None, indices: Sequence[int], split: str = "test"
) -> list[Seen]:
    """Some images of a split, in the order given."""
    import torch

    chosen = _data(dataset, size)
    part = chosen.splits[split]
    wanted = torch.tensor(list(indices), dtype=torch.int64)
    pixels = part.take(wanted).permute(0, 2, 3, 1).numpy()
    return [
        Seen(image, int(part.labels[index]), f"{split} image {index:,} of {chosen.title}")
        for image, index in zip(pixels, indices, strict=True)
    ]


def _data(dataset: str, size: int | None) -> Dataset:
    """Data as they are now; read anew where a folder changed."""
    return _load(dataset, size, datasets.folder_prefix(dataset))


@st.cache_resource(max_entries=4, show_spinner=False)
def _load(dataset: str, size: int | None, fingerprint: str) -> Dataset:
    """Data by name; a folder's images stay on disk."""
    from analysis.models import translated_errors
    from auglocal.data import load_dataset

    with translated_errors():
        return load_dataset(dataset, image_size=size)


# ---------------------------------------------------------------------------- images of the user's


def keep_image(name: str, content: bytes) -> str:
    """Check an uploaded image and keep a plain copy under the checksum of its file.

    The copy holds pixels and nothing else: turned upright, in RGB on white, its first frame, and
    no side longer than `LONGEST_SIDE`.

    Args:
        name: the file's name where it came from.
        content: its bytes.

    Returns:
        the checksum of the bytes.

    Raises:
        InputError: too large, damaged, or no image; one sentence.
        auglocal.errors.WorkError: the copy cannot be written.
    """
    if len(content) > MOST_UPLOADED_BYTES:
        raise InputError(
            f"{name} is larger than {MOST_UPLOADED_BYTES // 2**20} MB; upload a smaller image."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    folder = _image_folder()
    path = folder / f"{sha256}.png"
    if path.exists():
        return sha256
    if len(list(folder.glob("*.png"))) >= MOST_UPLOADS:
        raise InputError(f"There are already {MOST_UPLOADS} uploaded images; delete one first.")
    image = _decoded(name, content)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(path.with_suffix(".name"), name[:200].encode("utf-8", "replace"))
    write_whole(path, stream.getvalue())
    return sha256


def _decoded(name: str, content: bytes) -> Image.Image:
    """Pixels of an image file, upright and in RGB.

    Raises:
        InputError: it is damaged, no image, or has too many pixels.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Our own limit is lower than that of these, and they keep the size from being read.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as probe:
                width, height = probe.size
                if width * height > MOST_PIXELS:
                    raise InputError(
                        f"{name} has {width * height / 1e6:,.0f} million pixels, and at most "
                        f"{MOST_PIXELS / 1e6:,.0f} million are read; make it smaller."
                    )
                probe.verify()
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
                image.load()
                upright = _on_white(ImageOps.exif_transpose(image))
                upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
                return upright
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name} has too many pixels: at most {MOST_PIXELS / 1e6:,.0f} million are read; make "
            "it smaller."
        ) from error
    except Exception as error:  # decoders meet damage with errors of a dozen kinds
        raise InputError(
            f"{name} is no image that can be read, or a damaged one; upload one of "
            f"{', '.join(FORMATS)}."
        ) from error


def _on_white(image: Image.Image) -> Image.Image:
    """An image in RGB; what is transparent becomes white."""
    from PIL import Image

    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, np.float64)
        span = max(float(np.ptp(values)), 1e-12)
        image = Image.fromarray(np.uint8(255 * (values - values.min()) / span))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def kept_images() -> list[str]:
    """Checksums of the uploaded images, the latest first."""
    files = sorted(_image_folder().glob("*.png"), key=lambda file: -file.stat().st_mtime_ns)
    return [file.stem for file in files]


def image_by_prefix(prefix: str) -> str | None:
    """The uploaded image whose checksum starts like this; None if it is not here."""
    found = [sha256 for sha256 in kept_images() if len(prefix) >= 6 and sha256.startswith(prefix)]
    return found[0] if len(found) == 1 else None


def delete_image(sha256: str) -> None:
    """Forget an uploaded image."""
    for ending in (".png", ".name"):
        (_image_folder() / f"{sha256}{ending}").unlink(missing_ok=True)


def uploaded_image(sha256: str, model: Model) -> Seen:
    """An uploaded image as a model's data are: resized and cut as for evaluation.

    Raises:
        InputError: it was deleted meanwhile.
    """
    path = _image_folder() / f"{sha256}.png"
    try:
        pixels = _fitted(sha256, str(path), model.metadata.input_size, model.metadata.resize)
    except (OSError, SyntaxError) as error:
        raise InputError("The uploaded image is gone; upload it again.") from error
    name = "uploaded image"
    with suppress(OSError):
        name = path.with_suffix(".name").read_text(encoding="utf-8", errors="replace") or name
    return Seen(pixels, None, name)


@st.cache_resource(max_entries=256, show_spinner=False)
def _fitted(sha256: str, path: str, shape: tuple[int, int, int], resize: int | None) -> Pixels:
    """What a network of this input sees of an image."""
    from PIL import Image

    from auglocal.image_folder import Fit, ResizeAndCrop

    channels, _, width = shape
    with Image.open(path, formats=("PNG",)) as image:
        colour = image.convert("RGB" if channels == 3 else "L").convert("RGB")
    larger = resize is not None and resize > width
    pixels = (ResizeAndCrop(int(resize or width), width) if larger else Fit(width))(colour)
    return np.ascontiguousarray(pixels[..., :channels])


def _image_folder() -> Path:
    """Where uploaded images are kept."""
    return folders.library_folder() / "images"


# ----------------------------------------------------------------------------------------- answers


def answer(request: LensRequest, entry: CheckpointFile, pixels: Pixels) -> LensAnswer:
    """What every reader says of an image, by one forward pass."""
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return _ask(request.key, digest, request, entry, pixels)


@st.cache_resource(max_entries=64, show_spinner=False)
def _ask(
    lens_key: str, digest: str, _request: LensRequest, _entry: CheckpointFile, _pixels: Pixels
) -> LensAnswer:
    """Ask; cached by the lens and the contents of the image."""
    import torch

    from analysis.lens import ask

    lens = find(_request)
    assert lens is not None
    image = torch.from_numpy(np.ascontiguousarray(_pixels.transpose(2, 0, 1)))
    return ask(open_entry(_entry), lens, image)


def neighbours(lens: Lens, said: LensAnswer, metric: str) -> Neighbours:
    """The training images nearest to an image, in every layer."""
    from analysis.lens import NEIGHBOURS, nearest

    count = min(NEIGHBOURS, len(lens.train_labels))
    return nearest(lens, said, metric=metric, neighbours=count)


def settled_at(probabilities: Any) -> int | None:
    """The first layer from which on every layer names the same class."""
    from analysis.lens import settled_at

    return settled_at(probabilities)
