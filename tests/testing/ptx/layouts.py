"""Layouts of shared memory, one address at a time, as the PTX ISA shows them."""


def bits(start, leading, stride, swizzle, base_offset=0):
    """A matrix descriptor; all but the last two in bytes."""
    mode = {16: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | base_offset << 49 | mode << 62


def permuted(address, swizzle):
    """Where the tables of "Swizzling Modes" put a byte."""
    line, chunk, rest = address // 128, address % 128 // 16, address % 16
    period = swizzle // 16
    return line * 128 + (chunk ^ line % period) * 16 + rest
