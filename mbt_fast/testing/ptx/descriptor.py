"""Matrix descriptors of wgmma: where the elements of an operand lie in shared memory.

PTX ISA, "Shared Memory Matrix Layout" and "Matrix Descriptor Format". Elements have two bytes. The
unit is a *chunk* of 16 bytes, eight elements, which no layout tears apart.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

K_MAJOR, MN_MAJOR = 0, 1  # as in imm-trans-a and imm-trans-b
CHUNK_BYTES = 16
CHUNK_ELEMENTS = 8
STEP = 16  # elements of the summed dimension, per instruction
SWIZZLE_BYTES = (16, 128, 64, 32)  # by bits 62 and 63; 16: chunks stay where they are


@dataclass(frozen=True)
class Descriptor:
    """The fields, in bytes.

    Args:
        start: Address of the first element, of 18 bits.
        leading: Leading dimension byte offset.
        stride: Stride dimension byte offset.
        base_offset: Row in which the pattern of the swizzle begins.
        swizzle: Bytes that the pattern permutes: 128, 64, 32, or 16 for none.
    """

    start: int
    leading: int
    stride: int
    base_offset: int
    swizzle: int


def decode(bits: int) -> Descriptor:
    """Fields of a descriptor of 64 bits."""
    address = (bits & 0x3FFF) << 4
    leading, stride = (bits >> 16 & 0x3FFF) << 4, (bits >> 32 & 0x3FFF) << 4
    return Descriptor(address, leading, stride, bits >> 49 & 7, SWIZZLE_BYTES[bits >> 62 & 3])


def swizzled(addresses: np.ndarray, swizzle: int) -> np.ndarray:
    """Addresses of 16-byte chunks in a layout that permutes ``swizzle`` bytes.

    The number of the 128-byte line is exclusive-ored into the number of the chunk.
    """
    lines = swizzle // CHUNK_BYTES - 1  # 7, 3, 1 or 0: as many lines have an order of their own
    return addresses ^ ((addresses >> 7 & lines) << 4)


@lru_cache(maxsize=4096)
def chunk_addresses(bits: int, rows: int, major: int) -> np.ndarray:
    """Byte addresses of the chunks of an operand of ``rows`` x 16 elements.

    Args:
        bits: The descriptor.
        rows: M or N, a multiple of 8.
        major: Along which dimension the eight elements of a chunk lie.

    Returns:
        int64 ``[rows, 2]`` for ``K_MAJOR``, ``[rows / 8, 16]`` for ``MN_MAJOR``.

    Raises:
        ValueError: The pattern does not begin at its natural boundary, which this does not follow.
    """
    fields = decode(bits)
    if fields.swizzle > CHUNK_BYTES and fields.base_offset:
        raise ValueError(
            f"the matrix base offset of a descriptor must be 0, got {fields.base_offset}"
        )
    offsets = _k_major(fields, rows) if major == K_MAJOR else _mn_major(fields, rows)
    addresses = swizzled(fields.start + offsets, fields.swizzle)
    addresses.flags.writeable = False
    return addresses


def _k_major(fields: Descriptor, rows: int) -> np.ndarray:
    """Rows in groups of eight; a row's two chunks side by side unless nothing is swizzled."""
    row, chunk = np.arange(rows)[:, None], np.arange(STEP // CHUNK_ELEMENTS)
    next_chunk = fields.leading if fields.swizzle == CHUNK_BYTES else CHUNK_BYTES
    return row // 8 * fields.stride + row % 8 * fields.swizzle + chunk * next_chunk


def _mn_major(fields: Descriptor, rows: int) -> np.ndarray:
    """Chunks of eight rows; ``swizzle`` bytes of them side by side for each k, eight k together."""
    chunk, k = np.arange(rows // CHUNK_ELEMENTS)[:, None], np.arange(STEP)
    if fields.swizzle == CHUNK_BYTES:
        return chunk * fields.stride + k // 8 * fields.leading + k % 8 * CHUNK_BYTES
    wide = fields.swizzle // CHUNK_BYTES
    across = chunk // wide * fields.leading + chunk % wide * CHUNK_BYTES
    return across + k // 8 * fields.stride + k % 8 * fields.swizzle


def matrix(chunks: np.ndarray, major: int) -> np.ndarray:
    """Chunks as they were read, as the operand.

    Args:
        chunks: ``[..., rows, 2, 8]`` or ``[..., rows / 8, 16, 8]``, in the order of
            ``chunk_addresses``.
        major: As for ``chunk_addresses``.

    Returns:
        ``[..., rows, 16]``.
    """
    if major == MN_MAJOR:
        chunks = np.swapaxes(chunks, -1, -2)
    return chunks.reshape(*chunks.shape[:-3], -1, STEP)
