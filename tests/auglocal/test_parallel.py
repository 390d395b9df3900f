"""Training spread over ranks: the weights of one process, and what happens when a rank dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from auglocal.__main__ import main
from auglocal.checkpoint import load_checkpoint
from auglocal.commands.shared import run_command
from auglocal.config import TrainConfig
from auglocal.errors import InputError, WorkError
from auglocal.parallel import training
from auglocal.parallel.gradients import running_statistics
from auglocal.parallel.layout import Layout
from auglocal.parallel.team import joined
from auglocal.parallel.watch import Seen, Sign, find_silent
from auglocal.rules.linear import Linear
from auglocal.rules.registry import build_network
from auglocal.runs import RunFolder, load_state, read_metrics
from auglocal.step import State
from auglocal.training import prepare_state
from tests.auglocal.ranks import PATIENCE, Command, Ranks, assert_same_run, free_port, wait_for

pytestmark = pytest.mark.slow
DIGITS = ["--dataset", "digits", "--validation-samples", "600", "--batch-size", "60"]
TINY = ["--width", "0.25", "--batch-size", "10", "--validation-samples", "8", "--device", "cpu"]


def train_alone(*options: str) -> RunFolder:
    assert main(["train", *options]) == 0
    return RunFolder(Path(options[options.index("--out") + 1]))


@pytest.mark.parametrize(
    ("layout", "size", "options"),
    [
        ("layers=2", 2, [*DIGITS, "--rule", "auglocal", "--snapshot-epochs", "0,1"]),
        ("layers=3", 3, ["--rule", "infopro", "--accumulate", "2"]),
        ("layers=2", 2, ["--rule", "predsim", "--precision", "bf16", "--balance", "time"]),
    ],
)
def test_ranks_that_own_blocks_train_the_weights_of_one_process(
    layout: str, size: int, options: list[str], image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "2", *options]
    ranks.train(layout, size, *common, "--out", str(tmp_path / "ranks"))
    if "--balance" in common:
        common = common[: common.index("--balance")]
    alone = train_alone(*common, "--out", str(tmp_path / "alone"))
    assert_same_run(alone, RunFolder(tmp_path / "ranks"))
    assert "expected speed-up" in ranks.said()


class KeepNetwork:
    """The command, which leaves the network as this rank has it after the last step."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder, self.options = folder, list(options)

    def __call__(self) -> int:
        def prepare(*arguments: Any) -> State:
            self.state = prepare_state(*arguments)
            return self.state

        training.prepare_state = prepare
        status = main(["train", *self.options])
        content = {**self.state.network.state_dict()}
        torch.save(content, self.folder / f"rank-{os.environ['RANK']}.pt")
        return status


@pytest.mark.parametrize("options", [[], ["--sync-batch-norm", "--accumulate", "2"]])
@pytest.mark.parametrize(("layout", "size"), [("data=2", 2), ("layers=2,data=2", 4)])
def test_ranks_that_share_batches_stay_equal_to_the_last_bit(
    layout: str, size: int, options: list[str], image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    # The last batch is too small to share: 40 = 37 + 3.
    common = ["--width", "0.25", "--batch-size", "37", "--validation-samples", "8", *options]
    common += ["--device", "cpu", "--dataset", f"imagefolder:{image_folder}", "--epochs", "1"]
    common += ["--modules", "3", "--parallel", layout, "--out", str(tmp_path / "run")]
    ranks.start(size, KeepNetwork(tmp_path, common))
    assert ranks.wait() == [0] * size, ranks.said()
    networks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(size)]
    for network in networks[1:]:
        assert network.keys() == networks[0].keys()
        assert all(torch.equal(network[key], value) for key, value in networks[0].items())


@pytest.mark.parametrize("rule", ["bp", "auglocal"])
def test_two_shares_of_a_batch_with_one_batch_norm_learn_what_the_batch_teaches(
    rule: str, image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "1", "--rule", rule]
    common += ["--learning-rate", "0.01"]
    ranks.train("data=2", 2, *common, "--sync-batch-norm", "--out", str(tmp_path / "ranks"))
    alone = train_alone(*common, "--out", str(tmp_path / "alone"))
    shared = load_checkpoint(tmp_path / "ranks" / "checkpoint.safetensors")
    whole = load_checkpoint(alone.checkpoint)
    for key, value in {**whole.backbone, **whole.auxiliary}.items():
        other = {**shared.backbone, **shared.auxiliary}[key]
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4, msg=key)
    line, same = (read_metrics(RunFolder(tmp_path / name))[0] for name in ("alone", "ranks"))
    assert same["losses"] == pytest.approx(line["losses"], rel=1e-3)
    assert same["parallel"] == "layers=1,data=2"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_and_is_named_and_any_layout_goes_on(
    victim: int, image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "8"]
    common += ["--rule", "dgl", "--modules", "4"]
    folder = RunFolder(tmp_path / "killed")
    start = [*common, "--out", str(folder.path), "--parallel", "layers=2", "--timeout", "20"]
    ranks.start(2, Command(start))
    wait_for(lambda: len(read_metrics(folder)) >= 2, ranks.processes)
    ranks.processes[victim].kill()
    began = time.monotonic()
    statuses = ranks.wait()
    assert time.monotonic() - began < 20
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    assert ranks.said().count(f"Rank {victim} (layers {victim} of 0 to 1) ended") == 1
    assert "Traceback" not in ranks.said()
    saved = load_state(folder)
    assert saved is not None
    assert 1 <= saved["epoch"] < 8
    # From two layouts to a third, and the other way round.
    if victim == 0:
        ranks.train("layers=3", 3, "--resume", str(folder.path), "--device", "cpu")
    else:
        assert main(["train", "--resume", str(folder.path)]) == 0
    assert_same_run(train_alone(*common, "--out", str(tmp_path / "alone")), folder)


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        (1, "Rank 1 (layers 1 of 0 to 1) has given no sign of life for"),
        # Not started by torchrun, the first rank keeps the store where the others look.
        (0, "Rank 0 (layers 0 of 0 to 1), who keeps the ranks' meeting place, has given no sign"),
    ],
)
def test_a_rank_that_hangs_ends_the_run_within_the_timeout(
    victim: int, message: str, image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "50"]
    common += ["--parallel", "layers=2", "--timeout", "4", "--out", str(tmp_path / "run")]
    ranks.start(2, Command(common))
    wait_for(lambda: len(read_metrics(RunFolder(tmp_path / "run"))) >= 1, ranks.processes)
    os.kill(ranks.processes[victim].pid, signal.SIGSTOP)
    began = time.monotonic()
    statuses = ranks.wait()
    assert (statuses[victim], statuses[1 - victim]) == (-signal.SIGKILL, 1)
    assert time.monotonic() - began < 4 + 1
    assert message in ranks.said()


def test_two_ranks_that_hang_are_both_ended(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "50"]
    common += ["--parallel", "layers=3", "--timeout", "4", "--out", str(tmp_path / "run")]
    ranks.start(3, Command([*common, "--rule", "linear", "--modules", "3"]))
    wait_for(lambda: len(read_metrics(RunFolder(tmp_path / "run"))) >= 1, ranks.processes)
    for process in ranks.processes[1:]:
        os.kill(process.pid, signal.SIGSTOP)
    assert ranks.wait() == [1, -signal.SIGKILL, -signal.SIGKILL]


def test_ranks_that_were_all_paused_for_longer_than_the_timeout_go_on(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "10"]
    common += ["--rule", "linear", "--modules", "2", "--out", str(tmp_path / "run")]
    ranks.start(2, Command([*common, "--parallel", "layers=2", "--timeout", "6"]))
    wait_for(lambda: len(read_metrics(RunFolder(tmp_path / "run"))) >= 1, ranks.processes)
    first, second = (process.pid for process in ranks.processes)
    # The first notes the second's last sign, and no other when it wakes up.
    os.kill(second, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(first, signal.SIGSTOP)
    time.sleep(7)
    os.kill(first, signal.SIGCONT)
    time.sleep(1)
    os.kill(second, signal.SIGCONT)
    assert ranks.wait() == [0, 0], ranks.said()
    assert len(read_metrics(RunFolder(tmp_path / "run"))) == 10


def test_a_wish_to_stop_ends_all_ranks_after_the_same_step_and_one_process_goes_on(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "8"]
    common += ["--modules", "3", "--rule", "infopro", "--accumulate", "2"]
    folder = RunFolder(tmp_path / "stopped")
    start = [*common, "--out", str(folder.path), "--parallel", "layers=2", "--timeout", "60"]
    ranks.start(2, Command(start))
    wait_for(lambda: len(read_metrics(folder)) >= 1, ranks.processes)
    for process in ranks.processes:
        process.terminate()
    assert ranks.wait() == [130, 130], ranks.said()
    assert "Stopped with everything saved" in ranks.said()
    assert main(["train", "--resume", str(folder.path)]) == 0
    assert_same_run(train_alone(*common, "--out", str(tmp_path / "alone")), folder)


class OnThreads:
    """A command, on so many threads by rank."""

    def __init__(self, counts: Sequence[int], command: Command) -> None:
        self.counts, self.command = counts, command

    def __call__(self) -> int:
        torch.set_num_threads(self.counts[int(os.environ["RANK"])])
        return self.command()


def test_ranks_on_different_numbers_of_threads_are_refused(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--modules", "2"]
    common += ["--out", str(tmp_path / "run"), "--parallel", "layers=2", "--timeout", "30"]
    ranks.start(2, OnThreads([1, 2], Command(common)))
    assert ranks.wait() == [2, 1]
    assert ranks.said().count("The ranks compute with 1 to 2 threads") == 1
    assert "set the same OMP_NUM_THREADS on every machine" in ranks.said()
    assert "Traceback" not in ranks.said()
    assert not RunFolder(tmp_path / "run").resume.exists()


def test_going_on_with_other_threads_is_warned_of_once(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--modules", "2"]
    common += ["--rule", "linear", "--epochs", "1", "--out", str(tmp_path / "run")]
    ranks.train("layers=2", 2, *common)
    again = ["--resume", str(tmp_path / "run"), "--parallel", "layers=2", "--device", "cpu"]
    ranks.start(2, OnThreads([2, 2], Command(again)))
    assert ranks.wait() == [0, 0]
    warning = "this run computed with 1 threads so far and goes on with 2"
    assert ranks.said().count(warning) == 1


def test_a_loss_that_is_no_number_is_reported_once_by_the_rank_that_owns_the_block(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--learning-rate", "1e30"]
    common += ["--out", str(tmp_path / "run"), "--parallel", "layers=2", "--timeout", "30"]
    ranks.start(2, Command(common))
    assert ranks.wait() == [1, 1]
    said = ranks.said()
    assert said.count("became NaN or infinite") == 1
    assert "ended without a word" not in said
    assert "Traceback" not in said


def test_torchrun_starts_again_by_itself_after_a_death(image_folder: Path, tmp_path: Path) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--epochs", "8"]
    common += ["--rule", "linear", "--modules", "2"]
    folder = RunFolder(tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--max-restarts", "1", "--master-port", str(free_port()), "-m", "auglocal"]
    process = subprocess.Popen(
        [*torchrun, "train", *common, "--out", str(folder.path), "--parallel", "layers=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while len(read_metrics(folder)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert "Rank 1 (layers 1 of 0 to 1) ended without a word" in said, said
    assert_same_run(train_alone(*common, "--out", str(tmp_path / "alone")), folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parallel", "layers=2"], "needs 2 processes, and there is 1; start with torchrun"),
        (["--parallel", "layers=1"], "wants to be started by torchrun"),
        (["--parallel", "rows=1"], "--parallel takes layers=4"),
    ],
)
def test_the_command_says_how_ranks_are_started(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "torchrun started 2 processes, which would all do the same"),
        (["--parallel", "layers=3"], "needs 3 processes, and there are 2"),
        (["--parallel", "layers=2", "--seeds", "0,1"], "--seeds runs in one process"),
        (["--parallel", "layers=2", "--dry-run"], "--dry-run runs in one process"),
        (["--parallel", "layers=2", "--timeout", "0"], "must be at least 2 seconds, not 0"),
        (["--parallel", "layers=2", "--block-threads", "2"], "--block-threads trains blocks"),
    ],
)
def test_one_rank_refuses_what_ranks_cannot_do(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", *options]) == 2
    assert message in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        main(["train", *options])
    assert capsys.readouterr().err == ""


def test_what_is_wrong_with_a_run_is_said_once(
    image_folder: Path, tmp_path: Path, ranks: Ranks
) -> None:
    common = [*TINY, "--dataset", f"imagefolder:{image_folder}", "--timeout", "30"]
    common += ["--modules", "2", "--out", str(tmp_path / "run"), "--parallel", "layers=3"]
    ranks.start(3, Command(common))
    assert sorted(str(status) for status in ranks.wait()) == ["1", "1", "2"]
    assert ranks.said().count("2 blocks cannot be shared out among 3 ranks") == 1
    assert "Traceback" not in ranks.said()
    assert not (tmp_path / "run").exists()


def test_dropout_on_two_ranks_is_refused(image_folder: Path) -> None:
    config = TrainConfig(architecture="efficientnet-b0", rule="dgl", modules=3, width=0.25)
    network = build_network("efficientnet-b0", config.make_rule(), 2, (3, 16, 16), 0, width=0.25)
    training.check_draws(network, (range(0, 3),), config)
    with pytest.raises(InputError, match=r"efficientnet-b0 draws random numbers.*data=N"):
        training.check_draws(network, (range(0, 1), range(1, 3)), config)


def test_a_rank_without_a_heartbeat_is_blamed_before_one_that_does_not_get_on() -> None:
    sign = Sign(beat=3, progress=7, waiting=False, left="", host="a", pid=1)
    assert find_silent({1: Seen(sign, 9, 9), 2: Seen(sign, 8, 8)}, now=10, limit=5) is None
    stuck, silent = Seen(sign, 9, 2), Seen(sign, 2, 2)
    found = find_silent({1: stuck, 2: silent}, now=10, limit=5)
    assert found == (2, "has given no sign of life for 8 s")
    assert find_silent({1: stuck}, now=10, limit=5) == (1, "has not got on for 8 s")
    gone = Seen(replace(sign, left="done"), 2, 2)
    assert find_silent({1: gone}, now=10, limit=5) is None


class FailOrSleep:
    """Rank 1 fails; the other hears nothing of it, as one that waits for a GPU would not."""

    def __call__(self) -> int:
        def act() -> int:
            with joined(Layout(data=2), 4.0, "cpu") as team:
                if team.rank == 1:
                    raise WorkError("The GPU ran out of memory.")
                with team.watch.waiting():
                    time.sleep(PATIENCE)
            return 0

        return run_command(act, "auglocal")


def test_a_rank_that_hears_nothing_of_anothers_failure_is_ended_without_a_word(
    ranks: Ranks,
) -> None:
    ranks.start(2, FailOrSleep())
    began = time.monotonic()
    assert ranks.wait() == [1, 1], ranks.said()
    assert time.monotonic() - began < PATIENCE / 2
    assert ranks.log(1).read_text() == "auglocal: The GPU ran out of memory.\n"
    assert ranks.log(0).read_text() == ""


def test_the_bench_times_every_layout_and_counts_what_is_sent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "auglocal", "bench", "--parallel", "--ranks", "2", "--json"]
    command += ["--rule", "linear", "--modules", "2", "--width", "0.25", "--image-size", "16"]
    command += ["--batch-size", "8", "--rounds", "1", "--device", "cpu"]
    outcome = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=PATIENCE,
    )
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    alone, layers, data, bp, bp_data = document["rows"]
    assert [row["ranks"] for row in document["rows"]] == [1, 2, 2, 1, 2]
    assert [row["rule"] for row in document["rows"]] == ["linear"] * 3 + ["bp"] * 2
    assert bp_data["ideal"] == 2 * bp["ideal"]
    assert all(row["images_per_second"] > 0 for row in document["rows"])
    assert alone["bytes_per_step"] == 0
    assert alone["speed_up"] == 1
    assert data["ideal"] == 2
    assert 1 < layers["ideal"] <= 2
    network = build_network("resnet20", Linear(modules=2), 10, (3, 16, 16), 0, width=0.25)
    trained = sum(parameter.numel() for parameter in network.parameters())
    statistics = sum(tensor.numel() for tensor in running_statistics(network))
    assert data["bytes_per_step"] == 4 * (trained + statistics)
    features = network.run_block(0, torch.zeros(8, 3, 16, 16))
    # Of float32, labels of int64, one word whether to go on; and once, what the tensors are.
    every_step = features.numel() * 4 + 8 * 8 + 8
    assert every_step <= layers["bytes_per_step"] <= every_step + 8 * 30
