"""Colours, dashes, markers and names of the learning rules, the same in every picture.

In: a rule's name. Out: how it is drawn and what people call it. Needs no library, so that a picture
can be drawn before plotly is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.study import StudyCheckpoint


@dataclass(frozen=True)
class Style:
    """How the curves of one checkpoint are drawn.

    Args:
        colour: Hexadecimal colour of the learning rule.
        dash: Plotly's name of the dash.
        symbol: Plotly's name of the marker.
    """

    colour: str
    dash: str
    symbol: str


# Colours of Okabe and Ito; dash and marker tell rules apart where colour alone does not.
RULE_STYLES: dict[str, Style] = {
    "bp": Style("#0072B2", "solid", "circle"),
    "auglocal": Style("#D55E00", "dash", "square"),
    "dgl": Style("#009E73", "dot", "diamond"),
    "predsim": Style("#CC79A7", "dashdot", "triangle-up"),
    "infopro": Style("#E69F00", "longdash", "cross"),
    "linear": Style("#56B4E9", "longdashdot", "star"),
}
RULE_TITLES: dict[str, str] = {
    "bp": "BP",
    "auglocal": "AugLocal",
    "dgl": "DGL",
    "predsim": "PredSim",
    "infopro": "InfoPro",
    "linear": "Linear",
}
# Options as short titles name them; others by their own names.
OPTION_TITLES = {"auxiliary_depth": "d", "pyramid": "c", "modules": "K"}
OTHER_RULE = Style("#8A8A8A", "longdashdot", "x")
REPEATED_DASHES = ("dot", "dashdot", "longdash", "longdashdot")


def rule_title(rule: str) -> str:
    """The name of a rule as people write it; an unknown rule is shown as it is."""
    return RULE_TITLES.get(rule, rule)


def checkpoint_label(rule: str, name: str) -> str:
    """Rule and checkpoint as axes and legends name them; plain text, not yet escaped."""
    return f"{rule_title(rule)}, {name}" if rule not in ("", name) else name


def network_titles(entries: Sequence[StudyCheckpoint]) -> dict[str, str]:
    """What to call networks that stand beside each other; plain text, not yet escaped.

    Args:
        entries: the checkpoints; references, which have a role, get titles of their own.

    Returns:
        by name: the rule, with what tells it apart where a rule comes more than once ("AugLocal,
        d = 2"; "BP, seed 1"), and the name where that does not.
    """
    compared = [entry for entry in entries if not entry.role]
    titles = {
        entry.name: ", ".join([rule_title(entry.rule), *_what_differs(entry, compared)])
        for entry in compared
    }
    taken = list(titles.values())
    titles = {name: name if taken.count(title) > 1 else title for name, title in titles.items()}
    for entry in entries:
        if entry.role == "ceiling":
            titles[entry.name] = f"{rule_title(entry.rule)}, other seed"
        elif entry.role == "floor":
            titles[entry.name] = "untrained"
    return titles


def _what_differs(entry: StudyCheckpoint, compared: Sequence[StudyCheckpoint]) -> list[str]:
    """Architecture, options and seed of a network that others of its rule have otherwise."""
    alike = [other for other in compared if other.rule == entry.rule]
    words = []
    if any(other.architecture != entry.architecture for other in alike):
        words.append(entry.architecture)
    for name, value in entry.rule_options.items():
        if any(other.rule_options.get(name, value) != value for other in alike):
            words.append(f"{OPTION_TITLES.get(name, name.replace('_', ' '))} = {value}")
    if any(other.seed != entry.seed for other in alike):
        words.append(f"seed {entry.seed}")
    return words


def checkpoint_styles(rules: Mapping[str, str]) -> dict[str, Style]:
    """A style for each checkpoint: the colour of its rule, told apart within a rule by dash.

    Args:
        rules: The rule by checkpoint name, in the order of drawing.

    Returns:
        The style by checkpoint name.
    """
    styles: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for name, rule in rules.items():
        repeat = seen.get(rule, 0)
        seen[rule] = repeat + 1
        styles[name] = _repeated(RULE_STYLES.get(rule, OTHER_RULE), repeat)
    return styles


def _repeated(style: Style, repeat: int) -> Style:
    """The style of the second, third, ... checkpoint of the same rule: other dash, open marker."""
    if repeat == 0:
        return style
    dashes = [dash for dash in REPEATED_DASHES if dash != style.dash]
    return Style(style.colour, dashes[(repeat - 1) % len(dashes)], f"{style.symbol}-open")
