"""The speed and the memory tables of the README, one after the other.

    python benchmarks/training_tables.py --rounds 7

ResNet-32 with auxiliary networks of depth 2 and ResNet-110 with depth 3: times by `auglocal bench`
at batch 128, counts by `auglocal memory` at batch 1024, with the largest batch in 8 GiB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

SUBJECTS = {"resnet32": 2, "resnet110": 3}


def print_table(command: str, architecture: str, *options: str) -> None:
    depth = str(SUBJECTS[architecture])
    subject = ["--architecture", architecture, "--auxiliary-depth", depth]
    # A process of its own: what one measurement leaves in memory does not slow the next.
    run = [sys.executable, "-m", "auglocal", command, *subject, *options]
    print(f"$ python {' '.join(run[1:])}\n", flush=True)
    subprocess.run(run, check=True)
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="steps by each way (default: 7)")
    parser.add_argument("--skip-memory", action="store_true", help="print the times alone")
    options = parser.parse_args()
    for architecture in SUBJECTS:
        print_table("bench", architecture, "--batch-size", "128", "--rounds", str(options.rounds))
    if options.skip_memory:
        return
    for architecture in SUBJECTS:
        print_table("memory", architecture, "--batch-size", "1024", "--budget", "8GiB")


if __name__ == "__main__":
    main()
