"""The page about tested stacks: the rows that ``.ci/matrix.py`` has recorded, as Markdown."""

import json
from pathlib import Path

RECORD = Path(__file__).with_name("tested.json")
START = """# Tested stacks

What was run, when, and how many tests passed. `python .ci/matrix.py` runs tests of this checkout on
other versions of Python, torch, Triton and PyAV and with other compilers, and writes this table. A
stack that is not in it has not been tried.

"""
COLUMNS = ("python", "torch", "triton", "av", "numpy", "compiler", "kernels")
HEADERS = ("Python", "torch", "Triton", "PyAV", "numpy", "compiler", "C++ kernels")
LAST = ("tests of", "outcome", "under Triton's interpreter", "date", "commit")


def page() -> str:
    """The whole page."""
    rows = json.loads(RECORD.read_text())
    lines = [HEADERS + LAST, ("---",) * (len(HEADERS) + len(LAST)), *map(_cells, rows)]
    return START + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(row: dict) -> tuple[str, ...]:
    facts = [row[name] for name in COLUMNS]
    facts[-1] = "none" if facts[-1].startswith("mbt_fast._C") else facts[-1]
    outcomes = (_outcome(row["tests"]), _outcome(row["interpreted"]))
    areas = ", ".join(path.removeprefix("tests/") for path in row["areas"])
    return (*facts, areas, *outcomes, row["date"], f"`{row['commit']}`")


def _outcome(found: dict) -> str:
    """Such as ``812 passed, 40 skipped``."""
    counts = [f"{count} {what}" for what, count in found.items() if what != "names"]
    names = ", ".join(f"`{name}`" for name in found.get("names", [])[:3])
    return ", ".join(counts) + (f": {names}" if names else "") if counts else "not run"
