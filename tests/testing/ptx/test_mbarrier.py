"""Phases of mbarriers, and waits for them."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

from programs import BARRIER, execute, nans

from mbt_fast.testing import ptx
from mbt_fast.testing.ptx.mbarrier_object import MAX_COUNT, MBarrier


def test_a_phase_ends_with_the_last_arrival_and_the_last_byte():
    barrier = MBarrier(2)
    barrier.expect(48)
    barrier.arrive()
    barrier.complete(48)
    assert barrier.phase == 0
    barrier.arrive()
    assert (barrier.phase, barrier.pending, barrier.transactions) == (1, 2, 0)


def test_bytes_may_come_before_they_are_announced():
    barrier = MBarrier(1)
    barrier.complete(16)
    assert barrier.transactions == -16
    barrier.expect(16)
    barrier.arrive()
    assert barrier.phase == 1


def test_the_parity_asked_for_is_that_of_the_phase_which_is_past():
    barrier = MBarrier(1)
    assert barrier.is_complete(1), "before phase 0 lies a complete one"
    assert not barrier.is_complete(0)
    barrier.arrive()
    assert barrier.is_complete(0)
    assert not barrier.is_complete(1)


def test_a_phase_that_nobody_has_seen_end_is_not_followed_by_arrivals():
    barrier = MBarrier(1)
    barrier.arrive()
    with pytest.raises(ValueError, match="no wait has seen phase 0 complete"):
        barrier.arrive()
    barrier.observe(0)
    barrier.arrive()
    assert barrier.phase == 2


@pytest.mark.parametrize("count", [0, MAX_COUNT + 1])
def test_counts_have_bounds(count):
    with pytest.raises(ValueError, match=f"1 to {MAX_COUNT} arrivals, got {count}"):
        MBarrier(count)


def test_too_many_bytes_are_refused():
    barrier = MBarrier(1)
    barrier.expect(MAX_COUNT)
    with pytest.raises(ValueError, match=f"at most {MAX_COUNT} bytes"):
        barrier.expect(1)


def test_arrivals_beyond_those_expected_are_refused():
    barrier = MBarrier(2)
    barrier.expect(16)
    barrier.arrive(2)
    with pytest.raises(ValueError, match="1 arrivals at an mbarrier that awaits 0"):
        barrier.arrive()


INIT = "    @%p1 mbarrier.init.shared::cta.b64 [%r2], {count};\n" + BARRIER
ARRIVE = "    mbarrier.arrive.shared::cta.b64 _, [%r2];\n"


def wait(parity, label):
    return (
        f"{label}:\n    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], {parity};\n"
        f"    @!%p2 bra {label};\n"
    )


# The second half of the block stores, the first reads what it stored.
HAND_OVER = (
    INIT.format(count=64)
    + "    setp.lt.u32 %p3, %r1, 64;\n    @%p3 bra $reads;\n"
    + "    shl.b32 %r3, %r1, 2;\n    add.s32 %r3, %r3, %r2;\n    st.shared.b32 [%r3], %r1;\n"
    + ARRIVE
    + "    bra $end;\n$reads:\n"
    + wait(0, "$again")
    + "    shl.b32 %r3, %r1, 2;\n    add.s32 %r3, %r3, %r2;\n    ld.shared.b32 %r4, [%r3+256];\n"
    + "    mul.wide.u32 %rd4, %r1, 4;\n    add.s64 %rd4, %rd2, %rd4;\n"
    + "    st.global.b32 [%rd4], %r4;\n$end:\n"
)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_what_is_stored_before_arriving_is_read_behind_the_wait(seed):
    result = torch.zeros(64, dtype=torch.int32)
    execute(HAND_OVER, torch.zeros(1), result, seed=seed)
    assert result.tolist() == list(range(64, 128))


def refused(body, message):
    with pytest.raises(ptx.PtxError, match=message):
        execute(body, torch.zeros(1), nans(64))


def test_a_missing_arrival_is_a_deadlock():
    refused(
        HAND_OVER.replace(INIT.format(count=64), INIT.format(count=65)),
        "all threads wait: for an mbarrier in phase 0, 1 of 65 arrivals and 0 bytes to come",
    )


def test_the_wrong_parity_lets_threads_read_too_early():
    result = torch.zeros(64, dtype=torch.int32)
    execute(HAND_OVER.replace("[%r2], 0;", "[%r2], 1;"), torch.zeros(1), result, seed=0)
    early = torch.zeros(64, dtype=torch.int32)
    execute(HAND_OVER.replace("[%r2], 0;", "[%r2], 1;"), torch.zeros(1), early, seed=1)
    assert (result == -1).any() or (early == -1).any(), "what nobody stored is 0xFFFFFFFF"


def test_an_mbarrier_must_be_initialised():
    refused(BARRIER + ARRIVE, "there is no mbarrier at this address")
    refused(BARRIER + wait(0, "$again"), "there is no mbarrier at this address")


def test_an_mbarrier_is_initialised_once():
    refused(INIT.format(count=64) * 2, "mbarrier.inval comes first")


def test_memory_of_an_mbarrier_is_not_for_other_use():
    store = "    st.shared.b32 [%r2], %r1;\n" + BARRIER
    refused(INIT.format(count=128) + store + ARRIVE, "the mbarrier at this address was overwritten")


def test_after_inval_the_memory_is_free():
    body = INIT.format(count=128) + ARRIVE + BARRIER
    inval = "    @%p1 mbarrier.inval.shared::cta.b64 [%r2];\n" + BARRIER
    execute(body + inval + "    st.shared.b32 [%r2], %r1;\n", torch.zeros(1), nans(1))
    refused(body + inval + ARRIVE, "there is no mbarrier at this address")


def test_an_mbarrier_must_be_aligned():
    refused(INIT.format(count=1).replace("[%r2]", "[%r2+4]"), "must be a multiple of 8")


def test_a_parity_is_0_or_1():
    refused(INIT.format(count=1) + wait(2, "$again"), "parity of a phase must be 0 or 1")


@pytest.mark.parametrize(
    "text",
    [
        "mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r2], 0;",
        "mbarrier.try_wait.shared::cta.b64 %p2, [%r2], %rd1;",
        "mbarrier.arrive.shared::cta.b64 %rd3, [%r2];",
        "mbarrier.arrive.shared::cluster.b64 _, [%r2];",
        "mbarrier.arrive_drop.shared::cta.b64 _, [%r2];",
    ],
)
def test_other_forms_are_not_implemented(text):
    refused(INIT.format(count=1) + text, "implemented")
