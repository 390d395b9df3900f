"""Probes and geometry in a real browser: clicks in maps, a lasso, the slider of layers."""

from __future__ import annotations

import shutil
import time
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def shipped(real, tmp_path, monkeypatch):
    """A real study in the place of `checkpoints/`."""
    folder = tmp_path / "shipped"
    shutil.copytree(real, folder)
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(folder))
    return folder


def click_in(page, key, across, down):
    """Click a chart at fractions of its width and height."""
    area = page.locator(f".st-key-{key} .nsewdrag").first
    area.wait_for()
    area.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box = area.bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    page.wait_for_selector(f".st-key-{key} .hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()


def test_clicks_in_the_maps_choose_layer_class_and_images(page, address):
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(f"{address}/probes?later=anything")
    page.get_by_text("Confusions at stage2_block2").wait_for()
    # The third of ten layers, the second of ten classes; a little off the cell's middle.
    click_in(page, "recall-chart", 0.27, 0.17)
    page.get_by_text("Confusions at stage1_block2").wait_for()
    page.wait_for_url("**layer=stage1_block2**truth=1**")

    click_in(page, "confusion-chart", 0.85, 0.25)
    page.wait_for_url("**truth=2**taken=8**")
    page.get_by_text("of class 2, read here as 8").wait_for()

    page.reload()
    page.get_by_text("of class 2, read here as 8").wait_for()
    assert hosts - {""} == {urlsplit(address).netloc}


def test_a_lasso_fills_the_gallery_and_the_slider_keeps_it(page, address):
    page.goto(f"{address}/geometry")
    page.get_by_role("button", name="Show the points").click()
    page.get_by_text("PCA of stage3_block3").wait_for()
    area = page.locator(".st-key-scatter-2 .nsewdrag").first
    area.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = area.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for across, down in ((0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.01)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=5)
    page.mouse.up()
    page.locator(".pictures img").nth(59).wait_for()
    picked = page.locator(".st-key-picked input").input_value()
    assert picked.startswith("0-")

    slider = page.locator(".st-key-layer input[type=range]")
    slider.focus()
    slowest = 0.0
    for layer in ("stage3_block2", "stage3_block1", "stage2_block3"):
        started = time.monotonic()
        page.keyboard.press("ArrowLeft")
        page.get_by_text(f"PCA of {layer}").wait_for()
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 5, "0.3 s on a quiet machine; tests run beside others"
    assert page.locator(".st-key-picked input").input_value() == picked
    assert page.locator(".pictures img").count() == 60

    page.reload()
    page.get_by_text("PCA of stage2_block3").wait_for()
    assert page.locator(".st-key-picked input").input_value() == picked
