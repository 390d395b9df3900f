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
    app = open_app("probes")
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
