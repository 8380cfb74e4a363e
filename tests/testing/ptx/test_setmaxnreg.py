"""Registers that warps hand over, and fences that are not implemented."""

import pytest
import torch

pytest.importorskip("numpy", reason="the executor needs numpy")

from programs import execute, nans

from mbt_fast.testing import ptx

# Three warp groups: 65536 / 384 threads = 168 registers. The first gives, the others take.
HAND_OVER = """
    setp.lt.u32 %p2, %r1, 128;
    @%p2 bra $gives;
    setmaxnreg.inc.sync.aligned.u32 240;
    bra $end;
$gives:
    setmaxnreg.dec.sync.aligned.u32 24;
$end:
"""


def run(body, seed=None):
    execute(body, torch.zeros(1), nans(1), threads=384, seed=seed)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_what_one_group_gives_two_groups_take(seed):
    run(HAND_OVER, seed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("inc.sync.aligned.u32 240", "inc.sync.aligned.u32 248"), "wait: for 248 registers of"),
        (
            ("inc.sync.aligned.u32 240", "inc.sync.aligned.u32 160"),
            "inc 160 in a warp that has 168",
        ),
        (("dec.sync.aligned.u32 24", "dec.sync.aligned.u32 176"), "dec 176 in a warp that has 168"),
        (("dec.sync.aligned.u32 24", "dec.sync.aligned.u32 30"), "a multiple of 8 from 24 to 256"),
        (("dec.sync.aligned.u32 24", "dec.sync.aligned.u32 16"), "a multiple of 8 from 24 to 256"),
        (("%r1, 128", "%r1, 113"), "all threads of a warp must execute this"),
    ],
)
def test_more_than_there_is_or_less_than_there_was_is_refused(change, message):
    with pytest.raises(ptx.PtxError, match=message):
        run(HAND_OVER.replace(*change))


@pytest.mark.parametrize("text", ["fence.proxy.alias", "fence.proxy.async.global"])
def test_other_fences_are_not_implemented(text):
    with pytest.raises(ptx.PtxError, match="not implemented"):
        run(f"    {text};\n")
