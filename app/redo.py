"""A study in, how to compute it again out: the command, and the same in Python.

Both come from the command that the study recorded, with the checkpoints and images as they lie on
this machine.
"""

from __future__ import annotations

import itertools
import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.request import StudyRequest
from analysis.study import Study

ALWAYS = ("dataset", "split", "samples", "seed", "batch_size", "measures")
PREFIX = ("python", "-m", "analysis")
OUT = "again.study.json"


def command_lines(study: Study, dataset: str, paths: Mapping[str, Path]) -> str:
    """Write the command that redoes a study here.

    Args:
        study: what was computed.
        dataset: its data as they are called here; an image folder may lie elsewhere.
        paths: files by checksum; a checkpoint that is not there keeps the name it was given.

    Returns:
        one command; the recorded one, unchanged, if it cannot be read.
    """
    words = shlex.split(study.provenance.command)
    options = _options(study)
    if options is None:
        return study.provenance.command
    renamed = [
        (str(given), _path(study, index, given, paths))
        for index, given in enumerate(_files(options))
    ]
    for index, word in enumerate(words):
        if renamed and word == renamed[0][0]:
            words[index] = renamed.pop(0)[1]
        elif words[index - 1] == "--dataset":
            words[index] = dataset or word
    return shlex.join(words)


def python_lines(study: Study, dataset: str, paths: Mapping[str, Path]) -> str | None:
    """Write the Python that redoes a study here.

    Args:
        study: what was computed.
        dataset: its data as they are called here.
        paths: files by checksum, as in `command_lines`.

    Returns:
        lines that write `again.study.json`; None if the recorded command cannot be read.
    """
    options = _options(study)
    if options is None:
        return None
    imports = ["open_model"] + ["untrained"] * (_floor(options) is not None)
    found = [_path(study, index, given, paths) for index, given in enumerate(_files(options))]
    models = found[: len(options.checkpoints)]
    keywords = [
        f"    {name}={_literal(value)},"
        for name, value in _keywords(study, options, dataset).items()
    ]
    extra = ", auxiliaries=True" if "probe" in _measures(study, options) else ""
    references = []
    names = options.names or []
    if getattr(options, "ceiling", None) is not None:
        name = names[-1] if len(names) > len(models) else None
        references.append(_opened(found[-1], name, "").replace("    ", "    ceiling=", 1))
    if _floor(options) is not None:
        references.append(f"    floor=untrained(models[0], {_floor(options)}),")
    return "\n".join(
        [
            *(["from dataclasses import replace", ""] if names else []),
            f"from analysis.models import {', '.join(imports)}",
            "from analysis.run import run_study",
            "from analysis.study import save_study",
            "",
            "models = [",
            *(
                _opened(path, name, extra)
                for path, name in itertools.zip_longest(models, names[: len(models)])
            ),
            "]",
            "study = run_study(",
            "    models,",
            *references,
            *keywords,
            ")",
            f'save_study(study, "{OUT}")',
        ]
    )


def _opened(path: str, name: str | None, extra: str) -> str:
    """A line that opens a checkpoint, with the name that it was given."""
    opened = f'open_model({_literal(path)}, "auto"{extra})'
    return f"    {opened}," if name is None else f"    replace({opened}, name={_literal(name)}),"


def _literal(value: Any) -> str:
    """A value as Python people write it: texts in double quotes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _options(study: Study) -> Namespace | None:
    """The recorded command, taken apart; None where it is of another version or by hand."""
    from analysis.__main__ import make_parser

    words = shlex.split(study.provenance.command)
    if tuple(words[:3]) != PREFIX:
        return None
    try:
        options = make_parser().parse_args(words[3:])
    except SystemExit:
        return None
    return options if hasattr(options, "checkpoints") else None


def _files(options: Namespace) -> list[Path]:
    """The checkpoints' files as the command names them, in its order; the ceiling is last."""
    ceiling = getattr(options, "ceiling", None)
    return [*options.checkpoints, *([] if ceiling is None else [ceiling])]


def _path(study: Study, index: int, given: Path, paths: Mapping[str, Path]) -> str:
    """Where a checkpoint lies here; as it was given where it is not here."""
    entries = [entry for entry in study.question.checkpoints if entry.role != "floor"]
    known = paths.get(entries[index].sha256) if index < len(entries) else None
    return str(given if known is None else known)


def _floor(options: Namespace) -> int | None:
    """The seed of the untrained network."""
    seed: int | None = getattr(options, "floor", None)
    return seed


def _measures(study: Study, options: Namespace) -> tuple[str, ...]:
    """The measures; commands of one measure do not list them."""
    measures: tuple[str, ...] | None = getattr(options, "measures", None)
    return measures or study.question.measures or ("cka",)


def _keywords(study: Study, options: Namespace, dataset: str) -> dict[str, Any]:
    """What `run_study` takes, without what is at its default."""
    from analysis.commands.options import request_options

    given = {
        "dataset": dataset or study.question.dataset,
        "measures": _measures(study, options),
        **request_options(options),
    }
    given["folder"] = str(given["folder"])
    defaults = StudyRequest(dataset="")
    return {
        name: value
        for name, value in given.items()
        if name in ALWAYS or value != getattr(defaults, name)
    }
