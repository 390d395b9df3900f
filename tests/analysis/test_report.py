"""Reports: everything a study holds is shown, nothing in it becomes code, nothing is loaded."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.records import parse, plain
from analysis.report import report_page, write_report
from analysis.report_html import escaped, table
from analysis.report_texts import SIMILARITY_DEFINITIONS
from analysis.study import ROLES, Study, load_study, save_study
from tests.analysis.full_study import CLASSES, LAYERS, full_study

ROOT = Path(__file__).parents[2]
# A study as the first version of the format had it.
FIRST_VERSION = ROOT / "tests" / "analysis" / "data" / "first-version.study.json"
EVIL = """</script><script>alert(1)</script><img src=x onerror="alert('2')">&lt;<!--"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Reader(HTMLParser):
    """What a browser would find: elements, their attributes, texts by element, scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        else:
            self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def figures(self):
        """The figures that the page draws, as their JSON says."""
        return [json.loads(text) for attrs, text in self.scripts if "type" in attrs]

    def text(self, *tags):
        return " ".join(text for tag, text in self.texts if not tags or tag in tags)


@pytest.fixture(scope="module")
def markup() -> str:
    return report_page(full_study())


@pytest.fixture(scope="module")
def page(markup: str) -> Reader:
    return Reader(markup)


@pytest.fixture(scope="module")
def evil_page() -> Reader:
    """The report of a study in whose every text somebody wrote markup."""
    kept = {*GEOMETRY_MEASURES, *SIMILARITY_DEFINITIONS, *ROLES}

    def spoil(value):
        if isinstance(value, str):
            return value if value in kept else value + EVIL
        if isinstance(value, dict):
            return {key if key in FIELDS else spoil(key): spoil(v) for key, v in value.items()}
        return [spoil(item) for item in value] if isinstance(value, list) else value

    record = plain(storable(full_study()))
    return Reader(report_page(parse(Study, spoil(record))))


def field_names(value):
    """Names of fields anywhere in a record, which a file cannot choose."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(field_names, value.values()), set())
    return set().union(*map(field_names, value), set()) if isinstance(value, list) else set()


def storable(study):
    """Without the measure whose range has no lower end."""
    finite = tuple(p for p in study.similarity if math.isfinite(p.result.range[0]))
    return replace(study, similarity=finite)


def only_cka(study):
    """Fewer figures, where they do not matter."""
    return replace(study, probes=(), similarity=(), paired=(), geometry=())


FIELDS = {name for name in field_names(plain(full_study())) if re.fullmatch(r"[a-z_0-9]+", name)}


# ---------------------------------------------------------------------------------- what is there


def test_all_answers_are_drawn(page):
    titles = page.text("p")
    for part in (
        "Linear CKA, test split, n = 2,000",
        "Difference of CKA",
        "Linear CKA at the same depth",
        "Linear CKA of the best match",
        "Layers on a plane by CKA",
        "Representational similarity (RSA), test split, n = 1,000",
        "Procrustes distance",
        "Linear predictivity",
        "Linear probes, test split, n = 2,000",
        "Cross-entropy of probes",
        "Calibration error of probes",
        "Paired difference of probes",
        "Recall by class and layer, AugLocal, auglocal-0",
        "Confusions at stage3_block3, BP, bp-0",
        *(kind.title for kind in GEOMETRY_MEASURES.values()),
    ):
        assert part in titles
    # 3 maps, 2 differences, a plane, 2 curves; 3 measures with 2 each; probes 1 + 2 + 1 + 4 x 2
    assert len(page.figures) == 8 + 6 + 12 + len(GEOMETRY_MEASURES)


def test_curves_have_their_references(page):
    names = [trace.get("name") for figure in page.figures for trace in figure["data"]]
    assert names.count("ceiling: bp-0 and bp-1") == names.count("floor: bp-0 and untrained") == 2


def test_tables_have_the_numbers(page):
    study = full_study()
    cells = page.text("td")
    assert "84.3% to 85.7%" in cells  # Wilson, of 8,500 in 10,000
    pair = study.cka.pair("bp-0", "auglocal-0")
    assert f"{pair.values[4, 4]:.3f}" in cells
    assert f"{study.probes[1].accuracy[3]:.1%}" in cells
    assert f"{study.geometry[0].values['silhouette'][2]:.4g}" in cells
    assert f"{study.paired[0].result.difference[9]:+.1%}" in cells
    assert page.text("th").split().count("stage2_block2") >= 10
    assert "1" * 64 in page.text("code").split()


def test_every_measure_is_defined_with_its_source(page):
    terms, meanings = page.text("dt"), page.text("span")
    for term in (
        "Linear CKA",
        "Linear probe",
        "Nearest neighbours",
        "Cross-entropy",
        "Expected calibration error",
        "Auxiliary networks",
        "Paired difference",
        *(SIMILARITY_DEFINITIONS[pair.result.measure].term for pair in full_study().similarity),
        *(kind.title for kind in GEOMETRY_MEASURES.values()),
    ):
        assert term in terms
    assert "Kornblith, Norouzi, Lee and Hinton 2019" in meanings
    assert meanings.count("Source: ") == len([tag for tag, _ in page.elements if tag == "dt"])


def test_caveats_undefined_values_and_notes_are_told(page):
    items = page.text("li")
    for part in (
        "not of training runs",
        "untrained/stage2_block2: its features are the same for every image",
        "stage1_block2|stage1_block1: its ranks are all equal",
        "1000 of 2000 images were drawn at random with seed 0",
        "stage1_block1/nc3, stage1_block2/nc3",
        "and 3 more: only the classifier's own input has it",
        "too few neighbours differ for an interval",
    ):
        assert part in items


def test_provenance_and_the_command_are_there():
    command = "python -m analysis study 'a b.safetensors' --title '<x> & y'"
    read = Reader(report_page(only_cka(full_study(command=command))))
    assert command in read.text("code")
    cells = read.text("td")
    for part in ("2026-02-03T04:05:06+00:00", "cpu", "12.5", "2.4", "3.11"):
        assert part in cells


def test_a_study_of_the_first_version_has_a_report():
    read = Reader(report_page(load_study(FIRST_VERSION)))
    headings = read.text("h2")
    assert "Layers compared by CKA" in headings
    assert "Probes" in headings
    assert "Geometry" not in headings
    assert "do not tell whether the networks are more or less alike" in read.text("p")


def test_a_study_of_one_network_and_one_measure_has_a_report():
    study = load_study(FIRST_VERSION)
    alone = replace(study.question, checkpoints=study.question.checkpoints[:1])
    read = Reader(report_page(replace(study, question=alone, cka=None, probes=study.probes[:1])))
    assert len(read.figures) == 1


def test_a_study_without_answers_needs_no_plotting_library():
    study = replace(load_study(FIRST_VERSION), cka=None, probes=())
    read = Reader(report_page(study))
    assert not read.scripts
    assert len(report_page(study)) < 50_000


def test_gaps_are_listed_in_the_order_of_layers():
    undefined = {f"bp-0/block{index}": "why" for index in (10, 2, 1)}
    study = only_cka(full_study())
    read = Reader(report_page(replace(study, cka=replace(study.cka, undefined=undefined))))
    assert "CKA, bp-0/block1, bp-0/block2, bp-0/block10: why." in read.text("li")


def test_a_network_too_deep_for_a_table_is_drawn_all_the_same():
    layers = tuple(f"layer{index}_block" for index in range(40))
    read = Reader(report_page(only_cka(full_study(layers=layers))))
    assert "is too wide for a table" in read.text("p")
    assert len(read.figures[0]["data"][1]["hovertext"]) == 1600


# ------------------------------------------------------------------------------------ what is not


def test_no_text_of_a_study_becomes_markup(page, evil_page):
    allowed = {tag for tag, _ in page.elements}
    assert {tag for tag, _ in evil_page.elements} <= allowed
    assert "img" not in allowed
    assert not evil_page.open
    for _, attributes in evil_page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    code = [text for attributes, text in evil_page.scripts if "type" not in attributes]
    assert len(code) == 2
    assert not [text for text in code if "alert(1)" in text]
    assert EVIL in evil_page.text("h1")  # shown as it was written


def test_no_text_of_a_study_ends_the_script_that_carries_it(evil_page):
    data = [text for attributes, text in evil_page.scripts if "type" in attributes]
    assert len(data) > 20
    assert not [text for text in data if re.search("[<>&\u2028\u2029]", text)]


def test_no_text_of_a_study_becomes_a_tag_in_a_figure(evil_page):
    """Plotly reads some tags in texts: what came from the study must be escaped there too."""

    def texts(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)

    found = [text for figure in evil_page.figures for text in texts(figure)]
    assert [text for text in found if "&lt;img" in text]
    ours = re.compile("</?b>|<br>")
    assert not [text for text in found if "<" in ours.sub("", text)]


def test_names_that_nobody_knows_are_shown_as_they_are():
    study = storable(full_study())
    record = plain(study)
    for geometry in record["geometry"]:
        geometry["measures"].append("unheard-of")
    for pair in record["similarity"]:
        pair["result"]["measure"] = "unheard-of"
    record["cka"] |= {"kernel": "other", "estimator": "another"}
    read = Reader(report_page(parse(Study, record)))
    assert "other CKA, another" in read.text("p")


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert "srcset" not in attributes
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert attributes.get("href", "#").startswith("#")
    styles = page.text("style")
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_page_forbids_itself_the_network_and_the_cloud(page):
    metas = [attributes for tag, attributes in page.elements if tag == "meta"]
    (policy,) = [m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'unsafe-inline'"
    assert rules["img-src"] == "data: blob:"
    drawing = page.scripts[-1][1]
    config = json.loads(re.search(r"const CONFIG = (.*);", drawing).group(1))
    assert config["showSendToCloud"] is False
    assert config["plotlyServerURL"] == ""


def test_the_library_is_there_once(markup):
    assert markup.count(get_plotlyjs()[:2000]) == 1


def test_links_lead_to_parts_of_the_page(page):
    identifiers = {attributes.get("id") for _, attributes in page.elements}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == 8
    assert {link.removeprefix("#") for link in links} <= identifiers
    charts = [
        attributes["data-source"] for _, attributes in page.elements if "data-source" in attributes
    ]
    assert len(charts) == len(set(charts)) == len(page.figures)
    assert set(charts) <= identifiers


def test_figures_are_described_for_those_who_do_not_see_them(page):
    charts = [a for _, a in page.elements if a.get("class") == "chart"]
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_only_markup_of_ours_is_left_as_it_is():
    assert escaped(escaped("<b>")) == "&lt;b&gt;"
    assert "&lt;i&gt;" in table("<i>", ["a"], [["b"]])
    assert escaped('"') == "&quot;"


# --------------------------------------------------------------------------------- whole or not


def test_a_report_is_written_as_one_file(tmp_path):
    study = storable(full_study())
    save_study(study, tmp_path / "a.study.json")
    write_report(load_study(tmp_path / "a.study.json"), tmp_path / "a.html")
    # What was made and what was read back look the same.
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == report_page(study)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.study.json"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_report_and_no_litter(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.html"
    path.write_text("before")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(replace(load_study(FIRST_VERSION), cka=None, probes=()), path)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_reports_are_written_without_torch_scikit_learn_scipy_or_streamlit():
    program = (
        "import sys; from analysis.report import report_page;"
        "from tests.analysis.full_study import full_study; report_page(full_study());"
        "print({'torch', 'streamlit', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------------------- a browser


@pytest.mark.browser
def test_a_browser_draws_all_figures_asks_for_nothing_and_runs_no_name(tmp_path):
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium: .ci/run must install one")
        pytest.skip(f"there is none of {', '.join(BROWSERS)} on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    study = full_study(title=f"t {EVIL}", layers=(f"stem{EVIL}", *LAYERS[1:]))
    write_report(
        replace(study, question=replace(study.question, classes=(EVIL, *CLASSES[1:]))),
        tmp_path / "a.html",
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run".split()
    asked, said = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=[*flags, "--disable-background-networking"]
        )
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto((tmp_path / "a.html").as_uri())
        page.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws all, seen or not
        drawn = page.locator(".chart .main-svg:first-child").count()
        whole = page.locator(".chart").count()
        images = page.locator("img").count()
        browser.close()
    assert drawn == whole > 40
    assert images == 0
    assert said == []
    assert len(asked) == 1
