"""DeepLab, as Deformable ConvNets has it.

Dai, Qi, Xiong, Li, Zhang, Hu, Wei: Deformable Convolutional Networks, ICCV 2017, section 2.3, after Chen et al.:
Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs, of which the
pyramid of dilations and the random field are not part. The numbers are the paper's and, where it gives none, those of
its released code (Deformable-ConvNets, Pascal VOC).
"""

from __future__ import annotations

from torch import nn

from regio.backbones import Backbone
from regio.convolutions import ConvReLU
from regio.necks import Norm
from regio.preprocess import Preprocess
from regio.segmentation import SegmentationNetwork
from regio.types import IGNORED

__all__ = ["deeplab"]


def deeplab(
    num_classes: int,
    backbone: Backbone,
    *,
    channels: int = 1024,
    short_side: int = 360,
    long_side: int = 600,
    norm: Norm | None = None,
) -> SegmentationNetwork:
    """The class of every pixel from the last map of `backbone`: a 1 x 1 convolution to `channels` with a ReLU, and one
    to the scores of the classes, which are upsampled bilinearly.

    num_classes: with the background, 21 for Pascal VOC. backbone: in the paper ResNet-101, dilated from stride 32 to
    16. short_side, long_side: image scale, in pixels; 1024 and 2048 for Cityscapes. norm: after the first convolution,
    which then has no bias.

    The released code upsamples by a transposed convolution of fixed bilinear weights and crops 8 pixels at the left and
    above. For stride 16 this is the same surface (`regio.segmentation`), but for 8 pixels at the borders, where its
    scores fall to about a half. It also doubles the learning rate of the two biases.

    Raises ValueError for a number of classes that no class map can hold.
    """
    if not 1 < num_classes <= IGNORED:
        raise ValueError(f"num_classes: expected 2 .. {IGNORED}, with the background, got {num_classes}")
    return SegmentationNetwork(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        hidden=_hidden(backbone.channels[-1], channels, norm),
        classifier=_normal(nn.Conv2d(channels, num_classes, 1)),
    )


def _hidden(in_channels: int, channels: int, norm: Norm | None) -> nn.Module:
    if norm is None:
        return _normal(ConvReLU(in_channels, channels, 1))
    return nn.Sequential(_normal(nn.Conv2d(in_channels, channels, 1, bias=False)), norm(channels), nn.ReLU())


def _normal(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
