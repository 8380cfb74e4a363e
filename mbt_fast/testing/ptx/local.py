"""Local memory: arrays that each thread has for itself."""

from typing import Any

from mbt_fast.testing.ptx.blocks import Blocks
from mbt_fast.testing.ptx.memory import SHARED_BASE, Shared, vector_of
from mbt_fast.testing.ptx.move import address_reader
from mbt_fast.testing.ptx.operands import NUMPY, reader, readers, writer, writers
from mbt_fast.testing.ptx.registry import Run, op
from mbt_fast.testing.ptx.step import Array, Step
from mbt_fast.testing.ptx.syntax import SIZES, Instruction

LOCAL_BASE = SHARED_BASE  # no address means both: instructions name the state space


class Local(Shared):
    """Like the shared memory of a block, for each thread; fresh bytes are 0xFF."""

    @classmethod
    def of(cls, blocks: Blocks) -> "Local":
        """That of some blocks, made when it is first asked for."""
        if "local" not in blocks.state:
            size = max(v.offset + v.size for v in blocks.launch.kernel.local.values())
            blocks.state["local"] = cls(blocks.pc.size, size)
        return blocks.state["local"]

    def row(self, step: Step) -> Array:
        """Of each thread, ``[n, 32]``."""
        return step.threads


@op("ld.local")
def load(code: Instruction) -> Run:
    """Load from the thread's own memory."""
    kind, count = code.type, _count(code)
    put, take = writers(code.operands[0], kind), address_reader(code.operands[1], "local")

    def run(step: Step) -> None:
        memory = Local.of(step.blocks)
        place = memory.places(step, step.full(take(step)), SIZES[kind] * count)
        values = memory.read(place, NUMPY[kind], count)
        for position, write in enumerate(put):
            write(step, values[..., position])

    return run


@op("st.local")
def store(code: Instruction) -> Run:
    """Store to the thread's own memory."""
    kind, count = code.type, _count(code)
    take, parts = address_reader(code.operands[0], "local"), readers(code.operands[1], kind)

    def run(step: Step) -> None:
        memory = Local.of(step.blocks)
        place = memory.places(step, step.full(take(step)), SIZES[kind] * count)
        values: Any = vector_of([part(step) for part in parts], step, NUMPY[kind])
        memory.write(place[step.lanes], values[step.lanes])

    return run


@op("cvta.local", "cvta.to.local")
def cvta(code: Instruction) -> Run:
    """Addresses stay as they are; loads and stores by generic ones are refused."""
    put, take = writer(code.operands[0], code.type), reader(code.operands[1], code.type)
    return lambda step: put(step, take(step))


def _count(code: Instruction) -> int:
    return next((int(m[1:]) for m in code.modifiers if m in ("v2", "v4")), 1)
