"""Tuning: what it proposes, and what it tries."""

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import tune  # noqa: E402
from mbt_fast.kernels import table  # noqa: E402
from mbt_fast.kernels.table import ARCHS, HALF, TABLE, Tiles  # noqa: E402

NEW = Tiles(256, 16, 4, 5)


def apply(text, diff):
    """The text with every removed line replaced by the added one."""
    removed = [line[1:] for line in diff.splitlines() if line.startswith("-") and line[1] == " "]
    added = [line[1:] for line in diff.splitlines() if line.startswith("+") and line[1] == " "]
    for old, new in zip(removed, added, strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("key", [("fwd", HALF, 64), ("dq", HALF, 128)], ids=str)
def test_a_proposed_table_differs_in_one_entry(arch, key):
    text = tune.TABLE_FILE.read_text()
    names = {}
    exec(compile(apply(text, tune.propose(text, arch, {key: NEW})), "table.py", "exec"), names)
    expected = {k: list(v) for k, v in TABLE.items()}
    expected[key][ARCHS.index(arch)] = NEW
    assert {k: list(v) for k, v in names["TABLE"].items()} == expected


def test_no_change_is_no_diff():
    text = tune.TABLE_FILE.read_text()
    present = {key: row[ARCHS.index(90)] for key, row in TABLE.items()}
    assert tune.propose(text, 90, present) == ""


def test_the_present_configuration_wins_a_tie():
    present, other = Tiles(1, 1, 1, 1), Tiles(2, 2, 2, 2)
    assert tune.best({present: 1.005, other: 1.0}, present) == present
    assert tune.best({present: 1.005, other: 0.9}, present) == other


def test_candidates_hold_what_is_shipped_for_half():
    shipped = {tiles for (_, size, _), row in TABLE.items() if size == HALF for tiles in row}
    assert shipped <= set(tune.candidates())
    assert table.lookup("fwd", 90, HALF, 80) == TABLE["fwd", HALF, 128][1]
