"""Checkpoints and studies with known contents, for the tests of the pages."""

from __future__ import annotations

import json
import logging
import math
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.cka import CKAResult
from analysis.probes import ProbeResult
from analysis.study import Study, StudyCheckpoint, StudyProvenance, StudyQuestion, save_study
from tests.app.browsing import address, browser, chromium, page  # noqa: F401

LAYERS = (
    "stem",
    *(f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2, 3)),
)
ROOT = Path(__file__).resolve().parents[2]
REASON = "its features are the same for every image"


def make_cka(
    models: Sequence[str] = ("bp-net", "auglocal-net"),
    *,
    undefined: str | None = None,
    layers: Sequence[str] = LAYERS,
) -> CKAResult:
    """Two networks whose similarity falls by 0.05 a layer of distance and 0.1 between networks.

    `undefined` names a layer of the last network that has no values.
    """
    depth = np.tile(np.arange(len(layers)), len(models))
    owner = np.repeat(np.arange(len(models)), len(layers))
    values = 1.0 - 0.05 * abs(depth[:, None] - depth) - 0.1 * (owner[:, None] != owner)
    margin = np.full_like(values, 0.02)
    reasons = {}
    if undefined is not None:
        row = len(layers) * (len(models) - 1) + list(layers).index(undefined)
        values[row] = values[:, row] = margin[row] = margin[:, row] = math.nan
        reasons = {f"{models[-1]}/{undefined}": REASON}
    return CKAResult(
        models=tuple(models),
        layers=(tuple(layers),) * len(models),
        values=values,
        standard_errors=margin / 2,
        low=values - margin,
        high=values + margin,
        undefined=reasons,
        samples=1000,
        batch_sizes=(125,) * 8,
        interval_note=None,
    )


def make_probe(
    model: str, start: float = 0.5, *, undefined: str | None = None, layers: Sequence[str] = LAYERS
) -> ProbeResult:
    """Accuracy rises by 0.04 a layer from `start`, with a margin of 0.02."""
    accuracy = start + 0.04 * np.arange(len(layers))
    reasons = {}
    if undefined is not None:
        accuracy[list(layers).index(undefined)] = math.nan
        reasons = {undefined: REASON}
    return ProbeResult(
        model=model,
        layers=tuple(layers),
        accuracy=accuracy,
        low=accuracy - 0.02,
        high=accuracy + 0.02,
        classifier_accuracy=0.9,
        classifier_low=0.88,
        classifier_high=0.92,
        chance=0.1,
        train_samples=697,
        test_samples=1000,
        penalty=1.0,
        undefined=reasons,
    )


def make_study(
    sha256s: Sequence[str] = ("a" * 64, "b" * 64),
    *,
    names: Sequence[str] = ("bp-net", "auglocal-net"),
    rules: Sequence[str] = ("bp", "auglocal"),
    starts: Sequence[float] = (0.5, 0.6),
    dataset: str = "digits",
    dataset_title: str = "scikit-learn digits",
    undefined: str | None = None,
    layers: Sequence[str] = LAYERS,
) -> Study:
    """A study of a pair as `analysis study` makes it."""
    checkpoints = tuple(
        StudyCheckpoint(
            name=name,
            sha256=sha256,
            architecture="resnet20",
            rule=rule,
            rule_options={},
            dataset=dataset_title,
            accuracy={"value": 0.9, "split": "test", "samples": 1000},
            epoch=15,
            seed=0,
        )
        for name, sha256, rule in zip(names, sha256s, rules, strict=True)
    )
    return Study(
        title=f"{' and '.join(names)} on {dataset_title}",
        question=StudyQuestion(
            checkpoints=checkpoints,
            dataset=dataset,
            dataset_title=dataset_title,
            split="test",
            samples=1000,
            seed=0,
            batch_size=125,
            image_size=None,
            images_sha256="c" * 64,
            train_samples=697,
            penalty=1.0,
        ),
        cka=make_cka(names, undefined=undefined, layers=layers),
        probes=tuple(
            make_probe(name, start, undefined=undefined, layers=layers)
            for name, start in zip(names, starts, strict=True)
        ),
        provenance=StudyProvenance(
            versions={"torch": "2.15.0"},
            device="cpu",
            seconds=3.0,
            date="2025-11-22T08:00:00+00:00",
            command=f"python -m analysis study {' '.join(names)} --measures cka,probe "
            f"--dataset {dataset} --samples 1000 --seed 0 --batch-size 125 --out x.study.json",
        ),
    )


def make_checkpoint(path: Path, rule: str = "bp", seed: int = 0) -> str:
    """An untrained ResNet-20 as a checkpoint file; returns its checksum."""
    import torch
    from safetensors.torch import save_file

    from auglocal.backbones.registry import build_backbone
    from auglocal.checkpoint import CheckpointMetadata
    from auglocal.files import file_sha256

    torch.manual_seed(seed)
    metadata = CheckpointMetadata(
        architecture="resnet20",
        num_classes=10,
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        classes=tuple("0123456789"),
        dataset="scikit-learn digits",
        rule=rule,
        rule_options={} if rule == "bp" else {"auxiliary_depth": 2, "pyramid": 0.5},
        epoch=15,
        accuracy={"value": 0.9, "split": "test", "samples": 1000},
        resize=32,
        interpolation="bilinear",
        seed=seed,
        config={"architecture": "resnet20", "dataset": "digits", "epochs": 15},
        versions={"torch": "2.15.0"},
    )
    tensors = {
        key: value.contiguous()
        for key, value in build_backbone("resnet20", 10).state_dict().items()
    }
    save_file(tensors, path, metadata={"auglocal": metadata.to_json()})
    return file_sha256(path)


def fill(folder: Path, *, undefined: str | None = None) -> list[str]:
    """A folder as `checkpoints/` is: a BP and an AugLocal checkpoint and their study."""
    sha256s = [
        make_checkpoint(folder / f"{rule}-net.safetensors", rule, seed)
        for seed, rule in enumerate(("bp", "auglocal"))
    ]
    save_study(make_study(sha256s, undefined=undefined), folder / "pair.study.json")
    return sha256s


@pytest.fixture(autouse=True)
def library(tmp_path, monkeypatch):
    """An empty library of this test's own."""
    folder = tmp_path / "library"
    monkeypatch.setenv("AUGLOCAL_LIBRARY", str(folder))
    monkeypatch.setenv("AUGLOCAL_RUNS", str(tmp_path / "runs"))
    return folder


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """No test reaches for another machine: such a try fails, and then its test."""
    tried = []
    resolve = socket.getaddrinfo

    def resolve_here(host, *words, **options):
        if host in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()):
            return resolve(host, *words, **options)
        tried.append(host)
        raise socket.gaierror(f"a test asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    yield
    assert tried == []


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A folder with a pair and its study, made once, and the checksums."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, fill(folder)


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """A folder with two untrained networks and what was really computed of them, made once."""
    from tests.app.real_study import make_real

    folder = tmp_path_factory.mktemp("real")
    make_real(folder)
    return folder


@pytest.fixture
def shipped(filled, tmp_path, monkeypatch):
    """A folder with a pair and its study, in the place of `checkpoints/`."""
    folder = tmp_path / "shipped"
    shutil.copytree(filled[0], folder)
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(folder))
    return folder


@pytest.fixture
def refill(shipped):
    """Write the pair's study again, with an undefined layer."""
    return lambda undefined: fill(shipped, undefined=undefined)


@pytest.fixture
def sha256s(shipped, filled):
    """Checksums of the BP and the AugLocal checkpoint."""
    return list(filled[1])


@pytest.fixture(name="make_study")
def make_study_fixture():
    return make_study


@pytest.fixture
def save():
    return save_study


@pytest.fixture
def add_net():
    """Write a checkpoint: (path, rule, seed) -> checksum."""
    return make_checkpoint


@pytest.fixture
def open_app(shipped):
    """Open the app at a page, with a query in the address."""
    from streamlit.testing.v1 import AppTest

    def open_page(view: str | None = None, /, **query: str):
        app = AppTest.from_file(str(ROOT / "app" / "streamlit_app.py"), default_timeout=60)
        for name, value in query.items():
            app.query_params[name] = value
        if view is not None:
            app.switch_page(f"views/{view}.py")
        return app.run()

    return open_page


@pytest.fixture
def figures_of():
    """The plotly figures of a page, as the browser gets them."""
    return lambda app: [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


@pytest.fixture
def wait_for_job():
    """Wait until no job runs."""
    from app.sources import computing

    def wait() -> None:
        end = time.monotonic() + 60
        while computing.registry().running() is not None:
            assert time.monotonic() < end, "the job does not end"
            time.sleep(0.02)

    return wait


@pytest.fixture
def page_warnings():
    """What Streamlit writes into the log about how pages use it."""
    found: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    keeper = Keeper(logging.WARNING)
    # Streamlit's loggers do not hand their records on.
    loggers = [
        logging.getLogger(f"streamlit.{name}")
        for name in ("elements.lib.policies", "deprecation_util", "elements.plotly_chart")
    ]
    for logger in loggers:
        logger.addHandler(keeper)
    yield found
    for logger in loggers:
        logger.removeHandler(keeper)


@pytest.fixture
def publishing(monkeypatch):
    """Let jobs publish a part of an answer and wait; cancelled, they give it back.

    Set `make` to what makes the part of (request, checkpoints); `published` tells when it is there,
    `asked` what was worked on.
    """
    from analysis.errors import Cancelled
    from app.sources import computing

    class Publishing:
        make = None

        def __init__(self):
            self.open, self.published, self.asked = threading.Event(), threading.Event(), []

        def work(self, request, entries):
            def steps(report, cancelled):
                self.asked.append(request)
                part = self.make(request, entries)
                how = replace(part.provenance, stopped="stopped after 4 of 10 layers")
                part = replace(part, provenance=how)
                report("Working", 4, 10)
                report.publish(part)
                self.published.set()
                while not self.open.wait(0.01):
                    if cancelled():
                        return part
                raise Cancelled("released")

            return steps

    publishing = Publishing()
    monkeypatch.setattr(computing, "_work", publishing.work)
    yield publishing
    publishing.open.set()
