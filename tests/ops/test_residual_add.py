"""Residual sum with shared slots: what it promises beyond test_layer_ops.py."""

import pytest
import torch
from backends import OwnCalls, backends_of, kernels_of
from layer_cases import CASES, RESIDUAL, make, make_lengths, options, results

from mbt_fast.functional import add_layer_norm, residual_add, share_slots_

backends = pytest.mark.parametrize("backend", backends_of("residual_add"))
kernels = pytest.mark.parametrize("backend", kernels_of("residual_add"))


@backends
def test_absent_streams_receive_the_mean_where_add_layer_norm_writes_zeros(backend):
    case = CASES["absent-stream"]
    streams, branches, weights, biases = make(case)
    sums = residual_add(streams, branches, **options(case), backend=backend)
    shared = [stream + branch for stream, branch in zip(streams, branches, strict=True)]
    share_slots_(shared, case.slots, lengths=make_lengths(case))
    torch.testing.assert_close(sums, shared)
    zeroed, _ = add_layer_norm(streams, branches, weights, biases, **options(case), backend=backend)
    absent = make_lengths(case)[0] == 0
    assert torch.equal(sums[0][absent, -case.slots :], sums[1][absent, -case.slots :])
    assert sums[0][absent, -case.slots :].ne(0).all()
    assert zeroed[0][absent, -case.slots :].eq(0).all()


@kernels
@pytest.mark.parametrize("name", ["no-slots", "one-stream"])
def test_the_gradient_of_a_plain_sum_is_what_arrives(name, backend):
    """No kernel in the backward, and no copy: one stream, or several without slots."""
    streams, branches = RESIDUAL.make(CASES[name])
    leaves = [t.requires_grad_() for t in (*streams, *branches)]
    douts = [torch.randn_like(stream) for stream in streams]
    with OwnCalls() as own:
        sums = residual_add(streams, branches, n_bottlenecks=CASES[name].slots, backend=backend)
        grads = torch.autograd.grad(sums, leaves, douts)
    assert own.names == ["residual_add_fwd"]
    assert [g.data_ptr() for g in grads] == 2 * [d.data_ptr() for d in douts]


@kernels
def test_only_what_differs_is_written(backend):
    """Without slots the stream's gradient is what arrives; without keep the branch's is that."""
    given = []
    grads = results(
        RESIDUAL,
        case := CASES["dropped-in-one"],
        RESIDUAL.make(case),
        backend,
        layout=lambda t: given.append(t) or t,
    )[2:]
    assert [g.data_ptr() for g in grads[:2]] == [d.data_ptr() for d in given]
    assert grads[2].data_ptr() == given[0].data_ptr()
    assert grads[3].data_ptr() != given[1].data_ptr()


@kernels
def test_a_plain_sum_has_second_derivatives(backend):
    streams, branches = RESIDUAL.make(CASES["no-slots"])
    x = streams[0].requires_grad_()
    out = residual_add(streams, branches, backend=backend)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    torch.testing.assert_close(*torch.autograd.grad(grad.sum(), x), torch.full_like(x, 2))


def test_every_stream_needs_a_branch():
    x = torch.zeros(2, 4, 3)
    with pytest.raises(TypeError, match=r"branches\[0\] must be a tensor, got None"):
        residual_add([x], [None])
