"""Training on two processes: the gradients are those of one process with both halves of the batch.

Processes talk through gloo on the CPU. Parameters of a modality that is absent on one rank, and
branches that all examples of a rank drop, take part in the reduction all the same.
"""

import os
import socket
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from model_cases import EXECUTIONS, int32, random_inputs
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mbt_fast import create_model
from mbt_fast.testing import assert_close_to_exact

RANKS, PER_RANK = 2, 2
SECONDS = 300  # on a quiet machine it takes 10
pytestmark = [pytest.mark.slow, pytest.mark.distributed]
DTYPES = (torch.float64, torch.float32)
CASES = {  # how, stochastic depth, lengths of the whole batch
    "norms": (EXECUTIONS["default"], 0.0, {}),
    "mlp": (EXECUTIONS["recompute all"], 0.0, {}),
    # In the last layer hardly a branch is left: one is dropped by every example of a rank.
    "skipped": (EXECUTIONS["recompute all"], 0.99, {}),
    # No example of the first rank has sound: left out, it would leave the second one waiting.
    "absent on one rank": (EXECUTIONS["default"], 0.0, {"spectrogram": int32(0, 0, 9, 5)}),
}


def model_of(dtype, options, drop_rate=0.0):
    torch.manual_seed(0)
    model = create_model("mbt_tiny", fusion_layer=1, stochastic_depth=drop_rate).train()
    torch.nn.init.normal_(model.head.weight)
    return model.to(dtype).set_execution(**options)


def batch_of(dtype):
    torch.manual_seed(1)
    inputs = random_inputs(RANKS * PER_RANK)
    return {m: x.to(dtype) for m, x in inputs.items()}


def half_of(inputs, rank):
    return {m: x[rank * PER_RANK : (rank + 1) * PER_RANK] for m, x in inputs.items()}


def loss_of(model, inputs, lengths, seed):
    torch.manual_seed(seed)  # who survives
    return model(inputs, lengths).square().sum()


def data_parallel(model):
    return DistributedDataParallel(model)


def sharded(model):
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def checkpointed(model):
    """Layer by layer, and data parallel around it."""
    for layer in model.layers:
        run = layer.forward
        layer.forward = lambda *args, run=run, **kw: checkpoint(
            run, *args, use_reentrant=False, **kw
        )
    return DistributedDataParallel(model)


WRAPPERS = {"DDP": data_parallel, "FSDP2": sharded, "checkpointing in DDP": checkpointed}


def rank_of_two(rank, port, folder, wrapper):
    """What each process does. Models are gone before the process group is, which waits for them."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    for case, setting in CASES.items():
        grads = gradients_of_two(rank, WRAPPERS[wrapper], *setting)
        if rank == 0:
            torch.save(grads, folder / f"{case}.pt")
    dist.barrier()
    dist.destroy_process_group()


def gradients_of_two(rank, wrap, options, drop_rate, lengths):
    """Of all parameters, after both ranks have reduced them."""
    model = model_of(torch.float32, options, drop_rate)
    wrapped = wrap(model)  # DDP reduces only while it lives
    inputs = half_of(batch_of(torch.float32), rank)
    loss_of(wrapped, inputs, half_of(lengths, rank), seed=rank).backward()
    return {name: whole(p.grad) for name, p in model.named_parameters()}


def whole(grad):
    """Of a sharded gradient, all of it."""
    return grad.full_tensor() if hasattr(grad, "full_tensor") else grad


def gradients_of_one(dtype, drop_rate, lengths):
    """Both halves by one process, nothing saved; the mean over the ranks, as DDP takes it."""
    model, inputs = model_of(dtype, EXECUTIONS["leave nothing out"], drop_rate), batch_of(dtype)
    for rank in range(RANKS):
        loss = loss_of(model, half_of(inputs, rank), half_of(lengths, rank), seed=rank)
        (loss / RANKS).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradients_are_those_of_one_process(wrapper, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments, deadline = (port, tmp_path, wrapper), time.monotonic() + SECONDS
    ranks = mp.spawn(rank_of_two, arguments, nprocs=RANKS, join=False, daemon=True)
    while not ranks.join(timeout=1):
        assert time.monotonic() < deadline, f"the ranks have not ended after {SECONDS} s"
    for case, (_, *setting) in CASES.items():
        actual = torch.load(tmp_path / f"{case}.pt")
        exact, eager = (gradients_of_one(dtype, *setting) for dtype in DTYPES)
        assert actual.keys() == exact.keys()
        for name, grad in exact.items():
            assert_close_to_exact(actual[name], eager[name], grad, name=f"{case}: {name}")
