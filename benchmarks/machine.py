"""What ``mbt-fast info`` says of this machine, as data; ``python -m benchmarks.machine`` prints."""

import json
import os
from datetime import datetime, timezone
from functools import cache
from typing import Any

import torch

from mbt_fast.cli.info import collect

# Variables by which torch's libraries use no more than an instruction set.
HOLDS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
info = cache(collect)  # versions, devices, compiled parts, kernels verified on a GPU


def facts() -> dict[str, Any]:
    """Those that a measurement depends on."""
    on_gpu, found = torch.cuda.is_available(), info()
    return {
        "device": found["devices"]["cuda:0" if on_gpu else "cpu"],
        "capability": torch.cuda.get_device_capability() if on_gpu else None,
        "torch": torch.__version__,
        "triton": found["packages"]["triton"],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "mbt_fast": found["mbt_fast"],
        "threads": torch.get_num_threads(),
        "instruction_set": found["cpu kernels"]["in use"],
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "torch_held_by": {name: os.environ[name] for name in HOLDS if name in os.environ},
        "compiled_part": found["compiled part"],
    }


def sources() -> dict[str, str]:
    """What the kernels for GPUs are made of, by their hashes."""
    from mbt_fast.kernels.sources import KERNELS, source_hash

    built = info()["cuda part"]
    cuda = {"cuda": built["sources"]} if isinstance(built, dict) else {}
    return {kernel: source_hash(kernel) for kernel in KERNELS} | cuda


if __name__ == "__main__":
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    print(json.dumps(facts() | {"sources": sources(), "date": now}))
