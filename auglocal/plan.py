"""What a rule makes of a backbone, said before anything is trained.

In: an architecture and a rule. Out: layers, blocks, auxiliary networks and parameter counts, as
plain values (for JSON) or as a table for people.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from auglocal.auxiliary import AuxiliaryNetwork
from auglocal.backbones.backbone import layer_shapes
from auglocal.backbones.registry import build_backbone
from auglocal.local_loss import CombinedLoss
from auglocal.network import LocalNetwork
from auglocal.rules.registry import Rule


def make_plan(
    architecture: str,
    rule_name: str,
    rule: Rule,
    num_classes: int = 10,
    input_size: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
) -> dict[str, Any]:
    """Lay out how `rule` trains `architecture`; nothing is allocated but names and shapes.

    An auxiliary network that copies no layers has depth 0 and empty lists.

    Returns:
        {"architecture", "rule", "layers": [{"index", "name", "channels", "size"}],
        "blocks": [[layer indices]], "auxiliaries": [{"layer", "depth", "selected", "strides",
        "channels": [[in, out]], "parameters"}], "parameters": {"backbone", "auxiliary", "total"}}.
    """
    with torch.device("meta"):
        network = rule.build(build_backbone(architecture, num_classes, input_size, width))
    sizes = [shape[-1] for shape in layer_shapes(network.backbone)]
    auxiliaries = _auxiliary_rows(network)
    backbone_parameters = count_parameters(network.backbone)
    auxiliary_parameters = count_parameters(network.auxiliaries)
    return {
        "architecture": architecture,
        "rule": rule_name,
        "layers": [
            {"index": index, "name": spec.name, "channels": spec.channels, "size": size}
            for index, (spec, size) in enumerate(zip(network.backbone.specs, sizes))
        ],
        "blocks": [list(block) for block in network.blocks],
        "auxiliaries": auxiliaries,
        "parameters": {
            "backbone": backbone_parameters,
            "auxiliary": auxiliary_parameters,
            "total": backbone_parameters + auxiliary_parameters,
        },
    }


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _auxiliary_rows(network: LocalNetwork) -> list[dict[str, Any]]:
    """One plain row for each auxiliary network, input to output."""
    rows = []
    for block, auxiliary in zip(network.blocks, network.auxiliaries.values()):
        classifier = auxiliary.classifier if isinstance(auxiliary, CombinedLoss) else auxiliary
        spec = classifier.spec if isinstance(classifier, AuxiliaryNetwork) else None
        rows.append(
            {
                "layer": block[-1],
                "depth": spec.depth if spec else 0,
                "selected": list(spec.selected) if spec else [],
                "strides": list(spec.strides) if spec else [],
                "channels": [list(pair) for pair in spec.channels] if spec else [],
                "parameters": count_parameters(auxiliary),
            }
        )
    return rows


def plan_table(plan: dict[str, Any]) -> str:
    """A plan as a table that a person reads."""
    auxiliary_by_layer = {row["layer"]: row for row in plan["auxiliaries"]}
    block_by_layer = {layer: i for i, block in enumerate(plan["blocks"]) for layer in block}
    lines = [
        f"{plan['architecture']} under {plan['rule']}: {len(plan['layers'])} layers in "
        f"{len(plan['blocks'])} blocks",
        "",
        f"{'layer':>5}  {'name':<15} {'channels':>8} {'size':>5} {'block':>5}  "
        f"{'auxiliary: copies of layers (stride)':<40} {'parameters':>10}",
    ]
    for layer in plan["layers"]:
        auxiliary = auxiliary_by_layer.get(layer["index"])
        copies = parameters = ""
        if auxiliary is not None:
            pairs = zip(auxiliary["selected"], auxiliary["strides"])
            copies = ", ".join(f"{index} ({stride})" for index, stride in pairs) or "no copies"
            parameters = f"{auxiliary['parameters']:,}"
        elif block_by_layer[layer["index"]] == len(plan["blocks"]) - 1:
            copies = "trains with the classifier"
        lines.append(
            f"{layer['index']:>5}  {layer['name']:<15} {layer['channels']:>8} {layer['size']:>5} "
            f"{block_by_layer[layer['index']]:>5}  {copies:<40} {parameters:>10}"
        )
    counts = plan["parameters"]
    lines += [
        "",
        f"parameters: backbone {counts['backbone']:,} + auxiliary {counts['auxiliary']:,} "
        f"= {counts['total']:,}",
    ]
    return "\n".join(lines)
