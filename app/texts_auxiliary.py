"""Plans in, words and tables out, for the page on auxiliary networks."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.figures_auxiliary import CostRow, copy_text
from app import texts

if TYPE_CHECKING:
    from app.sources.plans import PlanAnswer

MIB = 2**20
# One sentence on what a hidden layer learns from, for rules whose networks copy nothing.
CLASSIFIERS = {
    "auglocal": "copies of later layers and a linear classifier",
    "dgl": "1x1 convolutions, two hidden linear layers and a classifier (DGL)",
    "predsim": "a pooled linear classifier and a similarity loss (PredSim)",
    "infopro": "a small convolutional classifier and a reconstruction of the image (InfoPro)",
    "linear": "a linear classifier on its pooled output",
}


def ratio(value: float, reference: float) -> str:
    """A ratio to BP, as people read it."""
    share = value / reference
    return f"{share:.3f} of BP" if share < 1 else f"{share:.2f} x BP"


def memory(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / MIB:,.0f} MiB" if num_bytes >= 10 * MIB else f"{num_bytes / MIB:.1f} MiB"


def operations(flops: int) -> str:
    """Floating-point operations as people read them."""
    return f"{flops / 1e12:,.2f} T" if flops >= 1e12 else f"{flops / 1e9:,.1f} G"


def copies_sentence(plan: Mapping[str, Any], chosen: int) -> str:
    """What the auxiliary network of a local layer is made of; markdown-safe."""
    row = auxiliary_of(plan, chosen)
    name = texts.plain(plan["layers"][chosen]["name"])
    parameters = f"{row['parameters']:,} parameters"
    if not row["selected"]:
        return f"**{name}** learns from {CLASSIFIERS[plan['rule']]}: {parameters}."
    copies = "; ".join(
        f"{texts.plain(plan['layers'][index]['name'])} ({copy_text(row, place)})"
        for place, index in enumerate(row["selected"])
    )
    return (
        f"**{name}** learns through {len(row['selected'])} fresh "
        f"{'copy' if len(row['selected']) == 1 else 'copies'}: {copies}; then a linear "
        f"classifier. {parameters} in all."
    )


def auxiliary_of(plan: Mapping[str, Any], chosen: int) -> dict[str, Any]:
    """The row of a plan for the auxiliary network of a local layer."""
    row: dict[str, Any] = next(row for row in plan["auxiliaries"] if row["layer"] == chosen)
    return row


def cost_rows(answer: PlanAnswer) -> list[CostRow]:
    """Parameters, operations and memory by layer, as the figure draws them."""
    auxiliaries = dict(zip((block[-1] for block in answer.costs.blocks), answer.costs.auxiliaries))

    def extra(name: str, unit: float) -> list[float]:
        return [
            getattr(auxiliaries[index], name) / unit if index in auxiliaries else 0.0
            for index in range(len(answer.costs.layers))
        ]

    layers = answer.costs.layers
    held = [value / MIB for value in held_by_layer(answer.costs.layers, answer.costs.blocks)]
    bp = [value / MIB for value in held_by_layer(answer.bp.layers, answer.bp.blocks)]
    return [
        CostRow("parameters", [cost.parameters for cost in layers], extra("parameters", 1)),
        CostRow("GFLOP a step", [cost.flops / 1e9 for cost in layers], extra("flops", 1e9)),
        CostRow("MiB held", held, extra("saved", MIB), None if held == bp else bp),
    ]


def held_by_layer(layers: Sequence[Any], blocks: Sequence[Sequence[int]]) -> list[int]:
    """Bytes held when each layer has run: its own and those before it in its block."""
    held: list[int] = []
    for block in blocks:
        held += itertools.accumulate(layers[index].saved for index in block)
    return held


def csv_text(answer: PlanAnswer) -> str:
    """A plan with its costs as CSV, a line a layer; memory in bytes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        "index,layer,channels,size,block,copies,strides,layer_parameters,layer_flops,layer_saved,"
        "auxiliary_parameters,auxiliary_flops,auxiliary_saved,bp_flops".split(",")
    )
    plan, costs = answer.plan, answer.costs
    block_by_layer = {layer: i for i, block in enumerate(plan["blocks"]) for layer in block}
    rows = {row["layer"]: row for row in plan["auxiliaries"]}
    extras = dict(zip((block[-1] for block in costs.blocks), costs.auxiliaries))
    for layer, cost, bp in zip(plan["layers"], costs.layers, answer.bp.layers):
        index = layer["index"]
        row, extra = rows.get(index), extras.get(index)
        copies = [" ".join(map(str, row[name])) for name in ("selected", "strides")] if row else []
        about = [index, layer["name"], layer["channels"], layer["size"], block_by_layer[index]]
        own = [cost.parameters, cost.flops, cost.saved]
        more = [extra.parameters, extra.flops, extra.saved] if extra else ["", "", ""]
        writer.writerow([*about, *(copies or ["", ""]), *own, *more, bp.flops])
    return buffer.getvalue()
