"""Training by a team of ranks: what `auglocal.training` does in one process, and the same files.

Between epochs every rank gets all weights, and tests its share of the images; rank 0 gets all else
that a run carries over, so that what it writes is what one process would have written, and a run
goes on in any layout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from auglocal.acceleration import compile_modules, plain_modules
from auglocal.concurrency import draws_at_random
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.evaluation import Accuracy
from auglocal.material import Material
from auglocal.network import LocalNetwork
from auglocal.parallel.batch_norm import share_batch_norms
from auglocal.parallel.evaluation import SharedSplit
from auglocal.parallel.layout import Part, check_batch, plan_epoch, shares_by_step
from auglocal.parallel.pipeline import (
    RankBlocks,
    Work,
    block_modules,
    block_tensors,
    read,
)
from auglocal.parallel.team import Team
from auglocal.randomness import derive_seed
from auglocal.resumption import check_same_run, computing_threads, thread_warnings
from auglocal.runs import RunFolder, cut_metrics, load_state, remove_leftovers
from auglocal.schedule import SCHEDULES
from auglocal.step import State, check_losses, memory_format
from auglocal.training import (
    STEPS_BETWEEN_CHECKS,
    Listener,
    SplitAccuracy,
    StepReport,
    as_split_accuracies,
    close_epoch,
    count_answers,
    prepare_state,
    save_run_state,
    save_snapshot,
    tests_every_block,
)


@dataclass(frozen=True)
class Rank:
    """All that a rank trains with.

    Attributes:
        config: of the run.
        material: data and device.
        team: who the others are.
        spans: block indices by layer rank.
        state: network and optimizer, of the whole network; what other ranks own lags behind.
        blocks: trains the blocks of this rank.
        shared: `material`, but with its share of the images to test.
    """

    config: TrainConfig
    material: Material
    team: Team
    spans: tuple[range, ...]
    state: State
    blocks: RankBlocks
    shared: Material

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images."""
        return self.material.steps_per_epoch(self.config.batch_size)


def train_in_team(
    config: TrainConfig,
    material: Material,
    folder: RunFolder | None,
    listener: Listener,
    team: Team,
    spans: tuple[range, ...],
) -> bool:
    """Train until the last epoch, as `auglocal.training.train`, which see; every rank calls it.

    Args:
        config: what to do.
        material: what to learn from; on every machine the same.
        folder: of rank 0; None on the others.
        listener: its wish to stop counts on the ranks of layer 0; it hears of epochs on rank 0.
        team: who the others are.
        spans: block indices by layer rank.
    """
    check_batch(team.layout, config.batch_size)
    saved = team.tell(lambda: None if folder is None else load_state(folder))
    if saved is not None:
        check_same_run(config, saved)
    rank = _make_rank(config, material, team, spans, saved)
    if team.is_first and saved is not None and material.device.type == "cpu":
        for warning in thread_warnings(config, rank.state.network, saved):
            listener.on_warning(warning)
    _check_threads(rank)
    if folder is not None:
        remove_leftovers(folder.path)
        cut_metrics(folder, rank.state.epoch)
    if rank.state.epoch == 0 and rank.state.step == 0:
        _save_start(rank, folder)
    while rank.state.epoch < config.epochs:
        finished = _run_epoch(rank, listener)
        _gather_state(rank)
        if not finished:
            if folder is not None:
                save_run_state(folder, config, rank.state)
            return False
        with plain_modules():
            metrics = _close_epoch(rank, folder)
        if metrics is not None:
            listener.on_epoch(metrics)
        _forget_others(rank)
    return True


def _make_rank(
    config: TrainConfig,
    material: Material,
    team: Team,
    spans: tuple[range, ...],
    saved: dict[str, Any] | None,
) -> Rank:
    state = prepare_state(config, material, saved)
    check_draws(state.network, spans, config)
    if config.sync_batch_norm and team.layout.data > 1:
        share_batch_norms(state.network, team)
    if team.data_index > 0:
        # The sums over the ranks are those of the epoch so far.
        state.losses.zero_()
        state.correct.zero_()
    if config.compile:
        compile_modules(state)
    blocks = RankBlocks(config, state, spans[team.layer_index], team)
    evaluated = {
        name: SharedSplit(split, team.rank, team.layout.size, team.watch.progress)
        for name, split in material.evaluated.items()
    }
    shared = replace(material, evaluated=evaluated)
    rank = Rank(config, material, team, spans, state, blocks, shared)
    _forget_others(rank)
    return rank


def check_draws(network: LocalNetwork, spans: tuple[range, ...], config: TrainConfig) -> None:
    """Refuse blocks on two ranks that draw random numbers: each draws after the one before."""
    drawing = [
        span
        for span in spans
        if any(draws_at_random(part) for index in span for part in block_modules(network, index))
    ]
    if len(drawing) > 1:
        raise InputError(
            f"{config.architecture} draws random numbers (dropout or stochastic depth) in blocks "
            f"of {len(drawing)} ranks, whose order only one process keeps; give --parallel data=N "
            "instead of layers=N."
        )


def _check_threads(rank: Rank) -> None:
    """Refuse ranks that compute with different numbers of threads: runs would not be the same."""
    threads = rank.team.gather(computing_threads(rank.config, rank.state.network))
    if threads is not None and len(set(threads)) > 1 and rank.material.device.type == "cpu":
        raise InputError(
            f"The ranks compute with {min(threads)} to {max(threads)} threads, and the result "
            "depends on it; set the same OMP_NUM_THREADS on every machine."
        )


def _save_start(rank: Rank, folder: RunFolder | None) -> None:
    """Write what there is before the first step."""
    if 0 in rank.config.snapshot_epochs:
        accuracies = _measure(rank)
        if folder is not None:
            save_snapshot(rank.config, rank.material, rank.state, folder, accuracies)
    if folder is not None:
        save_run_state(folder, rank.config, rank.state)


def _run_epoch(rank: Rank, listener: Listener) -> bool:
    """Train to the end of the epoch in progress; False when it was asked to stop."""
    config, state = rank.config, rank.state
    schedule = SCHEDULES[config.schedule]
    epoch, finished = state.epoch, True
    state.network.train()
    started = time.perf_counter()
    for work in _works(rank, listener):
        if isinstance(work, Part):
            rank.blocks.send_stop(work)
            finished = False
            break
        part = work.part
        rate = schedule(
            epoch * rank.steps_per_epoch + part.step,
            rank.steps_per_epoch,
            config.epochs,
            config.learning_rate,
        )
        if part.first:
            torch.manual_seed(_draw_seed(rank, part.step))
        rank.blocks.train(work, rate)
        if not part.last:
            continue
        state.seconds += time.perf_counter() - started
        if part.step % STEPS_BETWEEN_CHECKS == 0:
            check_losses(state)
        listener.on_step(_report(rank))
        started = time.perf_counter()
    rank.blocks.flush()
    check_losses(state)
    return finished


def _draw_seed(rank: Rank, step: int) -> int:
    """Of dropout and the like: one process's, and others on ranks that see other images."""
    place: tuple[int | str, ...] = ("step", rank.state.epoch, step)
    if rank.team.data_index > 0:
        place = (*place, "data", rank.team.data_index)
    return derive_seed(rank.config.seed, *place)


def _works(rank: Rank, listener: Listener) -> Iterator[Work | Part]:
    """What this rank trains on in the rest of the epoch; a `Part` alone says stop."""
    config, state, team, material = rank.config, rank.state, rank.team, rank.material
    split = material.training
    parts = list(
        plan_epoch(
            len(split),
            config.batch_size,
            first_step=state.step,
            num_shares=team.layout.data,
            share_index=team.data_index,
            accumulate=config.accumulate,
        )
    )
    if team.layer_index > 0:
        return rank.blocks.received(parts)
    batches = split.training_batches(
        config.batch_size,
        seed=config.seed,
        epoch=state.epoch,
        first_step=state.step,
        augmentation=material.dataset.augmentation if config.augment else None,
        shares=shares_by_step(parts),
    )

    def prepare(pixels: Tensor) -> Tensor:
        return material.normalise(pixels).to(memory_format=memory_format(config, material.device))

    def should_stop() -> bool:
        return team.any_in_data_group(listener.should_stop())

    return read(parts, batches, should_stop, prepare)


def _report(rank: Rank) -> StepReport:
    """Where the run is; the loss of the last block is known to the rank that owns it."""
    state = rank.state
    return StepReport(
        epoch=state.epoch + 1,
        epochs=rank.config.epochs,
        step=state.epoch * rank.steps_per_epoch + state.step,
        steps=rank.config.epochs * rank.steps_per_epoch,
        loss=None,
        accuracy=None,
        images_per_second=state.images / max(state.seconds, 1e-9),
    )


def _gather_state(rank: Rank) -> None:
    """Give every rank all weights and sums, and rank 0 all momenta."""
    state, team = rank.state, rank.team
    for owner, span in enumerate(rank.spans):
        tensors = [tensor for index in span for tensor in block_tensors(state.network, index)]
        team.share_block_tensors(tensors, owner)
    sums = torch.stack([state.losses, state.correct])
    team.add(sums)
    state.losses, state.correct = sums[0].clone(), sums[1].clone()
    own = _own_momenta(rank) if team.data_index == 0 else {}
    gathered = team.gather(own)
    if gathered is not None:
        parameters = list(state.network.parameters())
        for momenta in gathered:
            for index, values in momenta.items():
                parameter = parameters[index]
                state.optimizer.state[parameter] = {
                    name: value.to(parameter.device) if isinstance(value, Tensor) else value
                    for name, value in values.items()
                }


def _own_momenta(rank: Rank) -> dict[int, dict[str, Any]]:
    """What the optimizer keeps of this rank's blocks, by index of the parameter."""
    owned = {id(parameter) for parameter in _own_parameters(rank)}
    return {
        index: {
            name: value.detach().cpu() if isinstance(value, Tensor) else value
            for name, value in rank.state.optimizer.state[parameter].items()
        }
        for index, parameter in enumerate(rank.state.network.parameters())
        if id(parameter) in owned and parameter in rank.state.optimizer.state
    }


def _own_parameters(rank: Rank) -> Iterator[nn.Parameter]:
    network = rank.state.network
    for index in rank.spans[rank.team.layer_index]:
        for module in block_modules(network, index):
            yield from module.parameters()


def _forget_others(rank: Rank) -> None:
    """Free the momenta, and clear the sums, of blocks that other ranks own."""
    owned = {id(parameter) for parameter in _own_parameters(rank)}
    for parameter in rank.state.network.parameters():
        if id(parameter) not in owned:
            rank.state.optimizer.state.pop(parameter, None)
    span = rank.spans[rank.team.layer_index]
    for sums in (rank.state.losses, rank.state.correct):
        sums[: span.start] = 0
        sums[span.stop :] = 0


def _close_epoch(rank: Rank, folder: RunFolder | None) -> dict[str, Any] | None:
    """Test on all ranks, and write the epoch's files on rank 0."""
    state = rank.state
    if folder is not None:
        return close_epoch(
            rank.config,
            rank.material,
            state,
            folder,
            rank.steps_per_epoch,
            measure=lambda *_: _measure(rank),
            extra={"parallel": str(rank.team.layout)},
        )
    state.epoch += 1
    state.reset_sums()
    _measure(rank)
    return None


def _measure(rank: Rank) -> dict[str, SplitAccuracy]:
    """Accuracies by split, each image of which one rank has seen."""
    own = count_answers(rank.config, rank.shared, rank.state)
    counts = [
        (accuracy.correct, accuracy.samples)
        for by_block in own.values()
        for accuracy in by_block.values()
    ]
    totals = torch.tensor(counts)
    rank.team.add(totals)
    sums = iter(totals.tolist())
    return as_split_accuracies(
        {
            split: {block: Accuracy(*next(sums)) for block in by_block}
            for split, by_block in own.items()
        },
        every_block=tests_every_block(rank.config, rank.state),
    )
