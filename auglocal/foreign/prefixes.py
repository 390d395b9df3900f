"""What wrappers put before the names of a network's tensors, taken off again.

In: the keys of a state dict. Out: the keys without the prefixes of DataParallel, torch.compile,
Lightning and averaged copies, and which prefixes these were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# The first of those that hold (nearly) equally many tensors counts: weights before their average.
# DataParallel; torch.compile; Lightning and scripts; averages of several libraries.
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "online_model.",
    "ema_model.",
    "averaged_model.",
    "model_ema.",
    "ema.",
)
# Where every key has it, it is a wrapper too; beside other keys it tells parts of a network apart.
WRAPPERS_OF_ALL = ("backbone.",)
# What averages keep beside the weights (torch.optim.swa_utils and packages after it).
COUNTERS = frozenset({"n_averaged", "initted", "step", "num_updates", "decay"})
NEARLY = 0.75
MAX_ROUNDS = 8


def strip_prefixes(
    keys: Iterable[str], copy: str | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take wrappers' prefixes off keys, as often as they stand there.

    A prefix goes where all keys share it. One of `WRAPPERS` goes too where other keys stand beside
    it, fewer than under it (a loss's class weights, the counters of metrics, a second copy of the
    weights): then those others are not part of the result.

    Args:
        keys: of a state dict.
        copy: take the copy of the weights that stands under this prefix, where there are several.

    Returns:
        the name left of each key that is kept, by the key; and the prefixes, outermost first.
    """
    names = {key: key for key in keys}
    stripped: list[str] = []
    while len(stripped) < MAX_ROUNDS:
        prefix = _find_prefix([name for name in names.values() if name not in COUNTERS], copy)
        if prefix is None:
            break
        names = {
            key: name.removeprefix(prefix)
            for key, name in names.items()
            if name.startswith(prefix) and name != prefix
        }
        stripped.append(prefix)
    return {key: name for key, name in names.items() if name not in COUNTERS}, tuple(stripped)


def other_copies(keys: Iterable[str], stripped: Sequence[str]) -> tuple[str, ...]:
    """Prefixes under which nearly as many keys stand as under the first that was stripped."""
    keys = tuple(keys)
    counts = {prefix: sum(key.startswith(prefix) for key in keys) for prefix in WRAPPERS}
    enough = NEARLY * counts.get(stripped[0], 0) if stripped else 0
    if not enough:
        return ()
    return tuple(p for p, count in counts.items() if count >= enough and p != stripped[0])


def _find_prefix(names: Sequence[str], copy: str | None) -> str | None:
    """The prefix to take off next; None where there is none."""
    if copy is not None and any(name.startswith(copy) for name in names):
        return copy
    for prefix in WRAPPERS_OF_ALL:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    counts = {prefix: sum(name.startswith(prefix) for name in names) for prefix in WRAPPERS}
    most = max(counts.values())
    others = len(names) - sum(counts.values())
    if most <= others:
        return None
    return next(prefix for prefix, count in counts.items() if count >= NEARLY * most)
