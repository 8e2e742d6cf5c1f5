"""Aligned-Inception-ResNet: the layers of the network.

Dai et al.: Deformable Convolutional Networks, ICCV 2017, appendix B and table 6; the network is unpublished work of He,
Zhang, Ren and Sun. Known are the stages, their widths and numbers of blocks; that there is one kind of block, without
the 1 x 7 and 1 x 3 convolutions of Inception-ResNet; that every convolution and pooling is padded so that it keeps the
size of its input but for its stride; that a 1 x 1 convolution of stride 2 stands where the width changes; and that the
classifier has 64.3 million parameters. The inside of the block is a choice, see `InceptionResNetBlock`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["STAGES", "InceptionResNetBlock", "stages"]

STAGES = (3, 4, 23, 3)
"""Blocks of conv2 to conv5 (table 6)."""


class InceptionResNetBlock(nn.Module):
    """``relu(x + f(x))`` of `width` channels: three branches, put together by a 1 x 1 convolution.

    The branches are those of Inception-ResNet-A (Szegedy et al. 2016, figure 16), the only one of its blocks with
    square kernels alone: 1 x 1; 1 x 1, 3 x 3; 1 x 1, 3 x 3, 3 x 3. With w = width / 16 they have w; 2 w, 2 w; 2 w, 3 w,
    4 w channels: at width 256 the 32, 32 and 32, 48, 64 of Inception-ResNet-v2, and 16 where that has 32, with which
    the whole network comes near the size that is known. Each convolution has a batch normalisation, and all but the
    last one a ReLU.

    dilation: of the 3 x 3 convolutions. Raises ValueError for a width that is no multiple of 16.
    """

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        if width < 16 or width % 16:
            raise ValueError(f"width: expected a multiple of 16, got {width}")
        w = width // 16
        self.branch1 = _convolution(width, w, 1)
        self.branch2 = nn.Sequential(
            _convolution(width, 2 * w, 1),
            _convolution(2 * w, 2 * w, 3, dilation=dilation),
        )
        self.branch3 = nn.Sequential(
            _convolution(width, 2 * w, 1),
            _convolution(2 * w, 3 * w, 3, dilation=dilation),
            _convolution(3 * w, 4 * w, 3, dilation=dilation),
        )
        self.together = _convolution(7 * w, width, 1, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] of the same shape."""
        branches = torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1)
        y: Tensor = self.relu(self.together(branches) + x)
        return y


def stages(
    last: int = 5, *, output_stride: int = 32, blocks: Sequence[int] = STAGES, width: int = 256
) -> OrderedDict[str, nn.Module]:
    """conv1 to conv`last` by name, one after the other: conv1 (7 x 7, stride 2, `width` / 4 channels), and before conv2
    a 3 x 3 maximum of stride 2. A stage is its 1 x 1 convolution, of stride 2 but in conv2, and its `blocks`; the width
    doubles at each, from `width` at conv2.

    output_stride: stages that would come to a larger one keep their size; the 3 x 3 convolutions of their blocks are
    dilated instead. Weights are random (He et al. 2015). Raises ValueError for an output_stride other than 8, 16, 32.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
    layers = OrderedDict[str, nn.Module](conv1=_convolution(3, width // 4, 7, stride=2))
    channels, stride, dilation = width // 4, 4, 1
    for level, count in zip(range(2, last + 1), blocks, strict=False):
        step = 1 if level == 2 else 2
        if stride * step > output_stride:
            step, dilation = 1, dilation * 2
        wider = width * 2 ** (level - 2)
        stage: list[nn.Module] = [_convolution(channels, wider, 1, stride=step)]
        stage += [InceptionResNetBlock(wider, dilation) for _ in range(count)]
        if level == 2:
            stage.insert(0, nn.MaxPool2d(3, 2, padding=1))
        layers[f"conv{level}"] = nn.Sequential(*stage)
        channels, stride = wider, stride * step
    return layers


def _convolution(
    channels: int, width: int, kernel: int, *, stride: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width), *([nn.ReLU(inplace=True)] if relu else []))
