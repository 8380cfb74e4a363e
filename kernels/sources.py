"""Which kernels have been verified on a GPU: recorded by the hash of their sources."""

import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RECORD = FOLDER / "verified.json"
PREDICTED = FOLDER / "predicted.json"


def _files() -> dict[str, tuple[str, ...]]:
    """Per op the files that its kernels consist of: those with its stem, and the shared ones."""
    names = sorted(path.name for path in FOLDER.glob("*.py"))
    ops = sorted({name.removesuffix("_fwd.py") for name in names if name.endswith("_fwd.py")})
    own = {op: {f"{op}.py", f"{op}_fwd.py", f"{op}_bwd.py"} for op in ops}
    shared = set(names).difference(*own.values(), {"__init__.py", "sources.py"})
    return {op: tuple(name for name in names if name in own[op] | shared) for op in ops}


KERNELS = _files()


def source_hash(kernel: str) -> str:
    """SHA-256 of the files that the kernels of an op consist of, in the order of their names."""
    digest = hashlib.sha256()
    for name in KERNELS[kernel]:
        digest.update(name.encode() + b"\0" + (FOLDER / name).read_bytes() + b"\0")
    return digest.hexdigest()


def verifications(kernel: str, digest: str) -> list[dict[str, Any]]:
    """Records of passed GPU suites for exactly these sources: device, date, versions."""
    records = json.loads(RECORD.read_text())
    return [entry for entry in records if entry["sources"].get(kernel) == digest]


def predictions() -> dict[str, Any]:
    """How fast attention should be, by the model of ``benchmarks/aot``."""
    found: dict[str, Any] = json.loads(PREDICTED.read_text())
    return found
