"""The ranks that run one model between them: who has which modality, and which of its clips."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad

from mbt_fast.ops.streams import expand
from mbt_fast.parallel.exchange import sum_for_all, sum_for_each

DIM = "modality"  # of the mesh
Value = TypeVar("Value")


class ModalityGroup:
    """One model's ranks along the mesh dimension ``"modality"``.

    Ranks are dealt out in the order of the plan. Several ranks of one modality share the batch: the
    first has its first clips.

    Args:
        mesh: Has a dimension ``"modality"`` of as many ranks as the plan has.
        plan: Ranks per modality, each at least 1.

    Attributes:
        modality: Of this rank.
        part: Which part of the batch it has, from 0.
        parts: Ranks of its modality.
        ranks: The process group of all.
        replicas: That of the ranks with its modality; ``None`` where the plan has one for each.

    Raises:
        ValueError: Mesh and plan do not fit.
    """

    def __init__(self, mesh: DeviceMesh, plan: Mapping[str, int]) -> None:
        """Find this rank's place; all ranks of the world must do so."""
        _check(mesh, plan)
        own = mesh[DIM]
        index, ends = own.get_local_rank(), list(accumulate(plan.values()))
        which = next(i for i, end in enumerate(ends) if index < end)
        self.modality = list(plan)[which]
        self.parts = plan[self.modality]
        start = ends[which] - self.parts
        self.part = index - start
        self.ranks = own.get_group()
        self._has_looked = False
        self.replicas = None
        if max(plan.values()) > 1:
            replicas = dist.get_process_group_ranks(self.ranks)[start : ends[which]]
            self.replicas = _group_of(replicas)

    def mean_for_each(self, values: Tensor, length: Tensor | None) -> Tensor:
        """Mean over the modalities that an example has, for this rank's clips (Eq. 9).

        Whether an example has the modality travels as one more number beside its values.

        Args:
            values: ``[b, K]`` of this rank's clips; every rank makes something else of the mean.
            length: int ``[b]``, 0 where the modality is absent; ``None``: absent nowhere.

        Returns:
            ``[b, K]``; zero for an example without any modality.
        """
        total = sum_for_each(self._with_presence(values, length), self.ranks)
        own = slice(self.part * len(values), (self.part + 1) * len(values))
        return _mean(total[own])

    def mean_for_all(self, values: Tensor, length: Tensor | None) -> Tensor:
        """The same mean for all clips, ``[B, K]``; every rank must compute the same of it."""
        return _mean(sum_for_all(self._with_presence(values, length), self.ranks))

    def _with_presence(self, values: Tensor, length: Tensor | None) -> Tensor:
        """What this rank adds to the sum, ``[B, K + 1]``: zero where it has nothing."""
        present = values.new_ones(len(values), 1)
        if length is not None:
            present = expand(length > 0, values)
            values = torch.where(present, values, 0)
        joined = torch.cat([values, present.to(values.dtype)], dim=1)
        before, after = self.part, self.parts - 1 - self.part
        return pad(joined, (0, 0, before * len(values), after * len(values)))

    @torch.no_grad()
    def equalise(self, shared: Iterable[nn.Parameter], own: Iterable[nn.Parameter]) -> None:
        """Give ranks the parameters of the first: ``shared`` of all, ``own`` of its replicas."""
        for parameter in shared:
            dist.broadcast(local(parameter), group=self.ranks, group_src=0)
        if self.replicas is not None:
            for parameter in own:
                dist.broadcast(local(parameter), group=self.replicas, group_src=0)

    def check_clips(self, clips: int) -> None:
        """Refuse different batches, which collectives would wait for or mix up; looks once.

        Raises:
            ValueError: The ranks have not the same clips between them.
        """
        if self._has_looked:
            return
        found: list[Any] = [None] * dist.get_world_size(self.ranks)
        dist.all_gather_object(found, (self.modality, self.parts, clips), group=self.ranks)
        self._has_looked = True
        if len({parts * each for _, parts, each in found}) > 1:
            said = ", ".join(f"{m}: {parts} x {each}" for m, parts, each in dict.fromkeys(found))
            raise ValueError(f"inputs must hold as many clips of every modality, got {said}")

    def gather(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The entries of all ranks by name, on the first; nothing elsewhere."""
        given = dict(values) if self.part == 0 else {}
        found: list[Any] = [{}] * dist.get_world_size(self.ranks)
        first = dist.get_group_rank(self.ranks, dist.get_rank()) == 0
        dist.gather_object(given, found if first else None, group=self.ranks, group_dst=0)
        return {name: value for each in found for name, value in each.items()}


def local(tensor: Tensor) -> Tensor:
    """The part that this rank has of a sharded tensor; it shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _group_of(ranks: Sequence[int]) -> dist.ProcessGroup:
    """The group of some ranks; all ranks of the world must ask for theirs."""
    asked: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(asked, tuple(ranks))
    return dist.new_subgroups_by_enumeration([list(each) for each in sorted(set(asked))])[0]


def _mean(total: Tensor) -> Tensor:
    return total[:, :-1] / total[:, -1:].detach().clamp(min=1)


def _check(mesh: DeviceMesh, plan: Mapping[str, int]) -> None:
    names = mesh.mesh_dim_names or ()
    if DIM not in names:
        raise ValueError(
            f"mesh must have a dimension {DIM!r}, got {', '.join(names) or 'no names'}"
        )
    for modality, ranks in plan.items():
        if type(ranks) is not int or ranks < 1:
            raise ValueError(f"plan[{modality!r}] must be at least 1 rank, got {ranks!r}")
    size, needed = mesh[DIM].size(), sum(plan.values())
    if size != needed:
        raise ValueError(
            f"mesh must have {needed} ranks along {DIM!r} for the plan {dict(plan)}, got {size}"
        )
