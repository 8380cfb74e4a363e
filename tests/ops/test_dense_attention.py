"""Dense attention, the baseline: keys of all modalities, and keys that are not valid."""

import pytest
import torch
from backends import backends_of

from mbt_fast import dense_attention
from mbt_fast.testing import assert_close_to_exact

backends = pytest.mark.parametrize("backend", backends_of("dense_attention"))


def inputs(dtype=torch.float32):
    query = torch.randn(2, 3, 5, 24).to(dtype)
    key, value = (torch.randn(2, 3, 11, 24).to(dtype) for _ in range(2))
    return query, key, value


def stated_independently(query, key, value, valid):
    """Per example, over the valid keys only."""
    out = torch.zeros_like(query)
    for example in range(query.shape[0]):
        rows = valid[example].nonzero()[:, 0]
        if len(rows):
            weights = (query[example] @ key[example][:, rows].mT / 24**0.5).exp()
            out[example] = weights / weights.sum(-1, keepdim=True) @ value[example][:, rows]
    return out


@backends
@pytest.mark.parametrize("keys", ["all", "some", "none of one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_statement(backend, keys, dtype):
    query, key, value = inputs(dtype)
    valid = torch.ones(2, 11, dtype=torch.bool) if keys == "all" else torch.rand(2, 11) > 0.5
    if keys == "none of one":
        valid[1] = False
    mask = None if keys == "all" else valid
    actual = dense_attention(query, key, value, valid=mask, backend=backend)
    eager = dense_attention(query, key, value, valid=mask, backend="reference")
    exact = stated_independently(query.double(), key.double(), value.double(), valid)
    assert_close_to_exact(actual, eager, exact)


@backends
def test_gradients_of_invalid_keys_are_zero(backend):
    query, key, value = (t.requires_grad_() for t in inputs(torch.float64))
    valid = torch.rand(2, 11) > 0.5
    dense_attention(query, key, value, valid=valid, backend=backend).sum().backward()
    for tensor in (key, value):
        assert tensor.grad.transpose(1, 2)[~valid].eq(0).all()
    assert value.grad.ne(0).any()


Q = torch.zeros(2, 3, 5, 24)
BAD = {
    "rank": ({"query": Q[0]}, ValueError, r"query must have shape \[B, H, rows, D\]"),
    "heads": ({"key": Q[:, :2]}, ValueError, r"key must have shape \[2, 3, 5, 24\], got"),
    "keys": ({"value": Q[:, :, :4]}, ValueError, r"value must have shape \[2, 3, 5, 24\], got"),
    "dtype": ({"key": Q.half()}, TypeError, "key must have dtype torch.float32 like query"),
    "mask dtype": ({"valid": torch.ones(2, 5)}, TypeError, "valid must be a bool tensor"),
    "mask shape": ({"valid": torch.ones(2, 4) > 0}, ValueError, r"valid must have shape \[2, 5\]"),
    "scale": ({"scale": Q}, TypeError, "scale must be a number or None"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        dense_attention(**{"query": Q, "key": Q, "value": Q, **change})


@backends
def test_nan_in_keys_left_out_does_not_leak(backend):
    query, key, value = inputs()
    valid = torch.rand(2, 11) > 0.5
    dirty = [t.masked_fill(~valid[:, None, :, None], float("nan")) for t in (key, value)]
    expected = dense_attention(query, key, value, valid=valid, backend=backend)
    assert torch.equal(dense_attention(query, *dirty, valid=valid, backend=backend), expected)
