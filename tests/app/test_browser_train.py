"""Training from a real browser: it outlives the page and the app, stops, and goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.sources import training

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
PATIENCE = 120_000  # milliseconds; a busy machine takes long to load PyTorch
TINY = "train_width=0.25&train_batch_size=64&train_epochs="


@pytest.fixture
def chromium() -> str:
    """The browser; without one the test is skipped here and fails in CI."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail("there is no Chromium: .ci/run must install one")
    if found is None:
        pytest.skip(f"there is none of {', '.join(NAMES)} on this machine")
    return found


@pytest.fixture
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serve(shipped, tmp_path):
    """Start the app, as often as asked; ends the trainings that were started."""

    @contextlib.contextmanager
    def run():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app")]
        options = ["--server.headless", "true", "--server.port", str(port)]
        with (tmp_path / "server.log").open("a") as log:
            server = subprocess.Popen([*command, *options], cwd=ROOT, stdout=log, stderr=log)
            try:
                wait_until_up(f"http://127.0.0.1:{port}/_stcore/health")
                yield f"http://127.0.0.1:{port}"
            finally:
                server.terminate()
                server.wait(10)

    yield run
    for found in training.runs():
        training.kill(found)


def wait_until_up(url: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, "the app does not start"
            time.sleep(0.1)
        else:
            return


def open_page(browser, address, query):
    page = browser.new_page(viewport={"width": 1280, "height": 1200})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/train?{query}")
    return page


def press(page, label):
    page.get_by_role("button", name=label, exact=True).click()


def test_a_training_outlives_its_page_and_the_app_and_is_compared(browser, serve):
    with serve() as address:
        page = open_page(browser, address, f"{TINY}1")
        press(page, "Start training")
        page.get_by_text("It goes on when this page").wait_for()
        link = urlsplit(page.url).query
        page.close()
        assert training.running() is not None
    assert "train_run=digits-resnet20-auglocal-seed0" in link
    with serve() as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1200})
        page.set_default_timeout(PATIENCE)
        hosts = set()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(f"{address}/train?{link}")
        page.get_by_role("button", name="Compare it").wait_for()
        page.get_by_text("1 of 1", exact=True).first.wait_for()
        page.wait_for_selector(".js-plotly-plot .main-svg")
        (run,) = training.runs()
        assert run.state == training.FINISHED
        assert training.finished_checkpoints() == [run.checkpoint]
        press(page, "Compare it")
        page.get_by_role("heading", name="Train", exact=True).wait_for(state="detached")
        page.goto(f"{address}/method")
        page.wait_for_selector(".katex")
        assert page.locator(".katex-error").count() == 0
        assert hosts - {""} == {urlsplit(address).netloc}


def test_a_training_is_stopped_and_goes_on(browser, serve):
    with serve() as address:
        page = open_page(browser, address, f"{TINY}200")
        press(page, "Start training")
        page.get_by_text("Accuracy by epoch").wait_for()
        press(page, "Stop")
        page.get_by_text("Stopped after epoch").wait_for()
        (run,) = training.runs()
        assert run.state == training.STOPPED
        assert 1 <= run.epoch < 200
        press(page, "Resume")
        page.get_by_text("It goes on when this page").wait_for()
        page.get_by_text(f"{run.epoch + 1} of 200", exact=True).first.wait_for()
        press(page, "Stop")
        page.get_by_text("Stopped after epoch").wait_for()
        epochs = [line["epoch"] for line in training.metrics(training.runs()[0])]
        assert epochs == list(range(1, epochs[-1] + 1))
        assert epochs[-1] > run.epoch


def test_a_click_in_the_map_of_copies_picks_a_local_layer_and_the_link_keeps_it(browser, serve):
    with serve() as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/auxiliary?aux_architecture=resnet20&aux_depth=2")
        area = page.locator(".st-key-copies-chart .nsewdrag")
        area.wait_for()
        area.scroll_into_view_if_needed()
        # Row 4 of 10 from below is stage2_block1; column 9 is the last layer, which all copy.
        box = area.bounding_box()
        page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.55 * box["height"])
        page.get_by_text("copies stage3_block3").wait_for()
        page.mouse.down()
        page.mouse.up()
        page.wait_for_url("**aux_layer=stage2_block1**")
        page.get_by_text("What trains stage2_block1").wait_for()
        page.reload()
        page.get_by_text("What trains stage2_block1").wait_for()
