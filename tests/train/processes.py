"""The processes that came from one."""

import time
from pathlib import Path


def alive(pids, seconds):
    """Which of the processes are there still after some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not left:
            break
        time.sleep(0.1)
    return left


def descendants(pid):
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found |= {child} | descendants(child)
    return found
