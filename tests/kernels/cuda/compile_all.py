"""Compile every kernel for a GPU that need not be here, and print its shared memory: ``compile_all.py 90 bfloat16``.

The interpreter accepts Python that the compiler does not, and has no limit on shared memory.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from regio.kernels.arguments import Reads
from regio.kernels.cuda import attend, pool_max, sample_grid, sample_points


class AbsentGPU:
    """As much of a driver as compilation asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def only_compile() -> None:
    """Let a launch compile its kernel, and report it, instead."""
    run = JITFunction.run
    seen = set()

    def compile_and_report(self: JITFunction, *arguments: object, warmup: bool, **options: object) -> object:
        kernel = run(self, *arguments, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            print(f"{self.fn.__module__}.{self.fn.__name__} {kernel.metadata.shared}", flush=True)
        return kernel

    JITFunction.run = compile_and_report


def launch_all(dtype: torch.dtype) -> None:
    """Every kernel at the sizes of a detector: 256 channels, 7 x 7 bins, in groups and not."""
    boxes, term = 2, torch.float64 if dtype == torch.float64 else torch.float32
    maps, image = [torch.zeros(1, 256, 50, 76, dtype=dtype)], torch.zeros(boxes, dtype=torch.int64)
    axis, side = torch.zeros(boxes, 7, 2, dtype=term), torch.zeros(boxes, 7, dtype=torch.int64)
    points, weight = torch.zeros(boxes, 49, 4, 2, dtype=term), torch.zeros(boxes, 49, 4, dtype=term)
    for groups in ([], [0, 1] * 24 + [0]):
        x = [m.unflatten(1, (2, -1)) for m in maps] if groups else maps
        for module, arguments in ((sample_points, [points, weight]), (sample_grid, [axis] * 4), (pool_max, [side] * 4)):
            reads = Reads(x, image, image, arguments, groups)
            y = module.forward(reads)
            for ordered in (False, True):
                torch.use_deterministic_algorithms(ordered)
                module.backward_maps(y, reads)
            if module is not pool_max:
                module.backward_arguments(y, reads)
    column, row = torch.zeros(boxes, 49, 76, dtype=term), torch.zeros(boxes, 49, 50, dtype=term)
    appearance, support = torch.zeros(1, 49, 50, 76, dtype=term), torch.zeros(boxes, 4, dtype=torch.int64)
    for a in (None, appearance):
        y = attend.forward(maps[0], image, column, row, a, support, dtype)
        attend.backward(y, maps[0], image, column, row, a, support, dtype)


if __name__ == "__main__":
    driver.set_active(AbsentGPU(int(sys.argv[1])))
    only_compile()
    launch_all(getattr(torch, sys.argv[2]))
