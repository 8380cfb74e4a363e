"""An allocator that keeps what is freed, so that no call is timed with page faults of its own.

By default glibc returns large blocks to the kernel, by thresholds that depend on what was freed
before. Some processes then fault for their pages in every call and others never: our GELU's
backward in float32 took 3.1 ms in some processes and 7.7 in others.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
IS_GLIBC = platform.libc_ver()[0] == "glibc"
ALLOCATOR = "glibc, freed memory kept" if IS_GLIBC else "as the system has it"


def keep_freed_memory() -> None:
    """From now on, in this process; elsewhere than in glibc nothing changes."""
    if not IS_GLIBC:
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        if not mallopt(option, value):
            raise RuntimeError(f"mallopt must accept {value} for option {option}")
