"""Bulk copies of contiguous bytes, sums of them, and the groups that they complete in.

PTX ISA, "Bulk copy". Each active thread issues a copy of its own. Clusters have one block, so
shared::cluster is the block's own memory.
"""

import numpy as np

from mbt_fast.testing.ptx.asynchronous import asynchronous
from mbt_fast.testing.ptx.atomics import FUNCTIONS, of_type
from mbt_fast.testing.ptx.bulk_copies import BulkLoad
from mbt_fast.testing.ptx.bulk_issue import address_of, chunks, defer, each, global_bytes, issue
from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.operands import NUMPY, reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import Immediate, Instruction
from mbt_fast.testing.ptx.tensor_copies import TO_GLOBAL, TO_SHARED


@op("cp.async.bulk")
def copy(code: Instruction) -> Run:
    """Contiguous bytes, either way."""
    form = code.modifiers[2:]
    if form in TO_SHARED:
        return _load(code)
    if form == TO_GLOBAL:
        return _store(code, "exch", "u8")
    raise PtxError(f"cp.async.bulk.{'.'.join(form)} is not implemented")


@op("cp.reduce.async.bulk")
def reduce(code: Instruction) -> Run:
    """Combine contiguous elements in global memory with those in shared memory."""
    form, rest = code.modifiers[3:6], [m for m in code.modifiers[6:] if m != "noftz"]
    if form != TO_GLOBAL or len(rest) != 2 or rest[0] not in FUNCTIONS or rest[1] not in NUMPY:
        raise PtxError(f"cp.reduce.async.bulk.{'.'.join(code.modifiers[3:])} is not implemented")
    return _store(code, *rest)


@op("cp.async.bulk.commit_group")
def commit_group(code: Instruction) -> Run:
    """Close the thread's group."""

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        asynchronous(step.blocks).bulk[thread].commit()

    return each(act)


@op("cp.async.bulk.wait_group")
def wait_group(code: Instruction) -> Run:
    """Wait for all of the thread's groups but the newest, or until they have read their sources."""
    operand, only_reads = code.operands[0], code.has("read")
    if not isinstance(operand, Immediate):
        raise PtxError(f"the number of groups must be a constant, got {operand}")
    pending = operand.value

    def act(step: Step, row: int, lane: int, thread: int) -> str | None:
        groups = asynchronous(step.blocks).bulk[thread]
        return groups.wait(step.blocks, pending, only_reads=only_reads)

    return each(act)


def _load(code: Instruction) -> Run:
    target, source, count, barrier = code.operands
    to, size = address_of(target, "shared"), reader(count, "u32")
    from_, signal = address_of(source, "global"), address_of(barrier, "shared")

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        count = int(step.full(size(step))[row, lane])
        start = global_bytes(step, from_(step, row, lane), count)
        places = chunks(step, row, to(step, row, lane), count)
        load = BulkLoad(code.line, places, lambda: start.reshape(-1, CHUNK_BYTES))
        issue(step, row, thread, load, signal(step, row, lane))

    return each(act)


def _store(code: Instruction, name: str, kind: str) -> Run:
    target, source, count = code.operands
    to, size = address_of(target, "global"), reader(count, "u32")
    from_, as_type = address_of(source, "shared"), NUMPY[kind]
    function = of_type(FUNCTIONS[name], kind, flush=name == "add")

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        count = int(step.full(size(step))[row, lane])
        start = global_bytes(step, to(step, row, lane), count).view(as_type)
        places = chunks(step, row, from_(step, row, lane), count)

        def write(values: Array) -> None:
            start[:] = function(start, np.ascontiguousarray(values).reshape(-1).view(as_type))

        defer(step, thread, code.line, places, write)

    return each(act)
