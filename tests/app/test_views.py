"""What holds for the files of all pages, read from their text."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parents[2] / "app"
VIEWS = sorted((APP / "views").glob("*.py"))
# Choices that mean the same on every page that has them.
SHARED = {"a", "b", "layer", "of"}


def module_names(tree: ast.Module) -> tuple[set[str], list[str]]:
    """Names that a file imports, and names that it binds itself at its top level."""
    imported, bound = set(), []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.append(node.name)
        else:
            bound += [
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            ]
    return imported, bound


@pytest.mark.parametrize("path", [*VIEWS, APP / "streamlit_app.py"], ids=lambda path: path.stem)
def test_no_name_of_a_page_hides_what_it_imports(path):
    imported, bound = module_names(ast.parse(path.read_text(encoding="utf-8")))
    assert imported & set(bound) == set()


def choices(tree: ast.Module) -> set[str]:
    """Names in session state that a file gives a first value by `links.restore` and its kin."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        is_restore = node.func.attr.startswith(("restore", "pick_one"))
        if is_restore and node.args and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value))
    return found


def test_a_choice_of_one_page_has_another_name_than_those_of_others():
    pages = defaultdict(list)
    for path in VIEWS:
        for name in choices(ast.parse(path.read_text(encoding="utf-8"))):
            pages[name].append(path.stem)
    assert len(pages) > 25
    assert {name for name, where in pages.items() if len(where) > 1} <= SHARED


@pytest.mark.parametrize("path", VIEWS, ids=lambda path: path.stem)
def test_no_page_writes_warnings_into_the_log_of_the_server(path, open_app, page_warnings):
    app = open_app(path.stem)
    app.run()
    assert not app.exception
    assert page_warnings == []


def test_pages_with_results_let_one_choose_the_form_of_pictures():
    for path in VIEWS:
        text = path.read_text(encoding="utf-8")
        if "plotly_chart" in text:
            assert "config=figures.CONFIG" not in text, path.stem
            assert "take_away(" in text or "exports(" in text, path.stem
