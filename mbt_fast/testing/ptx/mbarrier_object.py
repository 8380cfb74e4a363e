"""The mbarrier object: phases that end when all arrivals and all expected bytes have come.

PTX ISA, "mbarrier", "Contents", "Phase Completion" and the operations on it.
"""

MAX_COUNT = 2**20 - 1


class MBarrier:
    """One object; operations outside the promises of the ISA raise ``ValueError``.

    Args:
        expected: Arrivals per phase, 1 to ``MAX_COUNT``.

    Attributes:
        expected: Arrivals in each phase.
        pending: Arrivals that the current phase still waits for.
        transactions: Bytes that it still waits for; negative where they came before announced.
        phase: Phases complete so far.
    """

    __slots__ = ("expected", "is_observed", "pending", "phase", "transactions")

    def __init__(self, expected: int) -> None:
        """Start in phase 0."""
        if not 1 <= expected <= MAX_COUNT:
            raise ValueError(f"an mbarrier must expect 1 to {MAX_COUNT} arrivals, got {expected}")
        self.expected = self.pending = expected
        self.transactions = self.phase = 0
        self.is_observed = True  # whether a wait has seen the end of the phase before

    def __repr__(self) -> str:
        """For messages."""
        return (
            f"phase {self.phase}, {self.pending} of {self.expected} arrivals and "
            f"{self.transactions} bytes to come"
        )

    def arrive(self, count: int = 1) -> None:
        """Arrive ``count`` times; the last arrival may end the phase."""
        if not self.is_observed:
            raise ValueError(
                f"arrives at an mbarrier in phase {self.phase}, but no wait has seen phase "
                f"{self.phase - 1} complete"
            )
        if not 1 <= count <= self.pending:
            raise ValueError(f"{count} arrivals at an mbarrier that awaits {self.pending}: {self}")
        self.pending -= count
        self._turn()

    def expect(self, count: int) -> None:
        """Announce bytes for this phase."""
        self._set_transactions(self.transactions + count)

    def complete(self, count: int) -> None:
        """Bytes have come; the last may end the phase."""
        self._set_transactions(self.transactions - count)
        self._turn()

    def is_complete(self, parity: int) -> bool:
        """Whether the current phase has the other parity, so that the one asked for is past."""
        return self.phase % 2 != parity

    def observe(self, parity: int) -> bool:
        """``is_complete``, for a wait that lets its thread go on."""
        done = self.is_complete(parity)
        self.is_observed |= done
        return done

    def _set_transactions(self, count: int) -> None:
        if abs(count) > MAX_COUNT:
            raise ValueError(f"an mbarrier must count at most {MAX_COUNT} bytes, got {count}")
        self.transactions = count

    def _turn(self) -> None:
        if self.pending == 0 and self.transactions == 0:
            self.phase += 1
            self.pending, self.is_observed = self.expected, False
