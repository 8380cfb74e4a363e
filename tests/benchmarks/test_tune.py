"""Tuning: what it proposes, and what it tries."""

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import tune  # noqa: E402
from mbt_fast.kernels import table  # noqa: E402
from mbt_fast.kernels.table import ARCHS, HALF, TABLE, Tiles  # noqa: E402

NEW = Tiles(256, 16, 4, 5)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_proposed_row_differs_in_one_entry(arch):
    key = ("dq", HALF, 128)
    ((found, row),) = eval(f"{{{tune.proposed(key, arch, NEW)}}}").items()
    assert found == key
    expected = list(TABLE[key])
    expected[ARCHS.index(arch)] = NEW
    assert list(row) == expected


def test_the_present_configuration_wins_a_tie():
    present, other = Tiles(1, 1, 1, 1), Tiles(2, 2, 2, 2)
    assert tune.best({present: 1.005, other: 1.0}, present) == present
    assert tune.best({present: 1.005, other: 0.9}, present) == other


def test_candidates_hold_what_is_shipped_for_half():
    shipped = {tiles for (_, size, _), row in TABLE.items() if size == HALF for tiles in row}
    assert shipped <= set(tune.candidates())
    assert table.lookup("fwd", 90, HALF, 80) == TABLE["fwd", HALF, 128][1]
