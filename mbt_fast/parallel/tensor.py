"""Tensor parallelism: every block is split over ranks by heads, and its MLP by hidden channels.

Each rank has ``H / n`` heads of every attention and ``1 / n`` of the hidden channels of every MLP.
The rest is on all ranks, and so are the streams: the forward of a block sums two tensors of the
size of its stream over the ranks, and its backward two more.
"""

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement

from mbt_fast.layers import Block
from mbt_fast.models import MBT

DIM = "tp"  # of the mesh
Model = TypeVar("Model", bound=MBT)


def tensor_parallel(model: Model, mesh: DeviceMesh) -> Model:
    """Split the blocks of a model over ranks, in place.

    Parameters keep their names. Those that are split become ``DTensor``, so that optimizers and
    ``torch.distributed.checkpoint`` know the whole. All ranks get the weights of the first. They
    must be given the same inputs and have the same random state; they compute the same logits, and
    must compute the same loss of them.

    Under ``fully_shard`` along another dimension the model trains exactly, but its state dict is
    refused: torch cannot put the packed weights of query, key and value together again.

    Args:
        model: An ``MBT`` with weights, or the part of one that ``modality_parallel`` makes.
        mesh: Has a dimension ``"tp"``.

    Returns:
        The model.

    Raises:
        ImportError: This torch has no placement for packed weights.
        ValueError: The mesh has no such dimension, its ranks do not divide heads and hidden
            channels, or the model has dropout or is on the meta device.
    """
    names = mesh.mesh_dim_names or ()
    if DIM not in names:
        raise ValueError(
            f"mesh must have a dimension {DIM!r}, got {', '.join(names) or 'no names'}"
        )
    ranks = mesh[DIM]
    _check(model, ranks.size())
    for layer in model.layers:
        for block in layer.values():
            _split(cast(Block, block), ranks)
    with torch.no_grad():
        for parameter in model.parameters():
            if not isinstance(parameter, DTensor):
                dist.broadcast(parameter, group=ranks.get_group(), group_src=0)
    return model


def _split(block: Block, ranks: DeviceMesh) -> None:
    plan: dict[str, ParallelStyle] = {
        "attn.qkv": _HeadwiseParallel(),
        "attn.proj": RowwiseParallel(),
        "mlp.fc1": ColwiseParallel(),
        "mlp.fc2": RowwiseParallel(),
    }
    parallelize_module(block, ranks, plan)
    block.attn.num_heads //= ranks.size()


class _HeadwiseParallel(ParallelStyle):
    """Columns of a packed Linear of query, key and value: each rank has some heads of all three.

    Rows of the weight are ordered by query, key and value first, then by heads. So a rank's rows
    are not one range but three.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            heads = distribute_tensor(parameter, device_mesh, [_rows_of_three()])
            module.register_parameter(name, nn.Parameter(heads, parameter.requires_grad))

        def replicated(_: nn.Module, inputs: tuple[Tensor, ...]) -> DTensor:
            return DTensor.from_local(inputs[0], device_mesh, [Replicate()], run_check=False)

        def local(_: nn.Module, inputs: tuple[Tensor, ...], output: DTensor) -> Tensor:
            return output.to_local()

        module.register_forward_pre_hook(replicated)
        module.register_forward_hook(local)
        module.register_state_dict_post_hook(_refuse_further_sharding)
        return module


def _rows_of_three() -> Placement:
    """A share of each third of the rows; torch keeps the name to itself."""
    try:
        from torch.distributed.tensor.placement_types import _StridedShard
    except ImportError as error:
        raise ImportError(
            "tensor parallelism must find _StridedShard in torch.distributed.tensor, as in 2.13, "
            f"got torch {torch.__version__}"
        ) from error
    return _StridedShard(0, split_factor=3)


def _refuse_further_sharding(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """``full_tensor`` would put rows in the wrong order, without a word (torch 2.13)."""
    weight = state[prefix + "weight"]
    if isinstance(weight, DTensor) and weight.device_mesh.ndim > 1:
        raise NotImplementedError(
            f"{prefix}weight must be sharded along {DIM!r} alone, got "
            f"{', '.join(weight.device_mesh.mesh_dim_names or ())}: no placement of torch tells "
            "where the rows of three ranges are after a second split. Under FSDP2 a model in "
            "tensor parallelism trains, but cannot be saved"
        )


def _check(model: MBT, ranks: int) -> None:
    config = model.config
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "model in tensor parallelism must have weights: ranks would draw equal ones for "
            "different heads; got one on the meta device"
        )
    for name in ("num_heads", "mlp_dim"):
        value = getattr(config, name)
        if value % ranks:
            raise ValueError(f"ranks along {DIM!r} must divide {name} = {value}, got {ranks}")
    if config.dropout:
        raise ValueError(
            "dropout of a model in tensor parallelism must be 0: the masks of all ranks would be "
            f"equal; got {config.dropout}"
        )
