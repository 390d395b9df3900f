"""Epochs of a run in, plotly figures out: loss and accuracy over time, accuracy by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.figure_style import (
    FAINT,
    LOW_HEIGHT,
    NEUTRAL,
    OTHER_RULE,
    RULE_STYLES,
    lay_out,
    stage_ticks,
    text,
)

Lines = Sequence[Mapping[str, Any]]
OUTPUT = "head"  # what metrics.jsonl calls the last block
MOST_EARLIER = 12  # curves of earlier epochs behind the last one


def losses_by_epoch(lines: Lines, rule: str, epochs: int) -> go.Figure:
    """The loss of the last block, and faintly that of every hidden block."""
    figure = go.Figure()
    blocks = list(lines[-1]["losses"]) if lines else []
    for index, block in enumerate(blocks):
        is_output = block == OUTPUT
        style = RULE_STYLES.get(rule, OTHER_RULE)
        figure.add_trace(
            go.Scatter(
                x=[line["epoch"] for line in lines],
                y=[line["losses"].get(block) for line in lines],
                mode="lines+markers" if is_output or len(lines) == 1 else "lines",
                name="classifier" if is_output else "local layers",
                legendgroup=str(is_output),
                showlegend=is_output or index == 0,
                line={
                    "color": style.colour if is_output else FAINT,
                    "width": 2 if is_output else 1,
                },
                marker={"size": 6 if is_output else 3},
                hovertemplate=f"<b>{text(block)}</b><br>epoch %{{x}}: loss %{{y:.4f}}"
                "<extra></extra>",
            )
        )
    _finish(figure, "Training loss by epoch", epochs)
    return figure.update_yaxes(title="loss", rangemode="tozero")


def accuracy_by_epoch(lines: Lines, rule: str, epochs: int) -> go.Figure:
    """Accuracy of the network on the images it learns from, those held out, and the test split."""
    figure = go.Figure()
    colour = RULE_STYLES.get(rule, OTHER_RULE).colour
    curves = (
        ("training", [line["accuracies"].get(OUTPUT) for line in lines], NEUTRAL, "dot"),
        ("validation", [line.get("validation_accuracy") for line in lines], colour, "dash"),
        ("test", [line.get("test_accuracy") for line in lines], colour, "solid"),
    )
    for name, values, line_colour, dash in curves:
        if any(value is not None for value in values):
            figure.add_trace(
                go.Scatter(
                    x=[line["epoch"] for line in lines],
                    y=values,
                    mode="lines+markers",
                    name=name,
                    line={"color": line_colour, "dash": dash, "width": 2},
                    marker={"size": 6},
                    hovertemplate=f"epoch %{{x}}: %{{y:.1%}} ({name})<extra></extra>",
                )
            )
    _finish(figure, "Accuracy by epoch", epochs)
    return figure.update_yaxes(title="accuracy", range=[0, 1.02], tickformat=".0%")


def accuracy_by_layer(lines: Lines, rule: str) -> go.Figure:
    """What each block's own classifier gets right while training, and at the end on the test split.

    Earlier epochs stand faintly behind the last one.
    """
    figure, tested = go.Figure(), None
    style = RULE_STYLES.get(rule, OTHER_RULE)
    blocks = list(lines[-1]["accuracies"]) if lines else []
    step = max(1, len(lines) // MOST_EARLIER)
    earlier = [] if len(lines) < 2 else list(lines[:-1])[::-step][::-1]
    for index, line in enumerate(earlier):
        curve = _layer_curve(blocks, line["accuracies"], f"epoch {line['epoch']}, training")
        curve.update(name="earlier epochs", legendgroup="earlier", showlegend=index == 0)
        figure.add_trace(curve.update(mode="lines", line={"color": FAINT, "width": 1}))
    if lines:
        last = lines[-1]
        tested = last.get("test_local_accuracies")
        title = f"epoch {last['epoch']}, training"
        line_style = {"color": style.colour, "dash": "dot" if tested else "solid", "width": 2}
        curve = _layer_curve(blocks, last["accuracies"], title)
        figure.add_trace(curve.update(line=line_style, marker={"size": 6, "symbol": "circle-open"}))
        if tested:
            curve = _layer_curve(blocks, tested, f"epoch {last['epoch']}, test")
            line_style = {"color": style.colour, "width": 2}
            figure.add_trace(curve.update(line=line_style, marker={"size": 7}))
    images = "training (open) and test (filled) images" if tested else "training images"
    lay_out(figure, f"Accuracy by local layer, {images}")
    labels = [block if block != OUTPUT else "classifier" for block in blocks]
    values, names = stage_ticks(labels) if blocks else ([], [])
    figure.update_xaxes(
        tickvals=values, ticktext=names, showgrid=False, zeroline=False, fixedrange=True
    )
    figure.update_yaxes(title="accuracy", range=[0, 1.02], tickformat=".0%", fixedrange=True)
    return figure.update_layout(height=LOW_HEIGHT)


def _layer_curve(blocks: Sequence[str], values: Mapping[str, float], name: str) -> go.Scatter:
    """Accuracy by block."""
    return go.Scatter(
        x=list(range(len(blocks))),
        y=[values.get(block) for block in blocks],
        mode="lines+markers",
        name=name,
        customdata=[text(block) for block in blocks],
        hovertemplate=f"<b>%{{customdata}}</b><br>%{{y:.1%}} ({text(name)})<extra></extra>",
    )


def _finish(figure: go.Figure, title: str, epochs: int) -> None:
    """An axis of all epochs of the run, so that a curve shows how far it is."""
    lay_out(figure, title)
    figure.update_layout(height=LOW_HEIGHT)
    figure.update_yaxes(fixedrange=True, zeroline=False)
    figure.update_xaxes(
        title="epoch",
        range=[0, max(1, epochs) + 0.5],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        tickformat="d",
    )
