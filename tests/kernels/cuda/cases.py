"""What the tests of the CUDA kernels share: random pyramids and boxes, and the comparison with a reference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from regio.kernels.arguments import Reads

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the latter in Triton's interpreter

# Sums are float32 for all but float64; a result is then rounded to its dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Reference = Callable[..., Tensor]


def with_maps(reads: Reads, change: Callable[[Tensor], Tensor]) -> Reads:
    return reads._replace(maps=[change(x) for x in reads.maps])


def pyramid(
    channels: int, dtype: torch.dtype = torch.float32, sizes: Sequence[tuple[int, int]] = ((5, 7),), images: int = 2
) -> list[Tensor]:
    g = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(images, channels, *size, generator=g).to(dtype).to(DEVICE) for size in sizes]


def in_groups(maps: list[Tensor]) -> list[Tensor]:
    """Maps of 3 * C channels as [N, 3, C, H, W], the channels of a group 3 apart as R-FCN has them."""
    return [x.unflatten(1, (-1, 3)).transpose(1, 2) for x in maps]


def leaf(x: Tensor) -> Tensor:
    """`x` itself as a leaf that needs a gradient, in the memory format it has."""
    return x.detach().requires_grad_(x.is_floating_point())


def expected(reference: Reference, case: Reads, toward: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The result of a reference with the arguments of a case, and the gradients of maps and arguments."""
    maps, arguments = [leaf(x) for x in case.maps], [leaf(a) for a in case.arguments]
    out = reference(maps, case.image, arguments, case.level, case.groups)
    if out.requires_grad:  # not where nothing is read
        out.backward(toward.to(out.dtype).view(out.shape))
    return (
        out.detach(),
        [torch.zeros_like(x) if x.grad is None else x.grad for x in maps],
        [torch.zeros_like(a) if a.grad is None else a.grad for a in arguments if a.is_floating_point()],
    )


def toward_of(out: Tensor) -> Tensor:
    return torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out)


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest number."""
    assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance * scale)


@contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(module: ModuleType, reference: Reference, case: Reads) -> None:
    """Forward and all gradients, the default and the deterministic ones, against a reference."""
    tolerance = TOLERANCE[case.maps[0].dtype]
    out = module.forward(case)
    toward = toward_of(out)
    wanted, to_maps, to_arguments = expected(reference, case, toward)
    assert_close(out, wanted.view(out.shape), tolerance)
    grads = module.backward_maps(toward, case)
    with deterministic():
        ordered, again = (module.backward_maps(toward, case) for _ in range(2))
    for x, grad, one, two, want in zip(case.maps, grads, ordered, again, to_maps, strict=True):
        assert_close(grad, want, tolerance)
        assert_close(one, want, tolerance)
        assert torch.equal(one, two)
        assert grad.stride() == one.stride() == torch.empty_like(x).stride()
    if to_arguments:
        for grad, want in zip(module.backward_arguments(toward, case), to_arguments, strict=True):
            assert_close(grad, want, tolerance)
