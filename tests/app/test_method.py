"""The page on method: complete, and in step with the code."""

from __future__ import annotations

import re

from analysis.geometry_measures import GEOMETRY_MEASURES
from analysis.similarity import MEASURES
from app import texts_method
from auglocal.rules.registry import RULES


def test_every_section_of_the_contents_is_there(open_app):
    app = open_app("method")
    assert not app.exception
    (contents,) = [text.value for text in app.markdown if "](#" in text.value]
    linked = re.findall(r"\[(.+?)\]\(#(.+?)\)", contents)
    assert [(header.value, header.anchor) for header in app.header] == linked


def test_every_measure_and_rule_of_the_engine_is_explained():
    assert set(texts_method.SIMILARITY) == set(MEASURES)
    assert set(texts_method.GEOMETRY_FORMULAS) == set(GEOMETRY_MEASURES)
    assert [entry.title.lower() for entry in texts_method.RULES] == list(RULES)
    for name, make in MEASURES.items():
        assert make().title.split()[0] in texts_method.SIMILARITY[name].title + "Procrustes"


def test_every_measure_has_a_formula_and_a_source():
    entries = [texts_method.CKA, texts_method.PROBES, *texts_method.SIMILARITY.values()]
    for entry in [*entries, *texts_method.geometry_entries()]:
        assert entry.formulas, entry.title
        assert entry.source, entry.title
        for formula in entry.formulas:
            assert formula.count("{") == formula.count("}"), entry.title


def test_versions_and_citations_are_shown(open_app):
    import torch

    app = open_app("method")
    table = app.table[0].value
    versions = dict(zip(table["Package"], table["Version"]))
    assert torch.__version__.startswith(versions["torch"])
    codes = [code.value for code in app.code]
    assert any("Ma, Chenxiang" in code and "2024" in code for code in codes)
    assert any(versions["auglocal (this project)"] in code for code in codes)


def test_a_package_that_is_not_there_is_said_so():
    assert texts_method.version("no-such-package") == "not installed"
