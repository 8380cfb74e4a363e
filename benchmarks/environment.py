"""What stamps every record: device, versions, commit, sources."""

import hashlib
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import mbt_fast
from benchmarks.commit import commit
from mbt_fast import native
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
        "commit": commit(),
        "tree": tree_hash(),
        "sources": _sources(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _sources() -> dict[str, str]:
    """What the kernels here are made of, by their hashes."""
    found = {kernel: sources.source_hash(kernel) for kernel in sources.KERNELS}
    if not native.why_no_cuda_kernels():
        found["cuda"] = native.cuda_module().sources
    return found


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def tree_hash() -> str:
    """SHA-256 of all that a measurement runs: the package, its kernels and C++, and this folder."""
    here, package = Path(__file__).parent, Path(mbt_fast.__file__).parent
    folders = {
        "benchmarks": here,
        "csrc": here.parent / "csrc",
        "mbt_fast": package,
        "mbt_fast/kernels": sources.FOLDER,
    }
    files = {
        f"{name}/{path.relative_to(folder)}": path
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".cpp", ".hpp", ".cu", ".cuh")
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return digest.hexdigest()
