"""Which hardware has kernels: the README's table."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.machine import info
from benchmarks.records import AHEAD, ROOT, Results, relative
from mbt_fast import dispatch
from mbt_fast.profiling.machine import dtype_name

VERIFIED = ROOT / "kernels" / "verified.json"
STOCK = "stock PyTorch"


class Hardware(NamedTuple):
    """A row of the table: a CPU's instruction set, or the compute capability of a GPU."""

    name: str
    instruction_set: str | None = None
    capability: tuple[int, int] | None = None


HARDWARE = (
    Hardware("x86-64 with AVX2", instruction_set="avx2"),
    Hardware("x86-64 with AVX-512", instruction_set="avx512"),
    Hardware("x86-64 with AVX512-BF16", instruction_set="avx512_bf16"),
    Hardware("x86-64 with AMX", instruction_set="amx"),
    Hardware("A100 (sm_80)", capability=(8, 0)),
    Hardware("H100, H200 (sm_90)", capability=(9, 0)),
    Hardware("B200 (sm_100)", capability=(10, 0)),
)


def hardware_block(everyone: Sequence[Results]) -> str:
    """Which hardware has kernels, how they were verified, and what ``auto`` takes there."""
    lines = [
        "| hardware | forward | backward | verified | `auto` takes |",
        "|---|---|---|---|---|",
    ]
    for hardware in HARDWARE:
        rows = [row for row in dispatch.BACKENDS if _serves(row, hardware)]
        kernels = "; ".join(f"{_ops(row)} (`{row.name}`)" for row in rows)
        taken = "; ".join(filter(None, (_taken_by_auto(row, hardware) for row in rows)))
        cells = [hardware.name, kernels, kernels, _verified(hardware, everyone), taken or STOCK]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| any other device of PyTorch | {STOCK} | {STOCK} | tested | {STOCK} |")
    return "\n".join(lines) + "\n"


def _serves(row: dispatch.Backend, hardware: Hardware) -> bool:
    if hardware.capability is None:
        return row.device_type == "cpu" and row.name == "cpu"
    if row.name not in ("cuda", "triton"):
        return False
    return row.major in (None, hardware.capability[0])


def _ops(row: dispatch.Backend) -> str:
    return "all ops" if "add_layer_norm" in row.ops else "attention"


def _taken_by_auto(row: dispatch.Backend, hardware: Hardware) -> str:
    """The ops for which the table has a measurement, and in which dtypes if not in all."""
    if row.unmeasured:
        return ""
    if hardware.instruction_set in _never_run():
        return f"as with AVX-512, but {STOCK} for attention in bfloat16"
    isa, layer = hardware.instruction_set, []
    for op, found in (row.min_size if isa is None else row.min_size[isa]).items():
        dtypes = "" if found.keys() == row.dtypes else f" in {', '.join(map(dtype_name, found))}"
        vendor = f" on {row.measured_on[op]}" if op in row.measured_on else ""
        layer += [op + dtypes + vendor] if found and op != "bottleneck_attention" else []
    return f"{', '.join(['attention', *layer])} (`{row.name}`)"


def _never_run() -> set[str]:
    return {name for name in info()["cpu kernels"] if name != "in use"}


def _verified(hardware: Hardware, everyone: Sequence[Results]) -> str:
    if hardware.capability is None:
        if hardware.instruction_set in _never_run():
            return info()["cpu kernels"][hardware.instruction_set]
        measured = [
            f"[{results.machine['device']}]({relative(results.folder)})"
            for results in everyone
            if results.machine["instruction_set"] == hardware.instruction_set
        ]
        return "; ".join(["tested", *(f"measured on {name}" for name in measured)])
    passed = [
        f"{', '.join(entry['sources'])} on {entry['device']}, at commit {entry['commit'][:10]}"
        for entry in json.loads(VERIFIED.read_text())
        if tuple(entry["capability"]) == hardware.capability
    ]
    number = "".join(map(str, hardware.capability))
    ahead = [n for n in json.loads(AHEAD.read_text())["kernels"] if n.endswith(f"-sm_{number}")]
    emulated = ["CUDA on emulated instructions"] if hardware.capability[0] == 9 else []
    untried = [] if passed else ["never run there"]
    interpreted = f"Triton interpreted, and {len(ahead)} configurations compiled ahead"
    return "; ".join([*passed, *untried, *emulated, interpreted])
