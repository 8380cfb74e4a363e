"""What tests and benchmarks share; shipped, so that downstream projects can use it too."""

from mbt_fast.profiling.timing import interleaved_times, peak_memory, saved_bytes
from mbt_fast.testing.numerics import assert_close_to_exact

__all__ = ["assert_close_to_exact", "interleaved_times", "peak_memory", "saved_bytes"]
