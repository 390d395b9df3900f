"""What the address remembers, and how often it is written."""

from __future__ import annotations

import pytest
from streamlit.runtime.state import QueryParamsProxy

from app import links
from app.sources.studies import Request


@pytest.fixture
def address(monkeypatch):
    """An address that counts how often it is written."""

    class Address(dict):
        writes = 0

        def to_dict(self):
            return dict(self)

        def from_dict(self, values):
            self.writes += 1
            self.clear()
            self.update(values)

        def __setitem__(self, name, value):
            raise AssertionError("a write for every name is a step back for every name")

    assert hasattr(QueryParamsProxy, "to_dict")
    assert hasattr(QueryParamsProxy, "from_dict")
    address = Address(kept="1")
    monkeypatch.setattr(links.st, "query_params", address)
    return address


def test_a_question_is_one_write_and_the_same_question_none(address):
    request = Request("cka", ("a" * 64, "b" * 64), "digits", 1000, 0, 125)
    for _ in range(2):
        links.remember_request(request, a="a" * 64, b="b" * 64)
    assert address.writes == 1
    assert address == {
        "kept": "1",
        "a": "a" * 12,
        "b": "b" * 12,
        "data": "digits",
        "samples": "1000",
        "seed": "0",
        "batch_size": "125",
    }


def test_an_empty_choice_leaves_the_address(address):
    links.remember(models="abc")
    links.remember(models="")
    links.remember(models="")
    assert address.writes == 2
    assert address == {"kept": "1"}


def test_zero_is_a_value(address):
    links.remember(seed=0)
    assert address["seed"] == "0"


def test_clearing_the_probes_clears_their_address(open_app):
    app = open_app("probes", samples="24")
    assert "models" in app.query_params
    app.multiselect(key="models").set_value([]).run()
    assert "models" not in app.query_params


@pytest.mark.parametrize(("page", "name"), [("probes", "models"), ("checkpoints", "checkpoint")])
def test_an_empty_link_misses_nothing(open_app, page, name):
    app = open_app(page, **{name: ""})
    assert not app.exception
    assert not app.warning


def test_a_link_to_a_checkpoint_elsewhere_is_told(open_app):
    app = open_app("checkpoints", checkpoint="0123456789ab")
    assert app.warning[0].value == links.MISSING


@pytest.mark.parametrize(
    "page", ["checkpoints", "similarity", "probes", "dynamics", "auxiliary", "train"]
)
def test_a_page_at_its_first_values_leaves_the_address_alone(open_app, page):
    app = open_app(page)
    assert not app.exception
    assert dict(app.query_params) == {}


def test_a_run_writes_the_address_once(open_app, monkeypatch):
    writes = []
    app = open_app("similarity")
    write = QueryParamsProxy.from_dict
    monkeypatch.setattr(
        QueryParamsProxy, "from_dict", lambda self, new: (writes.append(new), write(self, new))
    )
    app.selectbox(key="row").set_value("stem").run()
    assert len(writes) == 1
    assert {"a", "b", "data", "row", "column", "map"} <= set(writes[0])
    app.run()
    assert len(writes) == 1


def test_a_fragment_s_first_write_says_all(address, monkeypatch):
    monkeypatch.setattr(links.st, "session_state", {})
    address.clear()
    links.follow("similarity")
    links.restore("measure", "cka", str)
    with links.one_write():
        links.remember(measure="cka")
    assert (address.writes, dict(address)) == (0, {})
    links.st.session_state["row"] = "stem"
    with links.one_write():  # as a fragment runs by itself
        links.remember(row="stem")
    assert (address.writes, dict(address)) == (1, {"measure": "cka", "row": "stem"})


def test_back_undoes_a_choice(open_app):
    app = open_app("similarity")
    first = app.selectbox(key="row").value
    app.selectbox(key="row").set_value("stem").run()
    before = dict(app.query_params)
    app.selectbox(key="row").set_value("stage1_block2").run()
    assert app.selectbox(key="row").value == "stage1_block2"
    go_back(app, before)
    assert app.selectbox(key="row").value == "stem"
    go_back(app, {})
    assert app.selectbox(key="row").value == first
    assert dict(app.query_params) == {}


def go_back(app, address):
    """What Streamlit does on the browser's Back: another address, and a run."""
    app.query_params.clear()
    app.query_params.update(address)
    app.run()


def test_a_choice_made_before_the_browser_has_the_new_address_holds(open_app):
    app = open_app("similarity")
    app.selectbox(key="row").set_value("stem").run()
    app.query_params.clear()
    app.selectbox(key="column").set_value("stage1_block2").run()
    assert app.selectbox(key="row").value == "stem"
    assert app.selectbox(key="column").value == "stage1_block2"


def test_another_page_keeps_the_images(open_app, figures_of):
    app = open_app("similarity")
    app.query_params.clear()
    app.switch_page("views/probes.py").run()
    assert "split" not in app.query_params
    assert figures_of(app)
    assert not [button for button in app.button if button.label == "Run probes"]


def test_a_split_that_there_is_not_is_ignored_and_told(open_app, figures_of):
    app = open_app("probes", split="None", samples="1000")
    assert figures_of(app)
    assert "changed: split" in app.toast[0].value
    app.run()
    assert not app.toast


def test_a_number_out_of_bounds_is_told(open_app):
    app = open_app("similarity", samples="5")
    assert app.number_input(key="samples").value == 8
    assert app.toast[0].value.endswith("changed: samples.")


def test_a_link_that_holds_is_not_corrected(open_app):
    app = open_app("similarity")
    app.selectbox(key="row").set_value("stem").run()
    address = dict(app.query_params)
    assert not open_app("similarity", **address).toast
