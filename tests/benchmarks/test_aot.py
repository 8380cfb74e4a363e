"""The reader of machine code, what it counts, and the model on top of it."""

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.aot import tables  # noqa: E402
from benchmarks.aot.model import (  # noqa: E402
    APART,
    BESIDE,
    MULTIPROCESSORS,
    Problem,
    Walk,
    cycles_of_item,
    cycles_of_turn,
    fit_of,
    limit_of,
    longest_block,
    shift_of,
    tflops,
)
from benchmarks.aot.sass import inner_loops, instructions, shortest_turn  # noqa: E402
from benchmarks.aot.turns import Resources, Turn, blocks_per_multiprocessor, turns  # noqa: E402

LOOP = """
        /*0010*/                   MOV R1, R2 ;              /* 0x0 */
                                                             /* 0x0 */
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT ;
        /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0040*/               @P0 BRA 0x70 ;
        /*0050*/                   FSEL R3, R3, R4, P1 ;
        /*0060*/                   LDS.128 R8, [R9] ;
        /*0070*/                   MUFU.EX2 R5, R6 ;
        /*0080*/                   HGMMA.64x64x16.F32.BF16 R56, R88, gdesc[UR12].tnspB, R56, gsb0 ;
        /*0090*/                   MUFU.EX2 R5, R7 ;
        /*00a0*/              @!P3 LDGSTS.E.BYPASS.128 [R37], desc[UR28][R24.64] ;
        /*00b0*/              @!PT LDS RZ, [RZ] ;
        /*00c0*/               @P1 BRA 0x20 ;
        /*00d0*/                   EXIT ;
"""
TURN = Turn(100, issue=200, tensor=100, exponentials=50, shared=80, hidden=0.0)


def test_a_turn_leaves_out_what_it_may_skip():
    (loop,) = inner_loops(LOOP, "HGMMA")
    assert [one.address for one in loop] == list(range(0x20, 0xD0, 0x10))
    skipped = {one.address for one in loop} - {one.address for one in shortest_turn(loop, "HGMMA")}
    assert skipped == {0x50, 0x60}


def test_a_turn_meets_every_product_even_where_a_branch_avoids_one():
    around = LOOP.replace("@P0 BRA 0x70", "@P0 BRA 0x90")
    (loop,) = inner_loops(around, "HGMMA")
    turn = shortest_turn(loop, "HGMMA")
    assert sum(one.opcode.startswith("HGMMA") for one in turn) == 2


def test_instructions_are_read_with_their_predicates():
    code = instructions(LOOP)
    assert len(code) == 13
    assert [one.predicate for one in code if one.predicate] == ["P0", "!P3", "!PT", "P1"]
    assert code[3].target == 0x70
    assert code[0].target is None


def test_cycles_of_a_turn():
    (found,) = turns(LOOP, arch=90, warps=8)
    assert found.instructions == 9
    assert found.issue == 9 * 8 / 4
    assert found.tensor == 2 * (2 * 2 * 64 * 64 * 16) / 4096  # groups, products, FLOP of one
    assert found.exponentials == 2 * 8 * 32 / 16
    products = 2 * (2 * 16 * (64 + 64) + 2 * 16 * 64)  # the first has both operands there
    assert found.shared == (products + 8 * 512) / 128
    assert found.hidden == 0.5


def test_blocks_that_fit():
    assert blocks_per_multiprocessor(Resources(128, 0, 65536), warps=8, arch=90) == 2
    assert blocks_per_multiprocessor(Resources(129, 0, 65536), warps=8, arch=90) == 1
    assert blocks_per_multiprocessor(Resources(32, 0, 120_000), warps=8, arch=90) == 1
    assert blocks_per_multiprocessor(Resources(32, 0, 0), warps=8, arch=90) == 8


def test_one_warp_group_alone_hides_nothing():
    assert cycles_of_turn(TURN, groups=1, unhidden=0.5) == 300
    assert cycles_of_turn(TURN, groups=2, unhidden=0.5) == 250


def test_the_fit_follows_what_is_hidden():
    assert fit_of(TURN) == APART
    assert fit_of(TURN._replace(hidden=1.0)) == pytest.approx(BESIDE)


def test_padding_of_tiles_costs_time_and_is_of_no_use():
    walk = Walk(TURN, block_m=128, block_n=64, groups=2)
    whole, more = (tflops([walk], 2, Problem(rows, 4, 64)) for rows in (1024, 1025))
    assert more < whole
    slower = tflops([walk], 2, Problem(1024, 4, 64), bytes_per_channel=100)
    assert slower < whole


def test_a_group_without_rows_saves_its_share_of_the_turns_but_not_of_the_start():
    walk = Walk(TURN, block_m=128, block_n=64, groups=2, start=64)
    whole = cycles_of_turn(TURN, 2, APART.unhidden)
    assert cycles_of_item(walk, rows=640, own=64) == pytest.approx(11 * whole)
    skipping = walk._replace(skips=True)
    assert cycles_of_item(skipping, rows=640, own=65) == pytest.approx(11 * whole)
    alone = cycles_of_turn(TURN, 1, APART.unhidden) / 2
    assert cycles_of_item(skipping, rows=640, own=64) == pytest.approx(whole + 10 * alone)


def test_blocks_that_stay_take_as_long_as_the_one_that_takes_longest():
    assert longest_block([1.0] * (2 * MULTIPROCESSORS + 1), shift=0) == 3
    items = [3.0, 1.0] * MULTIPROCESSORS
    assert longest_block(items, shift=0) == 6
    assert longest_block(items, shift_of(2)) == 4


def test_shift_lets_a_block_take_every_tile_of_a_head():
    assert [shift_of(tiles) for tiles in (1, 2, 4, 13, 14)] == [0, 1, 1, 0, 3]


def test_the_limit_is_what_takes_most_cycles():
    assert limit_of([Walk(TURN, 128, 64, 2)]) == "issue"
    assert limit_of([Walk(TURN._replace(shared=300), 128, 64, 2)]) == "shared"


def test_a_table_has_a_row_for_each_backend_and_pass():
    found = {"cuda forward": {"405": {"tflops": 7, "limit": "issue"}}}
    assert tables.speeds({"predicted": found}).splitlines()[2] == "| cuda forward | 7 | issue |"
