"""The processes of a run: who this one is, and how all of them agree.

In: a layout, and what torchrun put into the environment. Out: a `Team`, whose methods every rank
calls at the same places.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import init_device_mesh

from auglocal.errors import InputError, WorkError
from auglocal.parallel.layout import Layout, check_ranks
from auglocal.parallel.watch import FAILED, Watch

Value = TypeVar("Value")
# The watch ends a run long before; this ends what even the watch does not understand.
LAST_RESORT = 3.0


@dataclass(frozen=True)
class Team:
    """A process among the others of its run.

    Attributes:
        layout: the grid.
        rank: of this process.
        layer_index, data_index: its place on the grid.
        layer_group: the ranks of one data index, which together own all blocks.
        data_group: the ranks of one layer index, which own the same blocks.
        watch: sees that all are alive.
        device_kind: "cpu" or "cuda".
    """

    layout: Layout
    rank: int
    layer_index: int
    data_index: int
    layer_group: distributed.ProcessGroup
    data_group: distributed.ProcessGroup
    watch: Watch
    device_kind: str

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and talks to people."""
        return self.rank == 0

    def rank_beside(self, layer_index: int) -> int:
        """The rank that owns other blocks and trains on the same images."""
        return self.layout.rank_at(layer_index, self.data_index)

    def tell(self, make: Callable[[], Value]) -> Value:
        """Rank 0 makes a value, and all get it."""
        with self.watch.waiting():
            values: list[Any] = [make() if self.is_first else None]
            distributed.broadcast_object_list(values, src=0)
        told: Value = values[0]
        return told

    def gather(self, value: Value) -> list[Value] | None:
        """Every rank's value in order, on rank 0; None on the others."""
        values: list[Any] | None = [None] * self.layout.size if self.is_first else None
        with self.watch.waiting():
            distributed.gather_object(value, values)
        return values

    def add(self, numbers: Tensor) -> None:
        """Add up a tensor over all ranks, in place."""
        with self.watch.waiting():
            distributed.all_reduce(numbers)

    def any_in_data_group(self, wish: bool) -> bool:
        """Whether any rank that owns the same blocks wishes it."""
        if self.layout.data == 1:
            return wish
        flag = torch.tensor([int(wish)])
        with self.watch.waiting():
            distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.data_group)
        return bool(flag.item())

    def share_block_tensors(self, tensors: Iterable[Tensor], owner_layer: int) -> None:
        """Copy tensors from the rank that owns them to those that own other blocks, in place."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_dtype.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            with self.watch.waiting():
                distributed.broadcast(
                    flat, src=self.rank_beside(owner_layer), group=self.layer_group
                )
            copy_back(flat, alike)

    def meet(self) -> None:
        """Wait for all ranks."""
        with self.watch.waiting():
            distributed.barrier()

    def local_first(self, make: Callable[[], Value]) -> Value:
        """Make a value on the first rank of each machine, then on the others.

        However long it takes, nobody is thought to hang: it may be a download.
        """
        is_local_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        with self.watch.waiting():
            value = make() if is_local_first else None
            self.meet()
            return make() if value is None else value


def subteam(team: Team, layout: Layout) -> Team | None:
    """The first ranks of a team in a layout of their own; None on a rank that is not among them.

    Every rank must call it.
    """
    data_groups: list[Any] = [
        distributed.new_group([layout.rank_at(layer, data) for data in range(layout.data)])
        for layer in range(layout.layers)
    ]
    layer_groups: list[Any] = [
        distributed.new_group([layout.rank_at(layer, data) for layer in range(layout.layers)])
        for data in range(layout.data)
    ]
    if team.rank >= layout.size:
        return None
    layer_index, data_index = layout.place(team.rank)
    return replace(
        team,
        layout=layout,
        layer_index=layer_index,
        data_index=data_index,
        layer_group=layer_groups[data_index],
        data_group=data_groups[layer_index],
    )


def copy_back(flat: Tensor, tensors: Iterable[Tensor]) -> None:
    """Fill tensors with the values of their concatenation."""
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()


def num_processes() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_restarts() -> int:
    """How often torchrun has started these processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def joined(layout: Layout, timeout: float, device_name: str) -> Iterator[Team]:
    """Meet the other processes; takes leave of them at the end, whatever happens.

    Args:
        layout: the grid; its size is the number of processes.
        timeout: seconds, see `Watch`.
        device_name: "auto", "cpu" or "cuda".

    Raises:
        InputError: the processes are too few or too many, or the device does not do.
        WorkError: another rank died or hangs.
    """
    check_ranks(layout, num_processes())
    kind = _device_kind(device_name)
    rank = int(os.environ["RANK"])
    limit = timedelta(seconds=max(60.0, LAST_RESORT * timeout))
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    try:
        # Held to the end: where this process keeps the store, it lasts as long as this object.
        store = _connect(limit, host=rank == 0 and not _torchrun_keeps_the_store())
        distributed.init_process_group(
            backend, timeout=limit, store=store, rank=rank, world_size=layout.size
        )
        team = _make_team(layout, rank, timeout, limit, kind)
    except (RuntimeError, ValueError) as error:
        _leave_groups()
        raise WorkError(
            f"The {layout.size} processes did not find each other "
            f"({str(error).splitlines()[0]}); see that all were started, and start again."
        ) from error
    try:
        with _explained(team.watch):
            yield team
    except BaseException:
        _leave_groups()  # so that the others notice
        team.watch.see_off()
        raise
    finally:
        _leave_groups()


def _leave_groups() -> None:
    """Take leave without waiting for the others: they may wait for this rank, or be dead."""
    if distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


@contextlib.contextmanager
def _explained(watch: Watch) -> Iterator[None]:
    """Tell the others how it ended, and people why."""
    try:
        yield
        with watch.waiting():
            distributed.barrier()  # rank 0 may keep the store that the others' watches read
    except (InputError, WorkError) as error:
        watch.leave("failed")
        # What is wrong is often wrong on all ranks; people hear of it once.
        if not watch.speaks_first():
            raise SystemExit(FAILED) from error
        raise
    except (torch.OutOfMemoryError, KeyboardInterrupt):
        watch.leave("failed")
        raise
    except RuntimeError as error:
        raise watch.explain(error) from error
    except BaseException:
        watch.leave("failed")
        raise
    watch.leave("done")


def _make_team(
    layout: Layout, rank: int, timeout: float, limit: timedelta, device_kind: str
) -> Team:
    mesh = init_device_mesh(
        device_kind, (layout.data, layout.layers), mesh_dim_names=("data", "layers")
    )
    layer_index, data_index = layout.place(rank)
    names = [_role(layout, other) for other in range(layout.size)]
    # A connection of its own: the main thread blocks the other one while it waits.
    watch = Watch(rank, names, timeout, _connect(limit), _store_keeper())
    distributed.barrier()
    watch.start()
    groups = mesh.get_group("layers"), mesh.get_group("data")
    return Team(layout, rank, layer_index, data_index, *groups, watch, device_kind)


def _role(layout: Layout, rank: int) -> str:
    layer_index, data_index = layout.place(rank)
    words = []
    if layout.layers > 1:
        words.append(f"layers {layer_index} of 0 to {layout.layers - 1}")
    if layout.data > 1:
        words.append(f"data {data_index} of 0 to {layout.data - 1}")
    return ", ".join(words) or "alone"


def _connect(limit: timedelta, *, host: bool = False) -> Store:
    """A connection to the store where the ranks meet.

    Its keys begin with the number of restarts: torchrun's store may outlive the processes, and
    what the dead have left in it would lead the new ones astray.
    """
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=host, timeout=limit
    )
    return PrefixStore(f"auglocal/{num_restarts()}", store)


def _torchrun_keeps_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store_keeper() -> int | None:
    """The rank that holds the store where something else than torchrun started the processes."""
    return None if _torchrun_keeps_the_store() else 0


def _device_kind(name: str) -> str:
    """The CPU's kind, or a GPU's, with this process on a GPU of its own.

    Raises:
        InputError: no such device can be had, or PyTorch cannot send from it.
    """
    if name == "mps":
        raise InputError("--parallel runs on cpu or cuda, not on mps; give --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"This machine has {torch.cuda.device_count()} GPUs, and NCCL wants one for each of "
            f"its processes; give a smaller --nproc-per-node, or --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return "cuda"
