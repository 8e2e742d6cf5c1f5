"""The command `regio`."""

import ctypes
import os
import sys

# PyTorch's threads (libgomp's) spin for milliseconds after each operation, waiting for the next one. Where another
# process wants a core, they spin on its account and on that of the threads that still work: a training step beside one
# busy process took 3.1 s so, and 1.4 s with a tenth of a millisecond, which is long enough for the next operation.
# Read when PyTorch is loaded, so it has to be set before the commands are.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# oneDNN builds a program for each convolution and size of image, and by default forgets all but a thousand: as many as
# thirteen sizes of a ResNet-50 have.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

# glibc gives memory of more than some megabytes back to the system as soon as it is freed, and the next map of a layer
# has to be mapped and zeroed again page by page: a detection took a tenth longer. Kept, it is used again.
if sys.platform == "linux":
    _libc = ctypes.CDLL(None)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        _libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD

from regio.cli.main import main

__all__ = ["main"]
