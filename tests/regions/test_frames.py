"""How many Python frames lie between a detector and the loop that reads its maps."""

import inspect
import time
from collections.abc import Callable

import pytest
import torch

import regio.regions.sampling
from regio.backbones import efficientnet_lite0
from regio.kernels.cpu import sample_grid as kernels
from regio.systems import faster_rcnn_fpn

TO_THE_OPERATOR = [
    "TwoStageDetector.forward",
    "BoxHead.forward",
    "FastRCNNHead.predict",
    "Levels.forward",
    "SamplingExtractor.pyramid",
    "SampleGrid.features",
]
FROM_THE_OPERATOR = [
    "sample_grid",
    "map_operation.<locals>.with_autograd",
    "_kernel.<locals>.<lambda>",
    "forward",
    "features",
    "share",
    "share.<locals>.take_turns",
]


def recorded(original: Callable[..., object], stacks: list[list[str]]) -> Callable[..., object]:
    """`original`, which notes the functions of this library that it is called from, the detector first."""

    def call(*arguments: object, **named: object) -> object:
        frame, names = inspect.currentframe(), []
        while (frame := frame.f_back) is not None:
            if frame.f_globals["__name__"].startswith("regio."):
                names.append(frame.f_code.co_qualname)
        stacks.append(names[::-1])
        time.sleep(0.01)  # so that every thread gets a share
        return original(*arguments, **named)

    return call


@pytest.mark.parametrize("threads", [1, 2])
def test_frames_from_a_detector_to_the_loop(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoIAlign on a pyramid on a CPU: six to the operator, thirteen to the loop. (PyTorch has two more for each module
    that is called.) With one thread nobody takes turns."""
    operator: list[list[str]] = []
    loop: list[list[str]] = []
    monkeypatch.setattr(regio.regions.sampling, "sample_grid", recorded(regio.regions.sampling.sample_grid, operator))
    monkeypatch.setattr(kernels, "_forward", recorded(kernels._forward, loop))
    torch.manual_seed(0)
    detector = faster_rcnn_fpn(4, efficientnet_lite0((3, 4, 5)), channels=64, hidden=16, short_side=96, long_side=96)
    corner = torch.rand(300, 2) * 40
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            detector([torch.rand(3, 96, 96)], [torch.cat([corner, corner + torch.rand(300, 2) * 50 + 1], 1)])
    finally:
        torch.set_num_threads(before)
    assert operator == [TO_THE_OPERATOR]
    whole = TO_THE_OPERATOR + (FROM_THE_OPERATOR if threads > 1 else FROM_THE_OPERATOR[:-1])
    assert whole in loop
    assert all(names == whole or names == FROM_THE_OPERATOR[-1:] for names in loop)  # the latter in another thread
