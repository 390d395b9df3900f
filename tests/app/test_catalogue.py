"""What forms know of the trainer, and the copy of it that needs no PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from app.sources import catalogue, folders


@pytest.fixture
def fresh():
    """No answer of an earlier test."""
    catalogue.catalogue.clear()
    yield
    catalogue.catalogue.clear()


def test_the_copy_says_what_the_trainer_says(fresh, library):
    asked = catalogue.catalogue()
    kept = list((library / "catalogue").glob("*.json"))
    assert len(kept) == 1
    catalogue.catalogue.clear()
    read = catalogue.catalogue()
    assert read is not asked
    assert read == asked
    assert read.fields["snapshot_epochs"].kind == "ints"
    assert isinstance(read.fields["snapshot_epochs"].default, tuple)
    assert read.fields["auxiliary_depth"].rules == ("auglocal",)


def test_the_copy_of_another_trainer_is_not_read(fresh, library, monkeypatch):
    catalogue.catalogue()
    (before,) = (library / "catalogue").glob("*.json")
    monkeypatch.setattr(catalogue.folders, "stamp", lambda path: (str(path), 0, time.time_ns()))
    catalogue.catalogue.clear()
    catalogue.catalogue()
    (after,) = (library / "catalogue").glob("*.json")
    assert after != before


def test_a_damaged_copy_is_made_again(fresh, library):
    asked = catalogue.catalogue()
    (path,) = (library / "catalogue").glob("*.json")
    path.write_text('{"fields": {}}')
    catalogue.catalogue.clear()
    assert catalogue.catalogue() == asked


def test_the_copy_is_read_without_torch(fresh, library):
    catalogue.catalogue()
    program = (
        "import sys\n"
        "from app.sources import plans, training\n"
        "print(len(plans.choices()['rule']) > 3, training.command({'rule': 'bp'}))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(folders.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["True python -m auglocal train --rule=bp", "False"]


def test_torch_is_there_soon_after_the_first_page(library):
    program = (
        "import sys, time\n"
        "from streamlit.testing.v1 import AppTest\n"
        "from app.sources import catalogue\n"
        "catalogue.PAUSE = 0.5\n"
        "app = AppTest.from_file('app/streamlit_app.py', default_timeout=60).run()\n"
        "assert not app.exception\n"
        "print('torch' in sys.modules)\n"
        "end = time.monotonic() + 60\n"
        "while 'auglocal.plan' not in sys.modules and time.monotonic() < end:\n"
        "    time.sleep(0.1)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folders.ROOT,
        env={**os.environ, "PYTHONPATH": str(folders.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["False", "True"]
