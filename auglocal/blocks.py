"""How the layers of a backbone are shared out among gradient-isolated blocks.

In: how many layers, how many blocks ("modules" on the command line), how long the last must be.
Out: the layer indices of each block.
"""

from __future__ import annotations

import itertools
import math

from auglocal.errors import InputError


def cut_into_blocks(
    num_layers: int, num_modules: int | None, smallest_tail: int, tail: int | None = None
) -> list[range]:
    """Cut layers 0 .. n - 1 into K blocks, the last of which (the tail) trains with the classifier.

    The tail has max(smallest_tail, ceil(n / K)) layers, or n - K + 1 where so many modules leave it
    no more. The layers before it make K - 1 blocks whose sizes differ by at most one, larger ones
    first. K = 1 is a single block: backpropagation.

    Args:
        num_layers: n >= 1.
        num_modules: K in 1 .. n; None is as many as there can be: a block a layer before the tail.
        smallest_tail: layers that the tail has at least, if K leaves it so many; at least 1, and at
            most n - 1 where K is None.
        tail: layers that the tail has exactly, in 1 .. n - 1 unless K = 1.

    Returns:
        K ranges of layer indices, in order.

    Raises:
        InputError: these layers cannot be cut so; the message says what is possible.
    """
    if num_modules is None:
        num_modules = num_layers - (tail or smallest_tail) + 1
    if not 1 <= num_modules <= num_layers:
        raise InputError(
            f"A backbone of {num_layers} layers has 1 to {num_layers} modules, not {num_modules}; "
            f"give --modules {num_layers} or fewer."
        )
    if num_modules == 1:
        if tail not in (None, num_layers):
            raise InputError(
                f"One module is a tail of all {num_layers} layers, not of {tail}; leave --tail "
                "out, or give --modules 2 or more."
            )
        return [range(num_layers)]
    largest = num_layers - num_modules + 1
    tail = tail or max(min(smallest_tail, largest), math.ceil(num_layers / num_modules))
    num_hidden = num_layers - tail
    if num_hidden < num_modules - 1:
        raise InputError(
            f"With a tail of {tail} layers, {num_hidden} of {num_layers} are left for "
            f"{num_modules - 1} modules before it; give --modules {num_hidden + 1} or fewer, or a "
            "smaller --tail."
        )
    blocks = _cut_evenly(num_hidden, num_modules - 1)
    return [*blocks, range(num_hidden, num_layers)]


def _cut_evenly(num_layers: int, num_blocks: int) -> list[range]:
    """Runs of layers whose lengths differ by at most one, the longer ones first."""
    length, num_longer = divmod(num_layers, num_blocks)
    starts = [i * length + min(i, num_longer) for i in range(num_blocks + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]
