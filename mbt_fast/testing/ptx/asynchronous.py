"""What runs beside the program: products of wgmma, bulk copies, and the mbarriers they signal."""

from collections import defaultdict

from mbt_fast.testing.ptx.blocks import Blocks
from mbt_fast.testing.ptx.bulk_copies import BulkGroups, BulkLoad
from mbt_fast.testing.ptx.errors import PtxError
from mbt_fast.testing.ptx.mbarrier_object import MBarrier
from mbt_fast.testing.ptx.products import Group
from mbt_fast.testing.ptx.step import Array, Step


class Asynchronous:
    """The state of some blocks that run together.

    Attributes:
        groups: By number of the warp group, through all blocks.
        barriers: By place in shared memory.
        loads: Copies to shared memory that are not complete, by the place of their mbarrier.
        bulk: Copies from shared memory, by thread.
    """

    def __init__(self, blocks: Blocks) -> None:
        """Nothing is in flight."""
        self.blocks = blocks
        self.groups: dict[int, Group] = defaultdict(Group)
        self.barriers: dict[int, MBarrier] = {}
        self.loads: dict[int, list[BulkLoad]] = defaultdict(list)
        self.bulk: dict[int, BulkGroups] = defaultdict(BulkGroups)
        blocks.at_end.append(self.finish)

    def check_seen(self, step: Step, places: Array, issuers: Array) -> None:
        """Refuse an access of the async proxy to what it may not see.

        Args:
            step: Who issues it.
            places: Of 16-byte chunks in the shared memory of all blocks, ``[accesses, ...]``.
            issuers: Threads that issue each access together, ``[accesses, threads]``.

        Raises:
            PtxError: Names the line of a store that no fence.proxy.async follows.
        """
        proxies = self.blocks.proxies
        line = None if proxies is None else proxies.unseen_line(places, issuers)
        if line is not None:
            step.fail(
                f"the async proxy may not see what line {line} stored: no fence.proxy.async follows"
            )

    def finish(self) -> None:
        """The blocks have ended: so must have what uses their shared memory.

        Raises:
            PtxError: A bulk copy still fills or reads it.
        """
        loads = [load.line for waiting in self.loads.values() for load in waiting]
        stores = [store for groups in self.bulk.values() for store in groups.in_flight()]
        reading = [store.line for store in stores if not store.is_read]
        for lines, verb in ((loads, "fills"), (reading, "reads")):
            if lines:
                raise PtxError(
                    f"a block ended while the bulk copy of line {lines[0]} still {verb} its shared "
                    "memory"
                )
        for store in stores:
            store.write(store.source)


def asynchronous(blocks: Blocks) -> Asynchronous:
    """The state of some blocks, made when it is first asked for."""
    state = blocks.state.get("asynchronous")
    if state is None:
        state = blocks.state["asynchronous"] = Asynchronous(blocks)
    return state
