"""Time of a training step: AugLocal against BP, by precision and memory layout, in one process.

    python benchmarks/training_step.py --architecture resnet32 --auxiliary-depth 2 --batch-size 128

The variants take turns, so that what else the machine does falls on all of them; the table gives
each one's best round as a ratio to BP in fp32, channels-last.
"""

from __future__ import annotations

import argparse
import time

import torch

from auglocal.rules.auglocal import AugLocal
from auglocal.rules.bp import BP
from auglocal.rules.registry import Rule, build_network

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def seconds_per_step(rule: Rule, precision: str, layout: str, options: argparse.Namespace) -> float:
    """Forward and backward of every block, once."""
    network = build_network(options.architecture, rule, 10, (3, 32, 32), seed=0)
    network.to(memory_format=LAYOUTS[layout])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, 3, 32, 32, generator=generator)
    images = images.to(memory_format=LAYOUTS[layout])
    labels = torch.randint(10, (options.batch_size,), generator=generator)
    started = time.perf_counter()
    for _, loss, _ in network.local_losses(images, labels, PRECISIONS[precision]):
        loss.backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet32")
    parser.add_argument("--auxiliary-depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rules: dict[str, Rule] = {"bp": BP(), "auglocal": AugLocal(options.auxiliary_depth)}
    best: dict[tuple[str, str, str], float] = {}
    for round_index in range(options.rounds + 1):
        for name, rule in rules.items():
            for precision in PRECISIONS:
                for layout in LAYOUTS:
                    seconds = seconds_per_step(rule, precision, layout, options)
                    key = name, precision, layout
                    if round_index > 0:  # the first round warms up
                        best[key] = min(best.get(key, seconds), seconds)
    reference = best["bp", "fp32", "channels-last"]
    print(
        f"{options.architecture}, auxiliary depth {options.auxiliary_depth}, batch "
        f"{options.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'rule':<10} {'precision':<10} {'layout':<14} {'ratio':>6} {'ms a step':>10}")
    for (name, precision, layout), seconds in best.items():
        ratio, milliseconds = seconds / reference, seconds * 1e3
        print(f"{name:<10} {precision:<10} {layout:<14} {ratio:>6.2f} {milliseconds:>10.0f}")


if __name__ == "__main__":
    main()
