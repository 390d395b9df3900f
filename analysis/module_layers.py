"""The parts of a network in, the names of the layers that are to be read out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torch import nn

from analysis.errors import InputError

MOST_LISTED = 12
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
)


def find_layers(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Find layers by name.

    Args:
        module: the network.
        names: each a full name ("layer1.0.conv2"), with or without a wrapper's prefix, or the end
            of one ("0.conv2") if that is enough to tell it apart.

    Returns:
        layers by full name, in the order of `names`.

    Raises:
        InputError: no layer or more than one has such a name, or two names are of one layer.
    """
    known = {name: part for name, part in module.named_modules(remove_duplicate=False) if name}
    layers: dict[str, nn.Module] = {}
    for name in names:
        full = _full_name(name, list(known))
        same = [other for other, layer in layers.items() if layer is known[full]]
        if same:
            raise InputError(
                f"{name!r} and {same[0]!r} are the same layer; name it once, and each of its runs "
                "gets a name."
            )
        layers[full] = known[full]
    return layers


def _full_name(name: str, known: Sequence[str]) -> str:
    """Complete a layer's name."""
    plain = WRAPPERS.sub("", name)
    exact = [candidate for candidate in (name, plain) if candidate in known]
    if exact:
        return exact[0]
    matching = [full for full in known if full.endswith(f".{plain}")]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InputError(
            f"The name {name!r} fits {len(matching)} layers ({listed(matching)}); give the full "
            "name of one."
        )
    near = difflib.get_close_matches(plain, known, MOST_LISTED, cutoff=0.5)
    advice = f"did you mean {listed(near)}?" if near else f"it has {listed(known)}."
    raise InputError(f"The module has no layer {name!r}; {advice}")


def listed(names: Sequence[str]) -> str:
    """Write names in a row, the first ones if there are many."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(map(repr, names[:MOST_LISTED])) + more


def block_names(module: nn.Module) -> list[str]:
    """Choose layers to read: blocks, not every ReLU.

    - Sequential, ModuleList and ModuleDict are stages: what they hold is chosen, stages in them
      are opened in turn.
    - A part that holds a run of blocks (of one class, or called "blocks") is a stage too, whatever
      else it holds (a downsampling before them).
    - A part made of parts (a residual block, a transformer layer) is a block and is not opened,
      unless it is a wrapper outside all stages: most of the weights, and stages of its own. A
      dense block is a block, since each layer in it gives a few channels of the block's only.
    - A convolution or linear layer by itself is a block. Within a Sequential, where the order is
      certain, it is read after the norm and activation that directly follow it.

    Returns:
        names in the order of definition; the network's last answer is not left out here.
    """
    return _blocks(module, "", sum(p.numel() for p in module.parameters()))


def without_layer(module: nn.Module, names: Sequence[str], name: str) -> list[str]:
    """Put the part that holds a layer in the place of all layers in it.

    Args:
        module: the network.
        names: of layers.
        name: one of them; where nothing but the network holds it, it is left out.

    Returns:
        the other names and the part's.
    """
    holder = name.rpartition(".")[0]
    while holder and type(module.get_submodule(holder)) in (nn.ModuleList, nn.ModuleDict):
        holder = holder.rpartition(".")[0]  # these never run themselves
    if not holder:
        return [other for other in names if other != name]
    inside = [other for other in names if other.startswith(f"{holder}.")]
    return [
        holder if other == inside[0] else other
        for other in names
        if other not in inside or other == inside[0]
    ]


def _blocks(parent: nn.Module, prefix: str, total: int) -> list[str]:
    """Choose blocks among the parts of a stage, or of a network outside all stages."""
    chosen: list[str] = []
    in_order = isinstance(parent, nn.Sequential)
    follows = False  # the last chosen is a single layer, and what comes next directly follows it
    for name, child in parent.named_children():
        full, is_leaf = f"{prefix}{name}", next(child.children(), None) is None
        size = sum(p.numel() for p in child.parameters())
        # A norm with parts has its activation within.
        if isinstance(child, NORMS) or (is_leaf and isinstance(child, ACTIVATIONS)):
            if follows and in_order:
                chosen[-1] = full
            continue
        follows = is_leaf and size > 0
        outside = not _is_stage(parent)
        if (
            _is_stage(child)
            or _holds_blocks(child)
            or (outside and _is_wrapper(child, size, total))
        ):
            chosen += _blocks(child, f"{full}.", total)
        elif size > 0:
            chosen.append(full)
    return chosen


def _is_stage(part: nn.Module) -> bool:
    """Tell whether a part only holds others; a run of single layers with a name is a block."""
    if type(part) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        return True
    runs_in_turn = type(part).forward is nn.Sequential.forward
    return runs_in_turn and any(next(child.children(), None) for child in part.children())


def _holds_blocks(part: nn.Module) -> bool:
    """Tell whether a part, or a container in it, is a run of blocks."""
    if isinstance(part, nn.ModuleDict):  # densely connected, whether torchvision's or timm's
        return False
    runs = [list(part.children())]
    for name, child in part.named_children():
        if _is_plain(child):
            if name == "blocks":  # as timm calls them, of whatever classes they are
                return True
            runs.append(list(child.children()))
    return any(_all_blocks(run) for run in runs)


def _is_plain(part: nn.Module) -> bool:
    return type(part) in (nn.Sequential, nn.ModuleList)


def _all_blocks(parts: Sequence[nn.Module]) -> bool:
    """Tell whether parts are of one class, each with two convolutions or linear layers or more."""
    same = len({type(part) for part in parts}) == 1 and not _is_plain(parts[0])
    return same and all(_num_weighted(part) > 1 for part in parts)


def _num_weighted(part: nn.Module) -> int:
    """Count layers with a matrix of weights in a part."""
    return sum(
        any(p.dim() > 1 for p in inner.parameters(recurse=False)) for inner in part.modules()
    )


def _is_wrapper(part: nn.Module, size: int, total: int) -> bool:
    """Tell whether a part is most of the network, and holds a stage of two blocks or more."""
    stages = (inner for inner in part.modules() if inner is not part and _is_stage(inner))
    return 2 * size > total and any(
        sum(next(child.children(), None) is not None for child in stage.children()) > 1
        for stage in stages
    )
