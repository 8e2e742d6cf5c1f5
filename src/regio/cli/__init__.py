"""The command `regio`."""

import os

# PyTorch's threads (libgomp's) spin for milliseconds after each operation, waiting for the next one. Where another
# process wants a core, they spin on its account and on that of the threads that still work: a training step beside one
# busy process took 3.1 s so, and 1.4 s with a tenth of a millisecond, which is long enough for the next operation.
# Read when PyTorch is loaded, so it has to be set before the commands are.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from regio.cli.main import main

__all__ = ["main"]
