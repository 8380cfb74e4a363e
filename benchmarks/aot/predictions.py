"""What the model makes of the record: TFLOP/s of attention at MBT-B's lengths on an H100."""

from math import ceil
from typing import Any

from benchmarks.aot.calibration import FLASH_3, TUTORIAL, fit, flash_3, relative_errors, tutorial
from benchmarks.aot.model import BACKWARD_START, Problem, Walk, limit_of, tflops
from benchmarks.aot.turns import Turn
from benchmarks.records import ROOT
from mbt_fast.kernels.table import HALF, lookup

PATH = ROOT / "kernels" / "predicted.json"
ROWS = (1573, 405)  # video and audio, slots included
BATCH, HEADS, HEAD_DIM, ARCH = 64, 12, 64, 90
CUDA_BLOCK = 128  # rows of an item, and of a step of the backward
Record = dict[str, Any]


def predictions(triton: Record, cuda: Record) -> Record:
    """By backend, pass and rows; what limits each; the model's error where speeds are published."""
    found: Record = {}
    for rows in ROWS:
        problem = Problem(rows, BATCH * HEADS, HEAD_DIM)
        passes = {
            "triton forward": ([_triton(triton, "fwd")], 2, 0),
            "triton backward": ([_triton(triton, "dkdv"), _triton(triton, "dq")], 5, 4),
            "cuda forward": ([_cuda_forward(cuda, rows)], 2, 0),
            "cuda backward": ([_cuda_backward(cuda)], 5, 0),
        }
        for name, (walks, products, moved) in passes.items():
            speed = round(tflops(walks, products, problem, moved))
            found.setdefault(name, {})[str(rows)] = {"tflops": speed, "limit": limit_of(walks)}
    walk = tutorial(Turn(**triton["calibration"]["turns"][0]))
    checks = {"triton_tutorial": (TUTORIAL, walk), "flash_attention_3": (FLASH_3, flash_3())}
    return {
        "of": {"device": "H100 SXM", "batch": BATCH, "heads": HEADS, "head_dim": HEAD_DIM},
        "predicted": found,
        "fits": {name: fit(*check)._asdict() for name, check in checks.items()},
        "errors": {
            name: {str(rows): round(error, 3) for rows, error in relative_errors(*check).items()}
            for name, check in checks.items()
        },
    }


def _triton(record: Record, kernel: str) -> Walk:
    entry = record["kernels"][f"{kernel}-bf16-d{HEAD_DIM}-sm_{ARCH}"]
    tiles = lookup(kernel, ARCH, HALF, HEAD_DIM)
    groups = entry["blocks"] * tiles.num_warps // 4
    return Walk(Turn(**entry["turns"][0]), tiles.block_m, tiles.block_n, groups)


def _cuda_forward(record: Record, rows: int) -> Walk:
    """With the tile of keys that the kernel chooses: the fewest rows, the larger of equals."""
    entry = record["kernels"][f"bottleneck_attention_fwd bfloat16 {HEAD_DIM}"]
    per_key = CUDA_BLOCK // 16  # cycles of the tensor cores
    turns = {turn["tensor"] // per_key: Turn(**turn) for turn in entry["turns"]}
    keys = min(turns, key=lambda keys: (ceil(rows / keys) * keys, -keys))
    return Walk(turns[keys], CUDA_BLOCK, keys, groups=2, stays=True, skips=True)


def _cuda_backward(record: Record) -> Walk:
    (turn,) = record["kernels"][f"bottleneck_attention_bwd_keys bfloat16 {HEAD_DIM} 1"]["turns"]
    return Walk(Turn(**turn), CUDA_BLOCK, CUDA_BLOCK, groups=2, start=BACKWARD_START, stays=True)
