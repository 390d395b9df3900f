"""Colours, dashes, markers and names of the learning rules, the same in every picture.

In: a rule's name. Out: how it is drawn and what people call it. Needs no library, so that a picture
can be drawn before plotly is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
OTHER_RULE = Style("#8A8A8A", "longdashdot", "x")
REPEATED_DASHES = ("dot", "dashdot", "longdash", "longdashdot")


def rule_title(rule: str) -> str:
    """The name of a rule as people write it; an unknown rule is shown as it is."""
    return RULE_TITLES.get(rule, rule)


def checkpoint_label(rule: str, name: str) -> str:
    """Rule and checkpoint as axes and legends name them; plain text, not yet escaped."""
    return f"{rule_title(rule)}, {name}" if rule not in ("", name) else name


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
