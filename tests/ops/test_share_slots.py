"""The shared update in place: Eq. 9, over the present streams."""

import pytest
import torch

from mbt_fast import share_slots_


def test_slots_become_the_mean_and_own_tokens_stay():
    first, second = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    mean = (first[:, -2:] + second[:, -2:]) / 2
    own = [first[:, :-2].clone(), second[:, :-2].clone()]
    share_slots_([first, second], 2)
    for stream, before in zip((first, second), own, strict=True):
        torch.testing.assert_close(stream[:, -2:], mean)
        assert torch.equal(stream[:, :-2], before)


def test_absent_streams_take_no_part():
    first, second = torch.randn(3, 5, 3), torch.randn(3, 4, 3)
    a, b = first[:, -2:].clone(), second[:, -2:].clone()
    lengths = [
        torch.tensor([3, 0, 2], dtype=torch.int32),
        torch.tensor([0, 2, 1], dtype=torch.int32),
    ]
    share_slots_([first, second], 2, lengths=lengths)
    expected = torch.stack([a[0], b[1], (a[2] + b[2]) / 2])
    torch.testing.assert_close(first[:, -2:], expected)
    torch.testing.assert_close(second[:, -2:], expected)


def test_gradient_is_that_of_the_mean():
    leaves = [torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def run(*streams):
        streams = [stream * 1 for stream in streams]
        share_slots_(streams, 1)
        return tuple(streams)

    assert torch.autograd.gradcheck(run, leaves)


def test_nothing_to_share_changes_nothing():
    streams = [torch.randn(1, 3, 2), torch.randn(1, 2, 2)]
    before = [stream.clone() for stream in streams]
    share_slots_(streams, 0)
    share_slots_(streams[:1], 2)
    assert all(torch.equal(*pair) for pair in zip(streams, before, strict=True))


X = torch.zeros(2, 4, 3)
BAD = {
    "negative": ([X], -1, ValueError, "n_bottlenecks must be at least 0, got -1"),
    "too many": ([X], 5, ValueError, r"streams\[0\] must have at least n_bottlenecks = 5 rows"),
    "none": ([], 1, ValueError, "streams must hold at least one stream"),
    "a tensor": (X, 1, TypeError, "streams must be a sequence of tensors"),
    "rank": ([X[0]], 1, ValueError, r"streams\[0\] must have shape \[B, S, C\]"),
    "channels": ([X, X[..., :2]], 1, ValueError, r"streams\[1\] must have shape \[B, S, C\]"),
    "dtype": ([X, X.half()], 1, TypeError, r"streams\[1\] must have dtype"),
}


@pytest.mark.parametrize(("streams", "slots", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(streams, slots, error, message):
    with pytest.raises(error, match=message):
        share_slots_(streams, slots)
