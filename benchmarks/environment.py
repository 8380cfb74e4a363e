"""What stamps every record: device, versions, commit, sources."""

import platform
import subprocess
from datetime import datetime, timezone
from typing import Any

import torch

import mbt_fast
from mbt_fast.kernels import sources
from mbt_fast.profiling.machine import device_name


def stamp() -> dict[str, Any]:
    """The environment as plain data."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": device_name(device),
        "capability": torch.cuda.get_device_capability() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "mbt_fast": mbt_fast.__version__,
        "commit": _commit(),
        "sources": {kernel: sources.source_hash(kernel) for kernel in sources.KERNELS},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _commit() -> str | None:
    """The commit, marked if the tree differs from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
