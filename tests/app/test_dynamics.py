"""Layers along training: the page in every state."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.cka import CKAResult
from analysis.errors import Cancelled
from app import texts_dynamics, texts_overview
from app.sources import dynamics

LAYERS = ("stem", "stage1_block1", "stage2_block1")
QUERY = {
    "dynamics_data": "digits",
    "dynamics_samples": "1000",
    "dynamics_seed": "0",
    "dynamics_train": "697",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory without runs."""
    monkeypatch.chdir(tmp_path)


def write_run(folder, name, rule="bp", epochs=(0, 1, 4), planned=4, done=4):
    """A run's folder; snapshots hold text, which is enough until they are opened."""
    path = folder / name
    (path / "snapshots").mkdir(parents=True)
    config = {"dataset": "digits", "architecture": "resnet20", "rule": rule, "seed": 0}
    (path / "config.json").write_text(json.dumps({**config, "epochs": planned}))
    blocks = ["head"] if rule == "bp" else ["stem", "stage1_block1", "head"]
    lines = [
        {
            "epoch": epoch,
            "losses": {block: 2.0 / epoch + index for index, block in enumerate(blocks)},
            "accuracies": dict.fromkeys(blocks, 1 - 0.5 / epoch),
            "test_accuracy": 0.9,
        }
        for epoch in range(1, done + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for epoch in epochs:
        (path / "snapshots" / f"epoch-{epoch:04d}.safetensors").write_text(f"{name} {epoch}")
    return path


@pytest.fixture
def pair(library):
    """Two runs with snapshots in the library."""
    write_run(library / "runs", "mine-bp")
    write_run(library / "runs", "mine-local", "auglocal", epochs=(0, 2, 4))
    return {run.name: run for run in dynamics.runs() if run.name.startswith("mine-")}


def study_of(make_study, runs, gap=None):
    """A study of runs' snapshots: CKA falls by 0.1 an epoch between them, by 0.2 between runs."""
    base = make_study()
    entries, names = [], []
    for index, run in enumerate(runs):
        for epoch, sha256 in zip(run.epochs, run.sha256s, strict=True):
            names.append((index, epoch, f"{run.name}-{epoch}"))
            entry = replace(
                base.question.checkpoints[0],
                name=f"{run.name}-{epoch}",
                sha256=sha256,
                rule=run.rule,
                epoch=epoch,
            )
            entries.append(entry)
    owner = np.repeat([index for index, _, _ in names], len(LAYERS))
    epoch = np.repeat([epoch for _, epoch, _ in names], len(LAYERS))
    depth = np.tile(np.arange(len(LAYERS)), len(names))
    values = (
        1
        - 0.1 * abs(epoch[:, None] - epoch)
        - 0.2 * (owner[:, None] != owner)
        - 0.01 * abs(depth[:, None] - depth)
    )
    undefined = {}
    if gap is not None:
        values[gap] = values[:, gap] = math.nan
        undefined = {f"{names[gap // len(LAYERS)][2]}/{LAYERS[gap % len(LAYERS)]}": "it is flat"}
    cka = CKAResult(
        models=tuple(name for _, _, name in names),
        layers=(LAYERS,) * len(names),
        values=values,
        standard_errors=np.full_like(values, 0.01),
        low=values - 0.02,
        high=values + 0.02,
        undefined=undefined,
        samples=1000,
        batch_sizes=(125,) * 8,
        interval_note=None,
    )
    probes = tuple(
        replace(
            base.probes[0],
            model=name,
            layers=LAYERS,
            accuracy=np.array([0.3, 0.4, 0.5]) + 0.1 * epoch,
            low=np.array([0.2, 0.3, 0.4]) + 0.1 * epoch,
            high=np.array([0.4, 0.5, 0.6]) + 0.1 * epoch,
        )
        for _, epoch, name in names
    )
    question = replace(base.question, checkpoints=tuple(entries))
    return replace(base, question=question, cka=cka, probes=probes)


@pytest.fixture
def measured(pair, make_study, save):
    """A study of both runs, as a job leaves it."""
    runs = list(pair.values())
    question = dynamics.Question(
        tuple(sha256 for run in runs for sha256 in run.sha256s), "digits", 1000, 0, 697
    )
    question.path.parent.mkdir(parents=True)
    save(study_of(make_study, runs), question.path)
    return pair


def decode(value):
    """A matrix as plotly sends it."""
    import base64

    if not isinstance(value, dict):
        return np.array(value, dtype=float)
    raw = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
    return raw.reshape([int(part) for part in value["shape"].split(",")])


def maps_of(figures):
    return [figure for figure in figures if figure["data"][0]["type"] == "heatmap"]


def shown_text(app) -> str:
    parts = [*app.markdown, *app.caption, *app.warning, *app.error, *app.info]
    return " ".join(re.sub(r"\\(.)", r"\1", part.value) for part in parts)


# ------------------------------------------------------------------------------------------ states


def test_no_runs_is_a_state_of_its_own(open_app):
    app = open_app("dynamics")
    assert not app.exception
    assert app.subheader[0].value == "No runs yet"
    assert "--snapshot-epochs 0,1,2,4,8" in shown_text(app)


def test_a_run_without_snapshots_says_how_to_keep_them_and_shows_its_records(
    open_app, library, figures_of
):
    write_run(library / "runs", "plain", epochs=())
    app = open_app("dynamics")
    assert not app.exception
    assert "keeps fewer than two snapshots" in shown_text(app)
    assert "--snapshot-epochs" in shown_text(app)
    titles = [figure["layout"]["title"]["text"] for figure in figures_of(app)]
    assert "Training loss: BP, plain" in titles


def test_damaged_runs_are_left_out(open_app, library, pair):
    bad = library / "runs" / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("[1")
    odd = write_run(library / "runs", "odd")
    (odd / "metrics.jsonl").write_text('[1]\n{"epoch": "x"}\n{"epoch": 1, "losses": {"head": ')
    app = open_app("dynamics")
    assert not app.exception
    assert {run.name for run in dynamics.runs()} == {"mine-bp", "mine-local", "odd"}


def test_offers_to_measure_what_is_not_measured_yet(open_app, pair):
    app = open_app("dynamics", **QUERY)
    assert not app.exception
    assert "6 snapshots, 1,000 images" in shown_text(app)
    assert [b.label for b in app.button] == ["Measure mine-bp and mine-local"]
    assert "4 of 4 epochs" in shown_text(app)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "is not a safetensors file"),
        (ValueError("there are too few images"), "There are too few images."),
        (Cancelled("x"), "Cancelled; nothing was saved."),
    ],
)
def test_a_job_that_does_not_end_well_says_so(
    open_app, wait_for_job, pair, monkeypatch, error, expected
):
    if error is not None:

        def work(question, chosen):
            def steps(report, cancelled):
                raise error

            return steps

        monkeypatch.setattr(dynamics, "_work", work)
    app = open_app("dynamics", **QUERY)
    next(b for b in app.button if b.label.startswith("Measure")).click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert expected in shown_text(app) or (error is None and app.error)
    assert "Measure mine-bp and mine-local" in [b.label for b in app.button]


def test_real_snapshots_are_measured_in_a_job_and_found_again(
    open_app, wait_for_job, library, add_net, figures_of
):
    path = write_run(library / "runs", "real", epochs=())
    for epoch in (0, 2):
        add_net(path / "snapshots" / f"epoch-{epoch:04d}.safetensors", "bp", epoch)
    query = {**QUERY, "dynamics_samples": "40", "dynamics_train": "0"}
    app = open_app("dynamics", **query)
    next(b for b in app.button if b.label.startswith("Measure")).click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    values = decode(maps_of(figures_of(app))[0]["data"][0]["z"])
    assert values.shape == (2, 10)
    np.testing.assert_allclose(values[1], 1, atol=1e-4)  # the end with itself
    assert len(maps_of(figures_of(open_app("dynamics", **query)))) == 1


# -------------------------------------------------------------------------------------------- maps


def test_both_runs_have_a_map_on_one_scale(open_app, figures_of, measured):
    app = open_app("dynamics", **QUERY)
    assert not app.exception
    bp, local = maps_of(figures_of(app))
    # 1 - 0.1 an epoch from the end, epoch 4
    np.testing.assert_allclose(decode(bp["data"][0]["z"])[:, 0], [0.6, 0.7, 1.0])
    np.testing.assert_allclose(decode(local["data"][0]["z"])[:, 0], [0.6, 0.8, 1.0])
    assert (bp["data"][0]["zmin"], bp["data"][0]["zmax"]) == (0, 1)
    assert bp["layout"]["title"]["text"] == "CKA with its own end: BP, mine-bp"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("cka-start", [1.0, 0.9, 0.6]),
        ("cka-previous", [math.nan, 0.9, 0.7]),
        ("cka-other", [0.4, 0.5, 0.8]),
        ("probe", [0.3, 0.4, 0.7]),
    ],
)
def test_maps_of_every_kind(open_app, figures_of, measured, shown, expected):
    app = open_app("dynamics", **QUERY, shown=shown)
    assert not app.exception
    values = decode(maps_of(figures_of(app))[0]["data"][0]["z"])
    np.testing.assert_allclose(values[:, 0], expected)


def test_what_runs_recorded_is_a_map_too_and_needs_no_study(open_app, figures_of, pair):
    app = open_app("dynamics", **QUERY, shown="losses")
    assert not app.exception
    assert not app.button
    bp, local = maps_of(figures_of(app))
    assert decode(bp["data"][0]["z"])[:, 0].tolist() == [2.0, 1.0, 2 / 3, 0.5]
    assert bp["data"][0]["zmax"] == local["data"][0]["zmax"] == 4.0


def test_an_epoch_and_a_layer_are_picked_and_kept_in_the_link(open_app, figures_of, measured):
    app = open_app("dynamics", **QUERY, epoch="1", trained_layer="stem")
    assert not app.exception
    frame = maps_of(figures_of(app))[0]["layout"]["shapes"][-1]
    assert (frame["x0"], frame["y0"]) == (-0.5, 0.5)
    app.select_slider(key="epoch").set_value(4).run()
    app.selectbox(key="trained_layer").set_value("stage2_block1").run()
    frame = maps_of(figures_of(app))[0]["layout"]["shapes"][-1]
    assert (frame["x0"], frame["y0"]) == (1.5, 1.5)
    assert (app.query_params["epoch"], app.query_params["trained_layer"]) == ("4", "stage2_block1")
    titles = [figure["layout"]["title"]["text"] for figure in figures_of(app)]
    assert "CKA by depth, epoch 4" in titles
    assert "CKA of stage2_block1 by epoch" in titles


def test_one_run_alone_is_answered_by_the_study_of_both(open_app, figures_of, measured):
    app = open_app("dynamics", **QUERY)
    app.selectbox(key="run_b").set_value("").run()
    assert not app.exception
    assert len(maps_of(figures_of(app))) == 1
    assert app.query_params["run_b"] == "none"
    assert "cka-other" not in app.selectbox(key="shown").options


def test_a_shipped_study_of_snapshots_is_a_run(open_app, figures_of, shipped, make_study, save):
    gone = dynamics.Run(
        name="gone",
        rule="auglocal",
        folder=None,
        snapshots=(),
        epochs=(0, 1, 3),
        sha256s=tuple(letter * 64 for letter in "123"),
        lines=(),
        config={},
    )
    save(study_of(make_study, [gone], gap=0), shipped / "dynamics.study.json")
    app = open_app("dynamics")
    assert not app.exception
    assert app.selectbox(key="dynamics_data").value == "digits"
    (figure,) = maps_of(figures_of(app))
    assert "undefined: " in figure["data"][1]["hovertext"][0]
    assert "it is flat" in figure["data"][1]["hovertext"][0]
    assert not [b for b in app.button if b.label.startswith("Measure")]
    app.number_input(key="dynamics_samples").set_value(50).run()
    assert "known from a study alone are not on this machine" in shown_text(app)


# ------------------------------------------------------------------------------------------- links


def test_a_link_names_runs_by_name_and_contents(open_app, measured):
    key = measured["mine-local"].key
    app = open_app("dynamics", **QUERY, run_a=key, run_b="none")
    assert not app.exception
    assert not app.warning
    assert app.query_params["run_a"] == key
    assert app.selectbox(key="run_b").value == ""


def test_a_run_that_changed_since_is_told(open_app, measured):
    app = open_app("dynamics", **QUERY, run_a="mine-local~000000000000")
    assert app.warning[0].value.startswith("A run of this link went on")
    assert app.selectbox(key="run_a").value == measured["mine-local"].key


def test_a_run_elsewhere_is_told_until_another_is_picked(open_app, measured):
    app = open_app("dynamics", **QUERY, run_a="other~000000000000")
    assert app.warning[0].value == "This link refers to a run not on this machine."
    app.selectbox(key="run_a").set_value(measured["mine-local"].key).run()
    assert not app.warning


def test_a_copy_of_a_run_is_not_shown_again(pair, library, tmp_path):
    shutil.copytree(library / "runs/mine-bp", tmp_path / "runs/copy")
    names = [run.name for run in dynamics.runs()]
    assert "copy" in names
    assert "mine-bp" not in names


def test_a_new_snapshot_is_another_question(pair, library):
    before = pair["mine-bp"].key
    (library / "runs/mine-bp/snapshots/epoch-0008.safetensors").write_text("more")
    after = next(run for run in dynamics.runs() if run.name == "mine-bp")
    assert after.key != before
    assert after.epochs == (0, 1, 4, 8)


# ------------------------------------------------------------------------------------------- texts


def test_the_table_holds_every_cell(pair, make_study):
    from analysis.dynamics import cka_development

    runs = list(pair.values())
    study = study_of(make_study, runs)
    part = cka_development(study, dynamics.trajectory_of(study, runs[0]), "previous")
    rows = list(csv.DictReader(io.StringIO(texts_dynamics.maps_csv({"mine-bp": part}))))
    assert len(rows) == 9
    assert rows[0]["reason"] == "there is no earlier snapshot"
    assert rows[0]["value"] == ""
    assert float(rows[3]["value"]) == pytest.approx(0.9)
    assert rows[3]["epoch"] == "1"


def test_the_sentence_says_when_layers_arrive(pair, make_study):
    from analysis.dynamics import cka_development

    runs = list(pair.values())
    study = study_of(make_study, runs)
    part = cka_development(study, dynamics.trajectory_of(study, runs[0]), "end")
    assert texts_dynamics.slowest(part, "x", 0.7) == (
        "In x, all layers stay above a CKA of 0.7 from epoch 1 on."
    )
    part.values[1, 2] = 0.1
    text = texts_dynamics.slowest(part, "x", 0.65).replace("\\", "")
    assert text == (
        "In x, stem stays above a CKA of 0.65 with its end from epoch 1 on, stage2_block1 only "
        "from epoch 4 on."
    )
    part.values[-1] = math.nan
    assert texts_dynamics.slowest(part, "x") == ""


def test_overview_says_how_snapshots_come_near_their_ends(pair, make_study):
    study = study_of(make_study, list(pair.values()))
    sentences = [text.replace("\\", "") for text in texts_overview.seen_in(study)]
    assert sentences == [
        "Half-way, at stage1_block1, the CKA of a run's snapshots with its own end stays at 0.9 or "
        "above: BP from the one after epoch 4 on and AugLocal from the one after epoch 4 on.",
        "AugLocal's CKA with BP's end goes there from 0.400 (0.380 to 0.420) after epoch 0 to "
        "0.800 (0.780 to 0.820) after epoch 4.",
        "A linear probe there is right in the end on 80.0% (70.0% to 90.0%) of the images "
        "from BP and 80.0% (70.0% to 90.0%) from AugLocal.",
    ]


def test_an_end_that_is_not_the_last_epoch_is_told(pair):
    run = pair["mine-bp"]
    assert texts_dynamics.ends([run]) == ""
    longer = replace(run, config={"epochs": 16})
    assert texts_dynamics.ends([run, longer]).replace("\\", "") == (
        "Mind that the end of mine-bp is its last snapshot, after epoch 4 of 16."
    )


def test_a_measured_run_is_drawn_without_torch(measured, shipped, tmp_path):
    root = Path(__file__).resolve().parents[2]
    program = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"app = AppTest.from_file({str(root / 'app' / 'streamlit_app.py')!r}, default_timeout=60)\n"
        f"for name, value in {QUERY!r}.items():\n"
        "    app.query_params[name] = value\n"
        "app.switch_page('views/dynamics.py').run()\n"
        "assert not app.exception and len(app.get('plotly_chart')) > 4, app\n"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_command_redoes_it(pair):
    runs = list(pair.values())
    question = dynamics.Question((), "digits", 40, 3, 60)
    words = dynamics.command(question, runs).split()
    assert words[:4] == ["python", "-m", "analysis", "dynamics"]
    assert str(runs[0].folder) in words
    from analysis.__main__ import make_parser

    options = make_parser().parse_args(words[3:])
    assert (options.samples, options.seed, options.train_samples) == (40, 3, 60)
