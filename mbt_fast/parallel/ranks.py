"""The processes of a run: which one this is, and what they agree on.

There is nothing of our own beneath: torchrun, or whoever sets its environment, starts the
processes, and ``torch.distributed`` connects them. A process that is alone calls none of it.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mbt_fast.errors import InputError
from mbt_fast.parallel.failure import failing
from mbt_fast.parallel.joining import join
from mbt_fast.parallel.watch import Place, Watch

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run. Every method but ``at`` must be called by all of them.

    Args:
        rank: Of this process, from 0.
        world: Number of processes.
        device: Where this one computes, as ``train.device`` names it: ``"cuda:1"``.
        small: Group for what is small and on the CPU; ``None`` for the one that there is.
        place: What this process does at the moment; shown where others wait for it.
    """

    rank: int = 0
    world: int = 1
    device: str = "auto"
    small: "dist.ProcessGroup | None" = None
    place: Place = field(default_factory=Place)

    @classmethod
    def alone(cls, device: str = "auto") -> "Ranks":
        """A process without others."""
        return cls(device=device)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def devices(self) -> "list[str] | None":
        """Of which torch keeps random numbers for this process; ``None`` for all that there are."""
        if self.world == 1:
            return None
        return [self.device] if self.device.startswith("cuda") else []

    def at(self, what: str, clips: Callable[[], str] | None = None) -> None:
        """Note what this process does now.

        Args:
            what: Such as ``"step 12, forward"``. All ranks come to the same places, in one order.
            clips: Names those that it has at hand; called if there is an error.
        """
        self.place.move(what, clips)

    def highest(self, values: Sequence[float]) -> list[float]:
        """For each number the greatest that a rank gives."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.small)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return bool(self.highest([flag])[0])

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """What every rank gives, from rank 0 on; nothing on the others. It is pickled."""
        if self.world == 1:
            return [item]
        items = [None] * self.world if self.main else None
        dist.gather_object(item, items, group=self.small)
        return items or []

    def exchange(self, item: Any) -> list[Any]:
        """What every rank gives, from rank 0 on, on every rank. It is pickled."""
        if self.world == 1:
            return [item]
        items = [None] * self.world
        dist.all_gather_object(items, item, group=self.small)
        return items

    def share(self, item: Any) -> Any:
        """What rank 0 gives, on every rank. It is pickled."""
        if self.world == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items, group=self.small)
        return items[0]

    def wait(self) -> None:
        """Until all are here."""
        self.highest([0])


@contextmanager
def start(device: str) -> Iterator[Ranks]:
    """Join the other processes of the run, for a while.

    They are those of the group that exists, or else of torchrun's environment; with ``WORLD_SIZE``
    1 or without it this process is alone. Without others nothing of ``torch.distributed`` is
    called. Who fails first raises its own error. The others end with one line, within seconds: a
    process that is stuck in a collective is ended by ``os._exit``, for nothing else can.

    Args:
        device: As ``train.device`` names it.

    Raises:
        InputError: The environment or the device does not fit; before anything is joined.
        RunError: Another rank has failed or is gone.
    """
    world = world_size()
    if world == 1:
        yield Ranks.alone(device)
        return
    device, exists = _device(device), _exists()
    if not exists:
        _join(device)
    on_gpu = device.startswith("cuda")
    small = dist.new_group(backend="gloo") if on_gpu else None
    ranks = Ranks(dist.get_rank(), world, device, small)
    store = dist.distributed_c10d._get_default_store()
    # A store may hold what was said in a run before, in this group or in one that was restarted.
    store = dist.PrefixStore(ranks.share(uuid.uuid4().hex), store)
    try:
        watch = Watch(ranks.rank, world, store, ranks.place)
        with watch, failing(watch, launched=not exists):
            yield ranks
            ranks.wait()  # or those that still listen to this one would miss it
    except BaseException:
        if not exists and not on_gpu:  # NCCL may wait for the others
            dist.destroy_process_group()
        raise
    if not exists:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that ``start`` would join."""
    return dist.get_world_size() if _exists() else _number("WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this process is the one that writes and prints, inside of ``start`` or after it."""
    if _exists():
        return dist.get_rank() == 0
    return world_size() == 1 or _number("RANK", 0) == 0


def _exists() -> bool:
    """Whether there is a group already."""
    return dist.is_available() and dist.is_initialized()


def _join(device: str) -> None:
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise InputError(
            f"{missing[0]} must be set where WORLD_SIZE is above 1, as torchrun sets it"
        )
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        join("nccl", device_id=torch.device(device))
    else:
        join("gloo")


def _device(name: str) -> str:
    """The device of this process: the GPU of its number on this host, or the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:"):
        raise InputError(f"train.device must leave the GPU to each of several ranks, got {name!r}")
    if name != "cuda":
        return name
    own, count = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if own >= count:
        raise InputError(f"a host must have a GPU for each rank, got rank {own} of {count} GPUs")
    return f"cuda:{own}"


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal():
        raise InputError(f"{variable} must be a number, got {value!r}")
    return int(value)
