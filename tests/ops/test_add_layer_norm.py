"""Residual sum, slot mean and LayerNorm: what it promises beyond test_layer_ops.py."""

import pytest
import torch
from backends import backends_of, every_kernel, kernels_of
from layer_cases import CASES, NORM, assert_within_tolerance, make, stated_layer_norm

from mbt_fast.functional import add_layer_norm

backends = pytest.mark.parametrize("backend", backends_of("add_layer_norm"))


@backends
def test_eps_is_added_to_the_variance(backend):
    tensors = make(CASES["no-branch"])
    _, normed = add_layer_norm(*tensors, eps=0.5, backend=backend)
    expected = stated_layer_norm(CASES["no-branch"], *tensors, eps=0.5)[2:]
    torch.testing.assert_close(normed, [t.float() for t in expected])


@pytest.mark.parametrize(("kernel", "dtype"), every_kernel("add_layer_norm", [torch.float32]))
def test_variance_does_not_cancel(kernel, dtype):
    """E[x^2] - E[x]^2 would be all rounding here."""
    case = CASES["no-branch"]
    streams, *others = NORM.make(case, dtype)
    tensors = [[stream + 3000 for stream in streams], *others]
    assert_within_tolerance(NORM, case, tensors, kernel.backend)


@backends
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_spoils_itself_alone(backend, poison):
    streams, branches, weights, biases = make(CASES["no-slots"])
    streams[0][1, 3, 5] = poison
    _, normed = add_layer_norm(streams, branches, weights, biases, backend=backend)
    bad = normed[0].isnan()
    assert bad[1, 3].all()
    assert bad.sum() == normed[0].shape[-1]
    assert normed[1].isfinite().all()


@backends
def test_sums_are_the_streams_where_nothing_is_added(backend):
    streams, _, weights, biases = make(CASES["no-branch"])
    sums, _ = add_layer_norm(streams, None, weights, biases, backend=backend)
    assert all(total is stream for total, stream in zip(sums, streams, strict=True))


@pytest.mark.parametrize("backend", kernels_of("add_layer_norm"))
@pytest.mark.parametrize("unused", ["sums", "normed"])
def test_one_of_the_results_may_be_unused(unused, backend):
    grads = []
    for name in (backend, "reference"):
        torch.manual_seed(1)
        leaves = [[t.requires_grad_() for t in kind] for kind in make(CASES["two-streams"])]
        sums, normed = add_layer_norm(*leaves, n_bottlenecks=3, backend=name)
        loss = sum(t.square().sum() for t in (normed if unused == "sums" else sums))
        grads.append(torch.autograd.grad(loss, [*leaves[0], *leaves[1]]))
    torch.testing.assert_close(*grads)


X, W, K = torch.zeros(2, 4, 3), torch.zeros(3), torch.ones(2, dtype=torch.bool)
BAD = {  # beyond those of any sum
    "no channels": (([X[..., :0]], None, [W], [W]), {}, ValueError, "at least 1 channel"),
    "weights count": (([X], None, [], [W]), {}, ValueError, "weights must have 1 entries"),
    "weight shape": (([X], None, [W[:2]], [W]), {}, ValueError, r"weights\[0\] must have shape"),
    "weight none": (([X], None, [None], [W]), {}, TypeError, r"weights\[0\] must be a tensor"),
    "bias dtype": (
        ([X.half()], None, [W.half()], [W]), {}, TypeError,
        r"biases\[0\] must have dtype torch.float16 like weights\[0\], got torch.float32",
    ),
    "keep of nothing": (
        ([X], None, [W], [W]), {"keep": [K]}, ValueError,
        r"keep\[0\] must be None like branches\[0\], got a tensor of torch.bool",
    ),
    "eps type": (([X], None, [W], [W]), {"eps": "1"}, TypeError, "eps must be a number, got '1'"),
    "eps": (([X], None, [W], [W]), {"eps": -1.0}, ValueError, r"eps must be at least 0, got -1\.0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, options, error, message):
    with pytest.raises(error, match=message):
        add_layer_norm(*call, **options)
