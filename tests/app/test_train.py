"""Runs that the app starts: their processes, their states, the form and the page."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from app import figures_training, jobs, texts_train
from app.sources import training
from auglocal import __main__ as auglocal
from auglocal.commands.shared import chosen_config
from auglocal.config import TrainConfig
from auglocal.errors import InputError, WorkError
from auglocal.runs import RunFolder, read_metrics

VALUES = {"architecture": "resnet20", "rule": "auglocal", "dataset": "digits", "seed": 0}
# Stands for `python -m auglocal train`: at work until it is told to stop, then says so.
WORKER = """
import json, signal, sys, time
print("epoch 1/2:  50%|#####     | 11/22 [00:01<01:20, 9.1step/s, "
      "loss 2.250, accuracy 14.1%, 1,290 images/s]", end="\\r", file=sys.stderr, flush=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
print("ready", file=sys.stderr, flush=True)
while not stopped:
    time.sleep(0.01)
print(json.dumps({"finished": False}))
"""


@pytest.fixture(autouse=True)
def no_process_stays(library):
    """End whatever a test has started."""
    yield
    for run in training.runs():
        training.kill(run)
        wait_for(lambda name=run.name: not training.find(name).is_alive)


@pytest.fixture
def program(monkeypatch):
    """Let runs be a Python script instead of a training."""

    def use(script: str) -> None:
        monkeypatch.setattr(training, "PROGRAM", (sys.executable, "-c", script))

    return use


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


def wait_until_ready(name):
    wait_for(lambda: "ready" in training.log_text(training.find(name)))


def keep_run(name="mine", *, epochs=2, done=2, log="", outcome=None, values=VALUES, **launch):
    """A run folder of a process that is gone."""
    path = training.runs_folder() / name
    path.mkdir(parents=True)
    lines = [
        {
            "epoch": epoch,
            "losses": {"stem": 2.0 / epoch, "head": 1.5 / epoch},
            "accuracies": {"stem": 0.2 * epoch, "head": 0.3 * epoch},
            "learning_rate": 0.1,
            "seconds": 1.0,
            "images_per_second": 700.0,
            "peak_memory": 2**30,
            "test_accuracy": 0.25 * epoch,
        }
        for epoch in range(1, done + 1)
    ]
    (path / "config.json").write_text(json.dumps({**values, "epochs": epochs}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = {"pid": 2**22 + 1, "process_started": "never", "started": "2026-11-22T10:00:00+00:00"}
    (path / "launch.json").write_text(json.dumps({"values": values, **started, **launch}))
    (path / "log.txt").write_text(log)
    (path / "outcome.json").write_text("" if outcome is None else json.dumps(outcome))
    return path


# -------------------------------------------------------------------------- processes


def test_a_run_is_seen_by_another_server_stops_cleanly_and_only_one_runs(program):
    program(WORKER)
    training.start("first", VALUES)
    wait_until_ready("first")
    run = training.find("first")
    assert run.state == training.RUNNING
    # Its own session: a Ctrl-C in the app's terminal does not reach it.
    pid = json.loads((run.path / "launch.json").read_text())["pid"]
    assert os.getsid(pid) == pid
    with pytest.raises(jobs.BusyError, match="first is still training; stop it or wait"):
        training.start("second", VALUES)

    children = dict(training._children())
    training._children().clear()  # as a server does that was started anew
    assert training.running().name == "first"
    training.stop(training.find("first"))
    training._children().update(children)
    wait_for(lambda: not training.find("first").is_alive)
    assert training.find("first").state == training.STOPPED


def test_a_run_that_was_asked_to_stop_says_so_until_it_has(program):
    program(WORKER.replace("stopped.append(1)", "None"))
    training.start("deaf", VALUES)
    wait_until_ready("deaf")
    training.stop(training.find("deaf"))
    assert training.find("deaf").state == training.STOPPING
    training.delete(training.find("deaf"))
    assert training.find("deaf") is not None
    training.kill(training.find("deaf"))
    wait_for(lambda: not training.find("deaf").is_alive)
    assert training.find("deaf").state == training.STOPPED
    assert "before it could save its last steps" in training.find("deaf").message


def test_a_killed_process_is_interrupted_and_goes_on_from_what_it_saved(program):
    program(WORKER)
    training.start("killed", VALUES, download=True)
    wait_until_ready("killed")
    path = training.find("killed").path
    os.kill(json.loads((path / "launch.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not training.find("killed").is_alive)
    assert training.find("killed").state == training.INTERRUPTED
    assert "intact" in training.find("killed").message

    program("import json, sys; print(json.dumps({'finished': True, 'arguments': sys.argv[1:]}))")
    for has_begun in (False, True):
        if has_begun:
            (path / "config.json").write_text(json.dumps({"epochs": 1}))
        training.resume(training.find("killed"))
        wait_for(lambda: not training.find("killed").is_alive)
        arguments = json.loads((path / "outcome.json").read_text())["arguments"]
        first = f"--resume={path}" if has_begun else f"--out={path}"
        assert arguments == [first, "--download", "--json"]


def test_another_process_with_the_same_number_is_not_the_run():
    path = keep_run(pid=os.getpid())
    assert not training.find("mine").is_alive
    own = training._process_started(os.getpid())
    assert own is not None
    launch = json.loads((path / "launch.json").read_text())
    (path / "launch.json").write_text(json.dumps({**launch, "process_started": own}))
    assert training.find("mine").is_alive
    (path / "launch.json").write_text(json.dumps({**launch, "pid": None}))


@pytest.mark.parametrize("name", ["", "../up", "-x", ".hidden", "a b", "a/b", "x" * 81, "a\n"])
def test_a_name_that_is_no_folder_of_ours_is_refused(name):
    with pytest.raises(InputError, match="letters, digits, dots"):
        training.start(name, VALUES)
    assert training.find(name) is None


def test_a_run_that_is_there_is_not_overwritten():
    keep_run("mine")
    with pytest.raises(InputError, match="already a run called mine; go on with it"):
        training.start("mine", VALUES)
    assert training.default_name(VALUES) == "digits-resnet20-auglocal-seed0"
    keep_run("digits-resnet20-auglocal-seed0")
    assert training.default_name(VALUES) == "digits-resnet20-auglocal-seed0-2"


def test_a_full_disk_is_told_and_starts_nothing(monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training, "write_whole", full)
    with pytest.raises(WorkError, match="free some space"):
        training.start("full", VALUES)
    assert training.running() is None


def test_two_sessions_that_start_at_once_start_one(program):
    from concurrent.futures import ThreadPoolExecutor

    program(WORKER)

    def attempt(name):
        try:
            training.start(name, VALUES)
        except jobs.BusyError:
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, ["a", "b", "c", "d"])) == 1


# ------------------------------------------------------------------------ what it asks


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"augment": False, "recompute": True, "stream": False, "snapshot_epochs": (0, 1, 4)},
        {"learning_rate": 1e-07, "width": 0.25, "tail": 4, "momentum": 0.0},
        {"dataset_title": "--overwrite; rm -rf / $(id) `id` 'x' \"y\"", "data_folder": "-- a\nb"},
        {"dataset": "imagefolder:--out=/ & reboot", "image_size": 16},
    ],
)
def test_what_was_filled_in_reaches_the_configuration_and_nothing_else(values):
    options = auglocal.make_parser().parse_args(["train", *training.option_arguments(values)])
    assert TrainConfig(**chosen_config(options)) == TrainConfig(**values)
    assert not options.overwrite
    assert options.out is None


def test_every_recipe_makes_a_command_of_the_same_configuration():
    fields = training.config_fields()
    for recipe in training.recipes().values():
        values = recipe.values
        arguments = ["train", *training.option_arguments(values)]
        asked = chosen_config(auglocal.make_parser().parse_args(arguments))
        assert asked == {
            name: value for name, value in values.items() if value != fields[name].default
        }


def test_the_form_has_every_field_of_the_configuration_once():
    names = [
        *texts_train.IN_SIGHT,
        *(name for group in texts_train.GROUPS.values() for name in group),
    ]
    assert sorted(names) == sorted(training.config_fields())
    assert all(field.doc for field in training.config_fields().values())


def test_a_dry_run_fails_with_the_commands_own_sentence(program):
    program("import sys; sys.exit('auglocal: There is no folder /x; give another one.')")
    with pytest.raises(InputError, match=r"^There is no folder /x; give another one\.$"):
        training.dry_run(VALUES)


# ------------------------------------------------------------------------ what it says


@pytest.mark.parametrize(
    ("log", "state", "message"),
    [
        ("", training.INTERRUPTED, "ended without a word"),
        ("epoch 1/2:  50%|## | 1/2 [00:01<00:01]", training.INTERRUPTED, "is intact"),
        ("x\nauglocal: disk full; free some.", training.FAILED, "Disk full; free some."),
        (
            "Traceback (most recent call last):\n  File\nKeyError: 'a'",
            training.FAILED,
            "(KeyError)",
        ),
        ("auglocal: interrupted.", training.INTERRUPTED, "ended without a word"),
    ],
)
def test_how_a_run_ended_is_read_from_its_log(log, state, message):
    keep_run(done=1, log=log)
    run = training.find("mine")
    assert run.state == state
    assert message in run.message


def test_a_run_is_finished_when_the_command_said_so():
    keep_run("done", outcome={"finished": True})
    keep_run("stopped", done=1, outcome={"finished": False})
    assert training.find("done").state == training.FINISHED
    assert training.find("stopped").state == training.STOPPED


def test_epochs_are_read_as_training_reads_them():
    path = keep_run()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "los')
    run = training.find("mine")
    assert training.metrics(run) == read_metrics(RunFolder(path))
    assert (run.epoch, run.epochs, run.test_accuracy) == (2, 2, 0.5)


def test_progress_is_read_from_the_bar(program):
    program(WORKER)
    training.start("bar", VALUES)
    wait_until_ready("bar")
    progress = training.progress(training.find("bar"))
    assert progress == training.Progress(11, 22, "01:20", 2.25, 0.141, 1290.0)
    assert texts_train.progress_text(progress) == "Step 11 of 22, about 01:20 left"


def test_checkpoints_of_finished_runs_are_found_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, done in (("runs/a", 2), ("runs/series/seed-0", 2), ("runs/half", 1)):
        path = keep_run(folder.replace("/", "-"), done=done)
        target = tmp_path / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        (target / "checkpoint.safetensors").write_bytes(b"")
    (keep_run("library") / "checkpoint.safetensors").write_bytes(b"")
    keep_run("without-file")
    program = (
        "import sys\n"
        "from app.sources import training\n"
        "print([path.parent.name for path in training.finished_checkpoints()])\n"
        "print('torch' in sys.modules)\n"
    )
    root = str(training.folders.ROOT)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["['library', 'a', 'seed-0']", "False"]


def test_the_partner_has_the_same_data_and_backbone_and_another_rule():
    def entry(sha256, rule, dataset="digits", architecture="resnet20", seed=7):
        about = SimpleNamespace(
            rule=rule, dataset=dataset, architecture=architecture, seed=seed, config={}
        )
        return SimpleNamespace(sha256=sha256), about

    keep_run()
    mine = training.find("mine")
    entries = [
        entry("mine", "auglocal"),
        entry("same rule", "auglocal"),
        entry("other data", "bp", "CIFAR-10"),
        entry("fits", "bp"),
    ]
    assert training.partner(mine, "mine", entries).sha256 == "fits"
    assert training.partner(mine, "mine", entries[:1]) is None
    same_seed = entry("same seed", "bp", seed=mine.values["seed"])
    assert training.partner(mine, "mine", [*entries, same_seed]).sha256 == "same seed"


def test_deleting_takes_the_folder_and_nothing_beside_it():
    keep_run("one")
    other = keep_run("other")
    training.delete(training.find("one"))
    assert training.find("one") is None
    assert other.exists()


# -------------------------------------------------------------------------- the figures


def test_figures_show_each_epoch_and_layer():
    keep_run(epochs=5, done=3)
    lines = training.metrics(training.find("mine"))
    losses = figures_training.losses_by_epoch(lines, "auglocal", 5)
    assert list(losses.data[-1].y) == [1.5, 0.75, 0.5]
    assert losses.layout.xaxis.range == (0, 5.5)
    accuracy = figures_training.accuracy_by_epoch(lines, "auglocal", 5)
    assert {trace.name: list(trace.y) for trace in accuracy.data}["test"] == [0.25, 0.5, 0.75]
    layers = figures_training.accuracy_by_layer(
        [*lines[:-1], {**lines[-1], "test_local_accuracies": {"stem": 0.5, "head": 0.7}}],
        "auglocal",
    )
    curves = {trace.name: list(trace.y) for trace in layers.data}
    assert curves["epoch 3, test"] == [0.5, 0.7]
    assert curves["epoch 3, training"] == pytest.approx([0.6, 0.9])
    assert len(layers.data) == 4


# ----------------------------------------------------------------------------- the page


def press(app, label):
    next(button for button in app.button if button.label == label).click().run()


def test_the_form_begins_with_two_minutes_on_digits(open_app):
    app = open_app("train")
    assert not app.exception
    assert app.selectbox(key="train_dataset").value == "digits"
    assert app.code[0].value == "python -m auglocal train"
    assert {metric.label: metric.delta for metric in app.metric}[
        "Held for backward"
    ] == "0.366 of BP"
    assert not app.checkbox
    assert not app.segmented_control


def test_a_recipe_fills_in_the_form_and_another_rule_hides_its_options(open_app):
    app = open_app("train")
    app.selectbox(key="train_recipe").set_value("cifar10-resnet32-auglocal").run()
    assert not app.exception
    values = training.recipes()["cifar10-resnet32-auglocal"].values
    assert app.number_input(key="train_epochs").value == values["epochs"]
    assert app.selectbox(key="train_dataset").value == "cifar10"
    assert app.query_params["train_architecture"] == "resnet32"
    app.selectbox(key="train_rule").set_value("bp").run()
    assert not app.exception
    assert not [box for box in app.number_input if box.key == "train_auxiliary_depth"]
    assert "--auxiliary-depth" not in app.code[0].value


def test_a_link_fills_in_the_form(open_app):
    app = open_app(
        "train", train_epochs="3", train_width="0.5", train_augment="False", train_rule="nonsense"
    )
    assert not app.exception
    assert app.code[0].value == "python -m auglocal train --width=0.5 --epochs=3 --no-augment"


def test_what_cannot_be_trained_is_told_before_it_starts(open_app):
    app = open_app("train", train_auxiliary_depth="9")
    assert "nothing is left to learn locally" in app.warning[0].value
    assert not [button for button in app.button if button.label == "Start training"]
    app = open_app("train", train_snapshot_epochs="1,x")
    assert "whole numbers with commas" in app.warning[0].value.replace("\\", "")


def test_a_dry_run_says_how_long_it_would_take(open_app, program):
    program(
        "import json; print(json.dumps({'steps': 330, 'training_images': 697, "
        "'parameters': {'total': 905760}, 'estimated_seconds': 7200.0}))"
    )
    app = open_app("train")
    press(app, "Dry run")
    assert not app.exception
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Time, about"] == "2.0 h"
    assert values["Steps"] == "330"
    assert training.runs() == []


def test_data_that_is_not_here_is_fetched_only_when_asked(open_app, monkeypatch, tmp_path):
    from app.sources import datasets

    monkeypatch.setattr(datasets, "datasets_on_disk", lambda: {"digits": "digits"})
    app = open_app("train", train_dataset="cifar10")
    assert app.checkbox[0].value is False
    assert "--download" not in app.code[0].value
    app.checkbox[0].check().run()
    assert app.code[0].value.endswith("--download")


def test_a_run_is_started_watched_and_stopped(open_app, program):
    program(WORKER)
    app = open_app("train")
    press(app, "Start training")
    assert not app.exception
    assert app.query_params["train_run"] == "digits-resnet20-auglocal-seed0"
    wait_until_ready("digits-resnet20-auglocal-seed0")
    again = open_app("train")  # another visit finds it
    assert again.markdown[0].value.startswith("**Running**")
    press(again, "Stop")
    wait_for(lambda: training.running() is None)
    again.run()
    assert "Stopped after epoch 0" in again.info[0].value
    assert [button.label for button in again.button][:2] == ["Resume", "Same settings again"]


@pytest.mark.parametrize(
    ("kept", "kind", "words"),
    [
        ({"done": 1, "log": "auglocal: x [y](http://a) is gone."}, "error", "The run failed"),
        ({"done": 1}, "warning", "ended without a word"),
        ({"done": 1, "outcome": {"finished": False}}, "info", "Stopped after epoch 1 of 2"),
    ],
)
def test_each_end_of_a_run_is_shown_with_its_way_on(open_app, figures_of, kept, kind, words):
    keep_run(**kept)
    app = open_app("train", train_view="Runs", train_run="mine")
    assert not app.exception
    (shown,) = getattr(app, kind)
    assert words in shown.value
    assert "[y](" not in shown.value
    assert next(button for button in app.button if button.label == "Resume")
    assert len(figures_of(app)) == 3


def test_a_finished_run_is_compared_with_one_click(open_app, add_net, monkeypatch):
    path = keep_run(outcome={"finished": True})
    add_net(path / "checkpoint.safetensors", "auglocal", 7)
    app = open_app("train", train_view="Runs", train_run="mine")
    assert {metric.label: metric.value for metric in app.metric}["Test accuracy"] == "50.0%"
    press(app, "Compare it")
    assert not app.exception
    assert app.title[0].value != "Train"


def test_a_finished_run_is_deleted_and_its_settings_are_used_again(open_app):
    keep_run(outcome={"finished": True}, values={**VALUES, "batch_size": 64})
    app = open_app("train", train_view="Runs", train_run="mine")
    press(app, "Same settings again")
    assert app.number_input(key="train_batch_size").value == 64
    app = open_app("train", train_view="Runs", train_run="mine")
    press(app, "Delete this run")
    assert not app.exception
    assert training.runs() == []
    assert app.selectbox(key="train_dataset").value == "digits"


def test_a_link_to_a_run_elsewhere_is_told(open_app):
    keep_run()
    app = open_app("train", train_view="Runs", train_run="gone")
    assert not app.exception
    assert "not on this machine" in app.warning[0].value
