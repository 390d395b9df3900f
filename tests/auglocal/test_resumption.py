"""What must be the same for a run to go on: every field of its configuration, and the threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.resumption import check_same_run, describe_run, thread_warnings

PLAIN = torch.nn.Identity()
CONFIG = TrainConfig(snapshot_epochs=(0, 2))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architecture", "resnet32", "architecture is 'resnet20' in resume.pt and 'resnet32' in"),
        ("width", 2.0, "width is 1.0 in resume.pt and 2.0 in config.json"),
        ("seed", 3, "seed is 0 in resume.pt and 3 in config.json; restore"),
        ("snapshot_epochs", (0,), r"snapshot_epochs is \(0, 2\) in resume.pt and \(0,\) in"),
    ],
)
def test_the_field_that_differs_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_same_run(replace(CONFIG, **{field: value}), describe_run(CONFIG, PLAIN))


def test_the_same_run_may_go_on_elsewhere() -> None:
    moved = replace(CONFIG, device="cpu", data_folder="/mnt/data")
    check_same_run(moved, describe_run(CONFIG, PLAIN))


def test_a_state_from_before_a_field_was_there_passes() -> None:
    saved = describe_run(CONFIG, PLAIN)
    del saved["config"]["snapshot_epochs"]
    check_same_run(CONFIG, saved)
    check_same_run(CONFIG, {})


def test_only_another_number_of_threads_is_worth_a_warning() -> None:
    threads = torch.get_num_threads()
    assert list(thread_warnings(TrainConfig(), PLAIN, {"threads": threads})) == []
    assert list(thread_warnings(TrainConfig(), PLAIN, {})) == []
    (warning,) = thread_warnings(TrainConfig(), PLAIN, {"threads": threads + 1})
    assert f"set OMP_NUM_THREADS={threads + 1}" in warning
