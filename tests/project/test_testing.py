"""The tools of the tests themselves: cases that must fail."""

import time

import pytest
import torch

from mbt_fast.testing import assert_close_to_exact, interleaved_times, peak_memory, saved_bytes

CPU = torch.device("cpu")
EXACT = torch.linspace(-3, 3, 101, dtype=torch.float64)


def close(actual, eager=None, exact=EXACT):
    eager = exact.to(actual.dtype) if eager is None else eager
    assert_close_to_exact(actual, eager, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rounding_once_is_accepted(dtype):
    close(EXACT.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("index", [0, 50, 100])
def test_one_wrong_element_is_refused(dtype, index):
    actual = EXACT.to(dtype)
    actual[index] += 32 * torch.finfo(dtype).eps * 3
    with pytest.raises(AssertionError, match=rf"error .* at \[{index}\]"):
        close(actual)


def test_eager_error_widens_the_bound_and_no_further():
    error = torch.zeros_like(EXACT)
    error[7] = 0.01
    eager = (EXACT + error).float()
    close((EXACT + 3.9 * error).float(), eager)
    with pytest.raises(AssertionError, match="exceeds"):
        close((EXACT + 4.1 * error).float(), eager)
    large = (EXACT + 100 * error).bfloat16()  # 16-bit types get a factor of 2, not 4
    close((EXACT + 195 * error).bfloat16(), large)
    with pytest.raises(AssertionError, match="exceeds"):
        close((EXACT + 215 * error).bfloat16(), large)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused(value):
    actual = EXACT.float()
    actual[3] = value
    with pytest.raises(AssertionError, match="not finite"):
        close(actual)


def test_the_right_infinity_is_accepted_and_the_wrong_one_refused():
    exact = EXACT.clone()
    exact[0] = -torch.inf
    close(exact.float(), exact=exact)
    for wrong in (torch.inf, 1e30):
        actual = exact.float()
        actual[0] = wrong
        with pytest.raises(AssertionError, match="infinity"):
            close(actual, exact=exact)


def test_shape_and_dtype_are_compared():
    with pytest.raises(AssertionError, match="shape"):
        close(EXACT.float()[:5])
    with pytest.raises(AssertionError, match="dtype"):
        close(EXACT.float(), EXACT.half())


def test_interleaved_times_are_in_rounds():
    calls = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abcd"}
    times = interleaved_times(variants, CPU, seconds=0, min_rounds=4)
    assert not times.interrupted
    assert all(len(seconds) == 4 for seconds in times.seconds.values())
    assert all(sorted(calls[i : i + 4]) == list("abcd") for i in range(0, 16, 4))
    assert len({tuple(calls[i : i + 4]) for i in range(0, 16, 4)}) > 1


def test_interleaved_times_measure():
    times = interleaved_times(
        {"sleep": lambda: time.sleep(0.02), "none": lambda: None}, CPU, seconds=0
    )
    assert min(times.seconds["sleep"]) >= 0.02 > max(times.seconds["none"])


def test_interrupt_keeps_what_was_measured():
    calls = []

    def run():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    times = interleaved_times({"a": run, "b": run}, CPU, seconds=0, min_rounds=3)
    assert times.interrupted
    assert sorted(map(len, times.seconds.values())) == [2, 2]


def test_peak_memory_counts_temporaries():
    megabyte = torch.ones(2**18)

    def run():
        first = megabyte.neg()
        second = first.neg()
        del first
        return second.neg()

    assert peak_memory(run, CPU) == 2 * megabyte.nbytes


def test_saved_bytes_counts_memory_once_and_no_parameters():
    weight = torch.ones(10, 10, requires_grad=True)

    def run():
        hidden = torch.ones(3, 10, requires_grad=True) @ weight  # keeps both: 120 and 400 bytes
        view = hidden.view(10, 3)
        return (hidden * hidden).sum() + (view @ view.T).sum()  # hidden is kept once: 120 bytes

    assert saved_bytes(run, [weight]) == 240
    assert saved_bytes(run) == 640
