"""What a rank holds of a sharded model, asked of FSDP2 itself on a world that does not exist."""

from typing import cast

import torch.distributed as dist

from mbt_fast.errors import InputError
from mbt_fast.models import MBT


def held_parameters(model: MBT, world: int) -> int:
    """Parameters that rank 0, whose share is the largest, holds of a model that FSDP2 shards.

    Args:
        model: On the meta device; it is sharded in place.
        world: Ranks; a group of the backend ``"fake"``, whose collectives do nothing.

    Raises:
        InputError: This process belongs to a group already.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    if dist.is_initialized():
        raise InputError("a world must be planned by one process, without torchrun")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model, mesh=mesh)  # layers as units of their own would not change the shares
        return sum(cast(DTensor, p).to_local().numel() for p in model.parameters())
    finally:
        dist.destroy_process_group()
