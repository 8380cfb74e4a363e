"""Tensor maps that a kernel makes: ``tensormap.replace`` and the copy that publishes them."""

import numpy as np

from mbt_fast.testing.ptx import tensor_map
from mbt_fast.testing.ptx.bulk_issue import address_of, each, global_bytes, shared_bytes
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.operands import reader
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Step
from mbt_fast.testing.ptx.syntax import Instruction

PUBLISH = "global.shared::cta.tensormap::generic.release.gpu.sync.aligned"
OF_DIMENSIONS = ("box_dim", "global_dim", "global_stride", "element_stride")


@op("tensormap.replace.tile")
def replace(code: Instruction) -> Run:
    """Change a field of a map in the block's shared memory, or in global memory."""
    field, space = code.modifiers[2:4]
    if field not in tensor_map.FIELDS or space not in ("shared::cta", "global"):
        raise PtxError(f"tensormap.{'.'.join(code.modifiers)} is not implemented")
    has_ordinal = field in OF_DIMENSIONS
    at, kind = address_of(code.operands[0], space.partition("::")[0]), f"u{code.type[1:]}"
    ordinal = reader(code.operands[1], "u32") if has_ordinal else None
    value = reader(code.operands[-1], kind)
    find = global_bytes if space == "global" else shared_bytes

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        place = at(step, row, lane)
        known = find(step, place, tensor_map.BYTES, row)
        which = 0 if ordinal is None else int(step.full(ordinal(step))[row, lane])
        if which >= tensor_map.MAX_RANK - (field == "global_stride"):
            raise ValueError(f"a tensor map has no {field} {which}")
        new = int(step.full(value(step))[row, lane])
        changed = tensor_map.replaced(known.tobytes(), field, which, new)
        known[:] = np.frombuffer(changed, np.uint8)

    return each(act)


@op("tensormap.cp_fenceproxy")
def publish(code: Instruction) -> Run:
    """A warp copies a map from shared to global memory, for the tensormap proxy to see."""
    if ".".join(code.modifiers[1:]) != PUBLISH:
        raise PtxError(f"tensormap.{'.'.join(code.modifiers)} is not implemented")
    to, from_ = address_of(code.operands[0], "global"), address_of(code.operands[1], "shared")

    def act(step: Step, row: int, lane: int, thread: int) -> None:
        source = shared_bytes(step, from_(step, row, lane), tensor_map.BYTES, row)
        global_bytes(step, to(step, row, lane), tensor_map.BYTES)[:] = source

    run_each = each(act)

    def run(step: Step) -> None:
        step.whole_warps()
        run_each(step)

    return run
