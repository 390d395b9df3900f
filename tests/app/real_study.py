"""Two untrained networks and what was really computed of them, for pages that show images."""

from __future__ import annotations

from pathlib import Path

from analysis.study import Study, save_study
from tests.app.conftest import make_checkpoint

SAMPLES = 150
NAMES = ("bp-net", "auglocal-net")


def make_real(folder: Path, dataset: str = "digits", **options: object) -> Study:
    """Checkpoints in a folder, and a study of their probes and geometry."""
    from analysis.models import open_model
    from analysis.run import run_study

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.safetensors" for name in NAMES]
    for seed, (path, rule) in enumerate(zip(paths, ("bp", "auglocal"), strict=True)):
        make_checkpoint(path, rule, seed)
    study = run_study(
        [open_model(path, "cpu") for path in paths],
        dataset=dataset,
        measures=("cka", "probe", "geometry"),
        num_shuffles=0,
        **{"samples": SAMPLES, "train_samples": 100, **options},
    )
    save_study(study, folder / "pair.study.json")
    return study
