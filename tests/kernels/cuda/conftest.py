"""The kernels run on a GPU, or in Triton's interpreter, which has to be chosen before Triton is imported: without a GPU
`test_interpreter.py` runs this folder again in a process of its own."""

import importlib.util
import os

import torch

RUNS_HERE = importlib.util.find_spec("triton") is not None and (
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
)
collect_ignore_glob = [] if RUNS_HERE else ["test_sample_*.py", "test_pool_max.py", "test_attend.py"]
