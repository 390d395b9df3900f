"""`torchrun ... -m auglocal train --parallel ...`: the same training, spread over ranks."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from auglocal.commands.progress import progress_listener, stop_requests
from auglocal.commands.shared import (
    DONE,
    INTERRUPTED,
    WRONG_INPUT,
    check_start,
    chosen_config,
    default_out,
    report_skipped,
    resumed_config,
    say_outcome,
)
from auglocal.config import TrainConfig, config_from_json
from auglocal.device import choose_device
from auglocal.errors import InputError
from auglocal.material import Material, prepare_material
from auglocal.parallel.balance import (
    BALANCES,
    Sharing,
    block_costs,
    describe_sharing,
    share_out,
)
from auglocal.parallel.layout import Layout, check_batch, parse_layout
from auglocal.parallel.team import Team, joined, num_processes, num_restarts
from auglocal.parallel.training import train_in_team
from auglocal.rules.registry import build_network
from auglocal.runs import RunFolder, create_run, open_run
from auglocal.training import Listener

DEFAULT_TIMEOUT = 300.0
SMALLEST_TIMEOUT = 2.0


def add_parallel_options(parser: argparse.ArgumentParser) -> None:
    """Options of a run spread over ranks; they say nothing about what it learns."""
    parser.add_argument(
        "--parallel",
        metavar="layers=INT,data=INT",
        help="under torchrun: share out blocks, batches or both among so many ranks",
    )
    parser.add_argument(
        "--balance",
        choices=BALANCES,
        default=BALANCES[0],
        help="share out blocks by counted or by measured cost (default: flops)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="end the run when a rank has died, or hung for so long; longer than any step takes "
        "(default: 300)",
    )


def refuse_idle_ranks() -> None:
    """Refuse several processes that would all do the same.

    Raises:
        InputError: torchrun started several.
    """
    if num_processes() > 1:
        with first_rank_speaks():
            raise InputError(
                f"torchrun started {num_processes()} processes, which would all do the same; say "
                f"what they share with --parallel layers={num_processes()}, say."
            )


def train_in_parallel(options: argparse.Namespace) -> int:
    """Train, or go on training, as one rank of several."""
    with first_rank_speaks():
        layout = _checked_layout(options)
        device = getattr(options, "device", "auto")
        if device != "auto":
            choose_device(device)
    # A terminal signals all processes, and torchrun passes on what it gets: a second is no wish.
    # Around the meeting: torchrun ends who is left, and they have yet to say who died.
    with (
        stop_requests(again=lambda: None) as requests,
        joined(layout, options.timeout, device) as team,
    ):
        config = config_from_json(team.tell(lambda: _agreed_config(options).to_json()))
        placed = replace(config, device=team.device_kind if config.device != "cpu" else "cpu")
        material = team.local_first(lambda: prepare_material(placed, download=options.download))
        sharing = team.tell(lambda: _share_blocks(config, material, layout, options.balance))
        folder = _open_folder(config, material, options) if team.is_first else None
        finished = _train(config, material, folder, team, sharing, requests, options)
    if folder is None:
        return DONE if finished else INTERRUPTED
    return say_outcome(folder, finished, options)


@contextlib.contextmanager
def first_rank_speaks() -> Iterator[None]:
    """Let one rank say what is wrong with the arguments; the others go in silence."""
    try:
        yield
    except InputError:
        if os.environ.get("RANK", "0") != "0":
            raise SystemExit(WRONG_INPUT) from None
        raise


def _checked_layout(options: argparse.Namespace) -> Layout:
    layout = parse_layout(options.parallel)
    if layout.size != num_processes():
        raise InputError(
            f"--parallel {options.parallel} needs {layout.size} processes, and there "
            f"{'is 1' if num_processes() == 1 else f'are {num_processes()}'}; start with torchrun "
            f"--nproc-per-node {layout.size} -m auglocal train (on one machine)."
        )
    if "RANK" not in os.environ:
        raise InputError(
            "--parallel wants to be started by torchrun; put torchrun --nproc-per-node "
            f"{layout.size} -m in the place of python -m, or leave --parallel out."
        )
    if not options.timeout >= SMALLEST_TIMEOUT:
        raise InputError(
            f"The timeout must be at least {SMALLEST_TIMEOUT:g} seconds, not "
            f"{options.timeout:g}; give --timeout 60, say."
        )
    for name in ("seeds", "dry_run"):
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')} runs in one process; leave it or --parallel out."
            )
    if getattr(options, "block_threads", 1) > 1:
        raise InputError(
            "--block-threads trains blocks at the same time in one process, and --parallel in "
            "several; leave one of them out."
        )
    return layout


def _agreed_config(options: argparse.Namespace) -> TrainConfig:
    """The run's configuration, new or going on; asked of rank 0 alone."""
    resume = _folder_to_resume(options)
    if resume is None:
        return TrainConfig(**chosen_config(options))
    if options.resume is not None and (options.out is not None or options.overwrite):
        raise InputError("--resume stands alone; leave out --out and --overwrite.")
    _, config = open_run(resume)
    return resumed_config(resume, config, chosen_config(options))


def _folder_to_resume(options: argparse.Namespace) -> Path | None:
    """What `--resume` says; after a restart by torchrun, the run that this command began."""
    if options.resume is not None:
        return Path(options.resume)
    if num_restarts() == 0:
        return None
    out = default_out(TrainConfig(**chosen_config(options)), options)
    return out if RunFolder(out).config.exists() else None


def _open_folder(config: TrainConfig, material: Material, options: argparse.Namespace) -> RunFolder:
    report_skipped(material.dataset)
    resume = _folder_to_resume(options)
    if resume is not None:
        return RunFolder(resume)
    check_start(config, material)
    return create_run(default_out(config, options), config, overwrite=options.overwrite)


def _share_blocks(config: TrainConfig, material: Material, layout: Layout, balance: str) -> Sharing:
    """Decide who owns what, and say so."""
    check_batch(layout, config.batch_size)
    network = build_network(
        config.architecture,
        config.make_rule(),
        material.num_classes,
        material.input_size,
        config.seed,
        width=config.width,
    )
    if layout.layers == 1:
        return share_out([1.0] * len(network.blocks), 1)
    sharing = share_out(block_costs(balance, config, material), layout.layers)
    print(describe_sharing(sharing, network.block_names, balance), file=sys.stderr)
    return sharing


def _train(
    config: TrainConfig,
    material: Material,
    folder: RunFolder | None,
    team: Team,
    sharing: Sharing,
    requests: list[int],
    options: argparse.Namespace,
) -> bool:
    with contextlib.ExitStack() as stack:
        listener = Listener(should_stop=lambda: bool(requests), on_warning=lambda text: None)
        if folder is not None:
            listener = stack.enter_context(
                progress_listener(config, folder, requests, tensorboard=options.tensorboard)
            )
        return train_in_team(config, material, folder, listener, team, sharing.spans)
