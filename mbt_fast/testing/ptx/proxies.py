"""Which words of shared memory the async proxy cannot see yet.

PTX ISA, "Async Proxy": wgmma and bulk copies go another way to memory than loads and stores. What a
thread stored is promised to them only behind a fence.proxy.async, of the thread that stored or,
behind a barrier, of the threads that issue. cp.async takes no part: compilers feed wgmma by it
without a fence, and the ISA does not say that they must not.
"""

import numpy as np

from mbt_fast.testing.ptx.descriptor import CHUNK_BYTES
from mbt_fast.testing.ptx.step import Array

WORD_BYTES = 4
# A stamp: the number of fences so far, the line of the store, the thread.
THREAD_BITS, LINE_BITS = 20, 20
CLOCK_SHIFT = THREAD_BITS + LINE_BITS
THREAD_MASK, LINE_MASK = 2**THREAD_BITS - 1, 2**LINE_BITS - 1


class Proxies:
    """Stamps of the last store to each word, and the last fence of each thread.

    Addresses are bytes from the start of the shared memory of all blocks, one block behind the
    other; threads are numbered through all blocks. Both of those that run together.

    Args:
        shared_bytes: Of all blocks, a multiple of 16.
        threads: Of all blocks.
    """

    def __init__(self, shared_bytes: int, threads: int) -> None:
        """Nothing is stored yet."""
        self._stamps = np.zeros(shared_bytes // WORD_BYTES, np.int64)
        self._of_chunks = self._stamps.reshape(-1, CHUNK_BYTES // WORD_BYTES)
        self._fenced = np.ones(threads, np.int64)
        self._clock = 1  # words that nobody stored to have 0

    def store(self, addresses: Array, size: int, threads: Array, line: int) -> None:
        """Threads store ``size`` bytes each."""
        stamp = threads | (self._clock << CLOCK_SHIFT | min(line, LINE_MASK) << THREAD_BITS)
        words = addresses // WORD_BYTES
        for word in range(-(-size // WORD_BYTES)):
            self._stamps[words + word] = stamp

    def fence(self, threads: Array) -> None:
        """Threads fence what they have stored, and what they have seen."""
        self._clock += 1
        self._fenced[threads] = self._clock

    def unseen_line(self, addresses: Array, issuers: Array) -> int | None:
        """Line of a store that the async proxy may not see.

        Args:
            addresses: Of 16-byte chunks, ``[accesses, ...]``.
            issuers: The threads that issue each access together, ``[accesses, threads]``.

        Returns:
            The line, or ``None`` where the async proxy sees everything.
        """
        stamps = self._of_chunks[addresses // CHUNK_BYTES]
        clocks = stamps >> CLOCK_SHIFT
        unseen = clocks >= self._fenced[stamps & THREAD_MASK]
        if not unseen.any():
            return None
        of_issuers = self._fenced[issuers].min(axis=1)
        unseen &= clocks >= of_issuers.reshape(-1, *(1,) * (clocks.ndim - 1))
        if not unseen.any():
            return None
        return int(stamps[unseen][0] >> THREAD_BITS & LINE_MASK)

    def stored_line(self, addresses: Array) -> int | None:
        """Line of a store to 16-byte chunks since the async proxy wrote them, or ``None``."""
        stamps = self._of_chunks[addresses // CHUNK_BYTES]
        stored = stamps != 0
        return int(stamps[stored][0] >> THREAD_BITS & LINE_MASK) if stored.any() else None

    def land(self, addresses: Array) -> None:
        """The async proxy itself writes 16-byte chunks."""
        self._of_chunks[addresses // CHUNK_BYTES] = 0
