"""Jobs: the answer to a question, computed in the background and kept as a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.study import Study
from app import jobs
from app.sources import datasets, folders, studies
from app.sources.checkpoints import CheckpointFile


def registry() -> jobs.Registry:
    """The jobs of this server; one registry a library folder."""
    return _registry(str(folders.library_folder() / "jobs"))


@st.cache_resource(show_spinner=False)
def _registry(folder: str) -> jobs.Registry:
    """One registry for all sessions."""
    return jobs.Registry(Path(folder))


def start(request: studies.Request, entries: Sequence[CheckpointFile], title: str) -> jobs.Job:
    """Compute the answer to a request in a job and keep it as a study file.

    Args:
        request: what is asked.
        entries: the checkpoints, the ceiling among them.
        title: what people read while it runs.

    Raises:
        jobs.BusyError, OSError: as `jobs.Registry.start`.
    """
    work = _work(request, entries)
    studies.note_request(request)
    result, stopped = studies.result_path(request), studies.stopped_path(request)
    return registry().start(request.key, title, work, result, stopped)


def _work(request: studies.Request, entries: Sequence[CheckpointFile]) -> jobs.Work:
    """The work of a job: open the models and run the study."""

    def work(report: Any, cancelled: Callable[[], bool]) -> Study:
        report("Opening checkpoints", 0, 0)
        from analysis.models import open_model, untrained
        from analysis.run import run_study

        models = [
            replace(
                open_model(
                    folders.readable(entry.path), "auto", auxiliaries=request.measure == "probe"
                ),
                name=entry.name,
            )
            for entry in entries
        ]
        by_sha256 = {model.sha256: model for model in models}
        return run_study(
            [by_sha256[sha256] for sha256 in dict.fromkeys(request.sha256s)],
            ceiling=None if request.ceiling is None else by_sha256[request.ceiling],
            floor=None if request.floor is None else untrained(models[0], request.floor),
            dataset=request.dataset,
            split=request.split,
            samples=request.samples,
            seed=request.seed,
            batch_size=request.batch_size,
            measures=(request.measure,),
            # Images of a folder are resized where they differ; equal ones stay as they are.
            image_size=models[0].metadata.input_size[1]
            if request.dataset.startswith(datasets.FOLDER_PREFIX)
            else None,
            dataset_title=datasets.title_of(request.dataset),
            out=f"{request.measure}.study.json",
            progress=lambda step: report(step.stage, step.done, step.total),
            partial=report.publish,
            cancelled=cancelled,
            keep_partial=True,
            **dict(request.options),
        )

    return work
