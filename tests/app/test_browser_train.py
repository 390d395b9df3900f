"""Training from a real browser: it outlives the page and the app, stops, and goes on."""

from __future__ import annotations

from functools import partial
from urllib.parse import urlsplit

import pytest

from app.sources import training
from tests.app.browsing import serving

pytestmark = pytest.mark.browser

PATIENCE = 120_000  # milliseconds; a busy machine takes long to load PyTorch
TINY = "train_width=0.25&train_batch_size=64&train_epochs="


@pytest.fixture
def serve(shipped, tmp_path):
    """Start the app, as often as asked; ends the trainings that were started."""

    yield partial(serving, tmp_path / "server.log")
    for found in training.runs():
        training.kill(found)


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
        page.wait_for_url("**train_run=**")  # written when the run of the page ends
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
        page.get_by_text("Accuracy by epoch").first.wait_for()
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
