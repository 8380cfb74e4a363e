"""Which commit the sources are of; imports nothing of the package, so that it runs anywhere."""

import os
import subprocess
from pathlib import Path

VARIABLE = "MBT_FAST_COMMIT"  # names the commit where there is no checkout
NOT_SOURCES = (":!benchmarks/results", ":!README.md")  # what a measurement itself changes


def commit(root: Path = Path(__file__).parents[1]) -> str | None:
    """The commit, marked if the sources differ from it; None where it is unknown."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", *NOT_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
