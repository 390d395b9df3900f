"""The app in a real browser: what AppTest cannot see is whether a click reaches the page."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from analysis.study import load_study

pytestmark = pytest.mark.browser

CHART = ".js-plotly-plot .main-svg"


def click_cell(page, row: int, column: int, size: int = 10) -> None:
    """Click the middle of a cell of the first map on the page."""
    area = page.locator(".js-plotly-plot .nsewdrag").first
    box = area.bounding_box()
    x, y = (column + 0.5) / size * box["width"], (size - row - 0.5) / size * box["height"]
    area.hover(position={"x": x, "y": y})  # tried again where the page draws the map anew
    page.wait_for_selector(".hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()


def test_a_click_on_a_cell_shows_both_layers_and_nothing_leaves_the_machine(page, address):
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(address)
    page.locator("[class*=st-key-card-] img").first.wait_for()
    page.get_by_role("button", name="Compare layer by layer").click()
    page.get_by_role("heading", name="Similarity", exact=True).wait_for()
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


def open_similarity(page, address, query=""):
    page.goto(f"{address}/similarity{query}")
    page.get_by_role("heading", name="Similarity", exact=True).wait_for()


def test_a_run_shows_its_map_while_it_runs_keeps_it_when_cancelled_and_runs_again(page, address):
    # Many small batches: long enough to be looked at.
    open_similarity(page, address, "?samples=1000&seed=3&batch_size=5&kernel=rbf")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("so far after").first.wait_for(timeout=60_000)
    page.wait_for_selector(CHART)

    page.reload()  # the job goes on, and the page finds it
    page.get_by_text("Reading test images").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Cancel").first.click()
    page.get_by_text("Partial: stopped after").wait_for(timeout=60_000)
    page.wait_for_selector(CHART)
    assert page.get_by_role("button", name="Take away").count() == 0

    page.reload()  # what was kept is on disk
    page.get_by_text("Partial: stopped after").wait_for()
    page.get_by_role("button", name="Compare in full").click()
    page.get_by_role("button", name="Take away").wait_for(timeout=300_000)
    page.get_by_text("RBF CKA (0.8 medians), test split, n = 1,000").first.wait_for()


def test_a_second_run_waits_in_the_queue_and_runs_when_its_turn_comes(page, address):
    open_similarity(page, address, "?samples=900&seed=4&batch_size=5&kernel=rbf")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("button", name="Cancel").first.wait_for()
    other = page.context.browser.new_page()
    open_similarity(other, address, "?samples=24&seed=4&batch_size=8")
    other.get_by_role("button", name="Compare", exact=True).click()
    other.get_by_text("Waiting: 1 job first").wait_for(timeout=30_000)
    page.get_by_role("button", name="Cancel").first.click()
    other.get_by_text("Linear CKA, test split, n = 24").first.wait_for(timeout=60_000)


@pytest.mark.parametrize("form", ["PNG", "SVG"])
def test_a_picture_is_saved_in_the_form_that_was_chosen(page, address, form):
    open_similarity(page, address)
    page.wait_for_selector(CHART)
    page.get_by_role("button", name="Take away").click()
    page.get_by_role("radio", name=form, exact=True).click()
    page.keyboard.press("Escape")
    page.wait_for_timeout(1000)
    chart = page.locator(".js-plotly-plot").first
    chart.hover()
    with page.expect_download() as download:
        chart.locator("[data-title^='Download plot']").click()
    content = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename == f"map.{form.lower()}"
    assert content.startswith(b"\x89PNG" if form == "PNG" else b"<svg")


def test_everything_to_take_away_can_be_opened(page, address, tmp_path):
    open_similarity(page, address)
    page.wait_for_selector(CHART)
    page.get_by_role("button", name="Take away").click()
    files = {}
    for label in ("Map (CSV)", "All tables (JSON)", "Study (JSON)", "Report (HTML)"):
        with page.expect_download(timeout=60_000) as download:
            page.get_by_role("button", name=label).click()
        files[label] = Path(download.value.path()).read_text(encoding="utf-8")
    assert files["Map (CSV)"].count("\n") == 101
    assert len(json.loads(files["All tables (JSON)"])["Map"]) == 100
    (tmp_path / "taken.study.json").write_text(files["Study (JSON)"], encoding="utf-8")
    assert load_study(tmp_path / "taken.study.json").models == ("bp-net", "auglocal-net")
    assert files["Report (HTML)"].lstrip().lower().startswith("<!doctype html>")


def test_a_click_on_an_image_names_it_in_the_link(page, address):
    open_similarity(page, address, "?view=images&data=digits")
    page.wait_for_selector(".js-plotly-plot .scatterlayer .points path", timeout=60_000)
    charts = page.locator(".js-plotly-plot")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length >= 5")
    points = charts.nth(1).locator(".scatterlayer .points path")
    points.nth(40).scroll_into_view_if_needed()
    box = points.nth(40).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext")
    name = page.locator(".hoverlayer .hovertext").text_content()
    page.mouse.down()
    page.mouse.up()
    number = name.rsplit(" ", 1)[1]
    page.wait_for_url(f"**image={number}**")
    page.reload()
    page.wait_for_selector(f"input[value='{number}']", timeout=60_000)


def test_back_undoes_a_choice_and_then_leaves_the_page(page, address):
    page.goto(address)
    page.get_by_role("link", name="Similarity").click()
    page.get_by_role("heading", name="Similarity", exact=True).wait_for()
    page.wait_for_selector(CHART)
    click_cell(page, row=2, column=4)
    page.wait_for_url("**row=stage1_block2**column=stage2_block1**")
    assert page.evaluate("history.length") == 4  # an empty one, Overview, Similarity, the cell
    page.go_back()
    page.wait_for_url("**/similarity")
    page.locator(".st-key-detail").get_by_text("0.900", exact=True).wait_for()
    page.go_back()
    page.get_by_role("heading", name="Layer by layer").wait_for()


def test_an_old_link_leads_to_the_same_view(page, address):
    page.goto(f"{address}/compare?row=stem&column=stage2_block1")
    page.get_by_role("heading", name="Similarity", exact=True).wait_for()
    page.wait_for_url("**/similarity?**row=stem**column=stage2_block1**")
    page.locator(".st-key-detail").get_by_text("0.700", exact=True).wait_for()


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
