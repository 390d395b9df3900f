"""How the images of an uploaded network were prepared: tried on labelled images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from app.sources import datasets, library
from app.sources.checkpoints import CheckpointFile


def find(entry: CheckpointFile, dataset: str) -> None:
    """Score a checkpoint under each usual preprocessing, and note what came out.

    Args:
        entry: an uploaded checkpoint.
        dataset: a name, or "imagefolder:PATH"; its training images are taken, where it has any.

    Raises:
        ValueError: images and network do not fit; one sentence.
    """
    from analysis.features import sample_images
    from analysis.models import open_model
    from analysis.preprocessing import DEFAULT_SAMPLES, evidence_record, try_preprocessing

    model = replace(open_model(entry.path, "auto"), name=entry.name)
    size = model.metadata.input_size[1] if dataset.startswith(datasets.FOLDER_PREFIX) else None
    title = datasets.title_of(dataset)
    draw = partial(
        sample_images, dataset, default_samples=DEFAULT_SAMPLES, image_size=size, title=title
    )
    try:
        sample = draw("train")
    except ValueError:
        sample = draw("test")
    found = evidence_record(try_preprocessing(model, sample))
    place = {"dataset": dataset, "title": sample.title, "split": sample.split}
    library.write_note(entry.path, evidence={**found, **place})
