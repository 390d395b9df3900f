"""Lens and dynamics in a real browser: clicks in strips, galleries and maps, uploads, keys."""

from __future__ import annotations

import io
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from app.sources import dynamics
from tests.app.test_dynamics import study_of, write_run

pytestmark = pytest.mark.browser

QUERY = "data=digits&samples=40&lens_train=60&seed=0"


def click_in(page, key, across, down):
    """Click a chart at fractions of its width and height."""
    area = page.locator(f".st-key-{key} .nsewdrag").first
    area.wait_for(timeout=60_000)
    area.scroll_into_view_if_needed()
    page.wait_for_timeout(400)
    box = area.bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    page.wait_for_selector(f".st-key-{key} .hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()


def uploader(page):
    """The door for images, once that of before has left the page and nothing is redrawn."""
    from playwright.sync_api import expect

    found = page.locator("[class*=st-key-image-upload-] input[type=file]")
    expect(found).to_have_count(1, timeout=90_000)
    page.wait_for_selector("[data-test-script-state=notRunning]")
    return found


def test_probes_are_fitted_clicks_choose_and_an_upload_is_answered(page, address):
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(f"{address}/lens?{QUERY}")
    page.get_by_role("button", name="Fit the probes of bp-net").click()
    page.locator(".st-key-strip-probe-a .nsewdrag").first.wait_for(timeout=90_000)

    # Off the middle of the second of eleven columns and the third class from above.
    click_in(page, "strip-probe-a", 1.7 / 11, 2.3 / 10)
    page.wait_for_url("**layer=stage1_block1**class=2**")
    page.get_by_text("Probability of 2 by depth").wait_for()

    # The second image of the first row of six.
    place = page.locator(".st-key-image_place input")
    assert place.input_value() == "1"
    click_in(page, "image-gallery", 1.4 / 6, 0.3 / 2)
    page.wait_for_function("place => place.value === '2'", arg=place.element_handle())

    page.get_by_role("radio", name="Your own").click()
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3))
    Image.fromarray(noise.astype(np.uint8)).save(stream, format="JPEG")
    file = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": stream.getvalue()}
    uploader(page).set_input_files(files=[file])
    page.get_by_text("mine.jpg, as the network sees it: 32 x 32 pixels").wait_for()
    bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n no"}
    uploader(page).set_input_files(files=[bad])
    page.get_by_text("is no image that can be read").wait_for()

    page.reload()
    page.get_by_text("mine.jpg, as the network sees it: 32 x 32 pixels").wait_for()
    assert hosts - {""} == {urlsplit(address).netloc}


@pytest.fixture
def measured(library, make_study, save):
    """Two runs and the study of their snapshots."""
    write_run(library / "runs", "mine-bp")
    write_run(library / "runs", "mine-local", "auglocal", epochs=(0, 2, 4))
    runs = [run for run in dynamics.runs() if run.name.startswith("mine-")]
    sha256s = tuple(sha256 for run in runs for sha256 in run.sha256s)
    question = dynamics.Question(sha256s, "digits", 1000, 0, 697)
    question.path.parent.mkdir(parents=True)
    save(study_of(make_study, runs), question.path)
    return {run.name: run.key for run in runs}


def test_a_click_in_a_map_and_keys_choose_epoch_and_layer(measured, page, address):
    runs = f"run_a={measured['mine-bp']}&run_b={measured['mine-local']}"
    page.goto(
        f"{address}/dynamics?{runs}&dynamics_data=digits&dynamics_samples=1000&dynamics_train=697"
    )
    # The last of three layers, the lowest of three epochs.
    click_in(page, "development-a", 0.9, 0.9)
    page.wait_for_url("**epoch=0**trained_layer=stage2_block1**")
    page.get_by_text("CKA by depth, epoch 0").wait_for()

    slider = page.locator(".st-key-epoch [role=slider], .st-key-epoch input[type=range]").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("CKA by depth, epoch 1").wait_for()
    page.wait_for_url("**epoch=1**")
    page.reload()
    page.get_by_text("CKA by depth, epoch 1").wait_for()
