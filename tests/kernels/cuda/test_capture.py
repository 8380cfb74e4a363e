"""The CUDA kernels in a CUDA graph. What needs no GPU of it is in ``test_launches.py``."""

import hopper
import pytest
import torch
from attention_cases import DEVICE, make_lengths, make_qkv
from hopper import CASES
from hopper_calls import make_gradients

from mbt_fast import bottleneck_attention
from mbt_fast.testing import assert_close_to_exact

pytestmark = [pytest.mark.gpu, hopper.skip_without]


def captured(step):
    """The graph of a step, and the tensors that it fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["padding", "padding-wide"])
def test_replay_sees_new_values(name, deterministic, monkeypatch):
    """Tensor maps are arguments of the kernels, so a graph holds them; data stays where it is."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    case = CASES[name]
    qkv, lengths = make_qkv(case, torch.bfloat16, requires_grad=True), make_lengths(case)
    douts, _ = make_gradients(case, torch.bfloat16)

    def step():
        outs = bottleneck_attention(qkv, case.slots, lengths=lengths, update="mean", backend="cuda")
        return [*outs, *torch.autograd.grad(outs, qkv, douts)]

    graph, results = captured(step)
    with torch.no_grad():
        for old, new in zip(qkv, make_qkv(case, torch.bfloat16), strict=True):
            old.copy_(new)
        lengths[0].copy_(torch.full((case.batch,), 7, dtype=torch.int32, device=DEVICE))
    graph.replay()
    for replayed, fresh in zip(results, step(), strict=True):
        if deterministic:
            assert torch.equal(replayed, fresh)
        else:  # sums of dq in another order
            assert_close_to_exact(replayed, fresh, fresh.double())
