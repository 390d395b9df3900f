"""The app in a real browser: what AppTest cannot see is whether a click reaches the page."""

from __future__ import annotations

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
CHART = ".js-plotly-plot .main-svg"


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
def address(shipped, tmp_path):
    """A running app with one shipped pair."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app"), "--server.headless"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [*command, "true", "--server.port", str(port)], cwd=ROOT, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(f"{url}/_stcore/health")
        yield url
    finally:
        server.terminate()
        server.wait(10)
        log.close()


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


@pytest.fixture
def page(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        yield page
        browser.close()


def click_cell(page, row: int, column: int, size: int = 10) -> None:
    """Click the middle of a cell of the first map on the page."""
    area = page.locator(".js-plotly-plot .nsewdrag").first
    area.wait_for()
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(
        box["x"] + (column + 0.5) / size * box["width"],
        box["y"] + (size - row - 0.5) / size * box["height"],
    )
    page.wait_for_selector(".hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()


def test_a_click_on_a_cell_shows_both_layers_and_nothing_leaves_the_machine(page, address):
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(address)
    page.wait_for_selector(CHART)
    page.get_by_role("button", name="Compare layer by layer").click()
    page.get_by_role("heading", name="Compare", exact=True).wait_for()
    page.wait_for_selector(CHART)

    click_cell(page, row=2, column=4)
    # 1 - 0.1 between networks - 2 layers of 0.05, as `make_cka` has it
    detail = page.locator(".st-key-detail")
    detail.get_by_text("0.800", exact=True).wait_for()
    detail.get_by_text("0.780 to 0.820").wait_for()
    page.wait_for_url("**row=stage1_block2**column=stage2_block1**")

    click_cell(page, row=0, column=0)
    detail.get_by_text("0.900", exact=True).wait_for()
    page.wait_for_url("**row=stem**column=stem**")

    page.reload()
    page.locator(".st-key-detail").get_by_text("0.900", exact=True).wait_for()
    assert hosts - {""} == {urlsplit(address).netloc}


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 101), ("attacker.example", 403)])
def test_only_this_machine_s_names_open_a_session(address, host, status):
    port = urlsplit(address).port
    lines = (
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}:{port}",
        f"Origin: http://{host}:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        assert connection.recv(100).split()[1] == str(status).encode()
