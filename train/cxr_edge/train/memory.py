"""Tell glibc to keep freed memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Reuse freed activations instead of handing them back to the kernel; does nothing off glibc.

    TensorFlow's generator data set, which Keras puts every PyDataset in, lowers the trim threshold to 128 KB; each step
    then faults a gigabyte in anew. Measured on 2 cores, MobileNetV2, batch 32: 4.1 s a step before, 1.3 to 2.0 s after.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
