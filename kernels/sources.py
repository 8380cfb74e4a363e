"""Which kernels have been verified on a GPU: recorded by the hash of their sources."""

import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RECORD = FOLDER / "verified.json"
KERNELS = {
    "add_layer_norm": (
        "add_layer_norm.py",
        "add_layer_norm_bwd.py",
        "add_layer_norm_fwd.py",
        "column_sums.py",
        "launch.py",
        "rows.py",
        "table.py",
        "tiles.py",
    ),
    "bias_gelu": (
        "bias_gelu.py",
        "bias_gelu_bwd.py",
        "bias_gelu_fwd.py",
        "column_sums.py",
        "launch.py",
        "table.py",
        "tiles.py",
    ),
    "bottleneck_attention": (
        "bottleneck_attention.py",
        "bottleneck_attention_bwd.py",
        "bottleneck_attention_fwd.py",
        "launch.py",
        "table.py",
        "tiles.py",
    ),
    "residual_add": (
        "launch.py",
        "residual_add.py",
        "residual_add_bwd.py",
        "residual_add_fwd.py",
        "rows.py",
        "table.py",
        "tiles.py",
    ),
}


def source_hash(kernel: str) -> str:
    """SHA-256 of the files that a kernel consists of, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(KERNELS[kernel]):
        digest.update(name.encode() + b"\0" + (FOLDER / name).read_bytes() + b"\0")
    return digest.hexdigest()


def verifications(kernel: str, digest: str) -> list[dict[str, Any]]:
    """Records of passed GPU suites for exactly these sources: device, date, versions."""
    records = json.loads(RECORD.read_text())
    return [entry for entry in records if entry["sources"].get(kernel) == digest]
