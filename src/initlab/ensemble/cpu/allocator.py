"""glibc's allocator by ctypes: `mallopt`, whose numbers malloc.h fixes; elsewhere nothing changes."""

import ctypes
import sys
from functools import cache

# Names of malloc.h: number of the setting, value in bytes.
SETTINGS = {"M_TRIM_THRESHOLD": (-1, 2**29), "M_TOP_PAD": (-2, 2**26), "M_MMAP_THRESHOLD": (-3, 2**25)}


@cache
def keep_freed_memory() -> None:
    """Set the C library to keep memory that is freed: each step of training needs the same again.

    glibc returns the free end of its memory to the system after every step: to take it again was up to a fifth of the
    time of a deep ensemble.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for number, value in SETTINGS.values():
            library.mallopt(number, value)
