"""Two warps at one place in shared memory: found in every order of the warps."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

import numpy as np
from elementwise import THREADS, execute

from mbt_fast.testing import ptx

THREAD = np.arange(THREADS, dtype=np.uint32)
SEEDS = pytest.mark.parametrize("seed", [None, 0, 1])
PLACES = """
    mov.u32 {d}, 0;
    mov.u32 %r9, memory;
    shl.b32 %r8, %r1, 2;
    add.u32 %r9, %r9, %r8;
    xor.b32 %r10, %r9, 128;
    shr.u32 %r11, %r1, 5;
    and.b32 %r12, %r11, 1;
    setp.eq.u32 %p1, %r12, 0;"""  # %r9 is the thread's own word, %r10 one of a neighbouring warp's
BARRIER = "\n    bar.sync 0;"
STORE = "\n    st.shared.u32 [%r9], {a};"
LOAD = "\n    ld.shared.u32 {d}, [%r10];"
OVERWRITE = "\n    st.shared.u32 [%r10], {a};"
OWN_AGAIN = "\n    st.shared.u32 [%r9], 77;"
SAME = "\n    st.shared.u32 [memory], 5;"
EVEN_ARRIVES = """
    @%p1 bar.arrive 3, 128;
    @!%p1 bar.sync 3, 128;"""


def run(body, seed=None):
    return execute(PLACES + body, [THREAD], np.uint32, seed=seed)


ORDERED = {
    "a barrier after the stores": STORE + BARRIER + LOAD,
    "barriers around the loads": STORE + BARRIER + LOAD + BARRIER + OWN_AGAIN,
    "each warp for itself": STORE + "\n    ld.shared.u32 {d}, [%r9];" + STORE,
    "one value by all warps": SAME + SAME + BARRIER + "\n    ld.shared.u32 {d}, [memory];" + SAME,
    "half of the warps arrive, the others wait": "\n    @%p1 st.shared.u32 [%r9], {a};"
    + EVEN_ARRIVES
    + "\n    @!%p1 ld.shared.u32 {d}, [%r10];",
    "one value by all warps, which each reads": SAME + "\n    ld.shared.u32 {d}, [memory];",
    "bytes beside one another": """
    add.u32 %r13, %r11, 4;
    st.shared.u8 [memory], 1;
    mov.u32 %r14, memory;
    add.u32 %r14, %r14, %r13;
    st.shared.u8 [%r14], {a};""",
}
RACES = {
    "reads what another warp writes": STORE + LOAD,
    "writes what another warp reads": STORE + BARRIER + LOAD + OWN_AGAIN,
    "writes what another warp writes": STORE + OVERWRITE,
    "writes what another warp reads, behind a barrier of others": STORE
    + BARRIER
    + LOAD
    + EVEN_ARRIVES
    + "\n    @%p1 st.shared.u32 [%r9], 9;",
    "reads what another warp writes by a copy": """
    ld.param.u64 %rd1, [p0];
    cp.async.ca.shared.global [%r9], [%rd1], 4;
    cp.async.wait_all;"""
    + LOAD,
}


@SEEDS
@pytest.mark.parametrize("name", ORDERED)
def test_what_is_in_order_runs(name, seed):
    run(ORDERED[name], seed)


@SEEDS
@pytest.mark.parametrize("name", RACES)
def test_a_race_is_refused_in_every_order(name, seed):
    # Of two accesses the second is refused; which that is depends on the order.
    with pytest.raises(ptx.PtxError, match=r"what another warp .* no barrier between") as raised:
        run(RACES[name], seed)
    assert seed is not None or name.partition(", ")[0].removesuffix(" by a copy") in str(
        raised.value
    )
    assert "shared" in raised.value.text or "cp.async" in raised.value.text


def test_a_race_is_not_looked_for_where_other_things_order_warps():
    assert run(STORE + LOAD + "\n    atom.shared.add.u32 %r14, [memory+1024], 0;") is not None
