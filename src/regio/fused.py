"""Layers for inference: norm, activation and sum carried out by the convolution before them, weights laid out once.

A convolution that is followed by a ReLU reads and writes its output twice, and each call of an ordinary layer brings
its weights into the processor's layout and precision anew. Here both are done when the layer is made. On a CPU the
operations are oneDNN's fused ones, as PyTorch's compiler uses them; elsewhere, and where PyTorch has none, the same
numbers come from the ordinary operations. The layers are for inference only: they have no parameters and no gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from regio.convolutions import ConvReLU
from regio.deformable_conv import DeformableConv2d, DeformableConv2dSame, moves
from regio.frozen_norm import FoldedConv, FrozenBatchNorm, pad_same
from regio.ops.convolution import deform_conv2d
from regio.regions.base import RegionExtractor
from regio.regions.levels import Levels
from regio.roi_heads.trunks import LayeredTrunk

__all__ = ["FusedConv", "FusedLinear", "fuse"]


class Activation(NamedTuple):
    """An elementwise function: what it does in place, and the name and numbers by which oneDNN knows it."""

    apply: Callable[[Tensor], Tensor]
    name: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""


# Cells by which oneDNN's fast convolution of single channels pads at most; another, 5 to 20 times slower, pads by more.
_DEPTHWISE_PADDING = 6

_NONE = Activation(lambda x: x, "none")
_RELU = Activation(lambda x: x.relu_(), "relu")


def _activation(module: nn.Module) -> Activation | None:
    """The activation that `module` is, or None where it is something else."""
    if isinstance(module, nn.Identity | nn.Dropout):
        return _NONE
    if isinstance(module, nn.ReLU):
        return _RELU
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        low, high = module.min_val, module.max_val
        return Activation(lambda x: x.clamp_(low, high), "hardtanh", (low, high))
    if isinstance(module, nn.SiLU):
        return Activation(lambda x: F.silu(x, inplace=True), "swish")
    if isinstance(module, nn.Hardswish):
        return Activation(lambda x: F.hardswish(x, inplace=True), "hardswish")
    if isinstance(module, nn.GELU):
        how = module.approximate
        return Activation(lambda x: F.gelu(x, approximate=how), "gelu", (), how)
    return None


def _has_onednn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype != torch.float64 and torch.backends.mkldnn.is_available()


class FusedConv(nn.Module):
    """``activation(conv(x) + bias)``, or ``activation(conv(x) + bias + added)``.

    conv: whose weight and bias are taken, a `FoldedConv` with the norm that it carries out. scale, shift: [out], of a
    norm after it. dtype: of the weights, the input, which is cast where it has another, and the output.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype,
        activation: Activation = _NONE,
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        weight: Tensor
        bias: Tensor | None
        weight, bias = conv.folded() if isinstance(conv, FoldedConv) else (conv.weight, conv.bias)
        if affine is not None:
            scale, shift = affine
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale
        self.dtype, self.activation = dtype, activation
        self.bias = None if bias is None else bias.detach().to(dtype)
        kernel, stride, dilation = (list(each) for each in (conv.kernel_size, conv.stride, conv.dilation))
        padding: list[int] = list(conv.padding)  # type: ignore[arg-type]
        self.same: _Same | None = None
        if isinstance(conv, Conv2dSame) or getattr(conv, "pads_like_tensorflow", False):
            self.same = _Same(kernel, stride, dilation)
            padding, begins = self.same.whole
            weight = F.pad(weight, (begins[1], 0, begins[0], 0))
        self.where = (stride, dilation, conv.groups)
        self.padding = padding
        weight = weight.detach().to(dtype, memory_format=torch.channels_last)
        self.weight = weight
        self.onednn = _has_onednn(weight)
        self.depthwise = conv.groups == conv.in_channels
        self.layouts: dict[bytes, Tensor] = {}
        self.layout_of: dict[tuple[int, ...], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own layouts: oneDNN's tensors cannot be copied."""
        return {**self.__dict__, "layouts": {}, "layout_of": {}}

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """[N, out, H', W'] from x [N, in, H, W]. `added`, of the result's shape and dtype, is overwritten by it."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        padding = self.padding
        if self.same is not None and not self.same.fits(x):
            x, padding = self.same.pad(x), [0, 0]
        if self.onednn and x.numel():
            if self.depthwise and max(padding) > _DEPTHWISE_PADDING:
                x, padding = F.pad(x, (padding[1], padding[1], padding[0], padding[0])), [0, 0]
            _, *then = self.activation
            where = (self._laid_out(x, padding), self.bias, padding, *self.where)
            if added is None:
                return torch.ops.mkldnn._convolution_pointwise(x, *where, *then)
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                added, x, *where, "add", 1.0, "relu" if self.activation.name == "relu" else None, [], None
            )
        with torch.autocast(x.device.type, enabled=False):
            y = F.conv2d(x, self.weight, self.bias, self.where[0], padding, *self.where[1:])
        return self.activation.apply(y if added is None else added.add_(y))

    def _laid_out(self, x: Tensor, padding: list[int]) -> Tensor:
        """The weight as oneDNN wants it for inputs of this size. It changes with the size, between a few forms that
        are made when they are first needed; one that does not fit would be brought into the right one at each call."""
        size = (1 << (len(x) - 1).bit_length(), *x.shape[1:])
        if size not in self.layout_of:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, padding, *self.where, size)
            layout = torch.ops.mkldnn._get_mkldnn_serialized_md(weight).numpy().tobytes()
            self.layout_of[size] = self.layouts.setdefault(layout, weight)
        return self.layout_of[size]


@dataclass(frozen=True)
class _Same:
    """The padding of a convolution that pads as TensorFlow does: as much as its input lacks, more at the ends."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]

    @property
    def lacks(self) -> list[int]:
        """What inputs of a whole number of strides lack along each axis."""
        return [max((k - 1) * d + 1 - s, 0) for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)]

    @property
    def whole(self) -> tuple[list[int], list[int]]:
        """For inputs that fit: a padding that is the same at both ends, and the zeros that the kernel then begins with,
        where its own padding has one less at the beginning; none where its taps are not next to each other."""
        begins = [lack % 2 if d == 1 else 0 for lack, d in zip(self.lacks, self.dilation, strict=True)]
        return [(lack + 1) // 2 for lack in self.lacks], begins

    def fits(self, x: Tensor) -> bool:
        """Whether `x` [N, C, H, W] is a whole number of strides, and lacks as much at the beginning as at the end,
        counting the zeros of the kernel."""
        odd = any(lack % 2 != begin for lack, begin in zip(self.lacks, self.whole[1], strict=True))
        return not odd and x.shape[2] % self.stride[0] == 0 and x.shape[3] % self.stride[1] == 0

    def pad(self, x: Tensor) -> Tensor:
        """`x` padded for the kernel with its zeros."""
        begins = self.whole[1]
        return F.pad(pad_same(x, self.kernel, self.stride, self.dilation), (begins[1], 0, begins[0], 0))


class FusedLinear(nn.Module):
    """``activation(linear(x))`` for x [R, in]. dtype: of the weights, the input, which is cast where it has another,
    and the output.

    For a thousand regions oneDNN is a third faster with a small layer as a 1 x 1 convolution of a map of R cells (6272
    to 512: 4.1 ms instead of 6.6), and takes twice as long with a large one (12544 to 1024: 33 ms instead of 15).
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, activation: Activation = _NONE) -> None:
        super().__init__()
        self.dtype, self.activation = dtype, activation
        self.weight = linear.weight.detach().to(dtype).contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.conv: FusedConv | None = None
        self.packed: Tensor | None = None
        if not _has_onednn(self.weight):
            return
        if self.weight.numel() <= _SMALL:
            conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
            conv.weight, conv.bias = nn.Parameter(self.weight[:, :, None, None], requires_grad=False), linear.bias
            self.conv = FusedConv(conv, dtype, activation)
        else:
            self.packed = self._laid_out()

    def _laid_out(self) -> Tensor:
        """The weight as oneDNN wants it, for a thousand regions."""
        weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1000)
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own layout: oneDNN's tensors cannot be copied."""
        return {**self.__dict__, "packed": self.packed is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = self._laid_out() if state["packed"] else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] from [..., in]."""
        if x.ndim != 2:
            return self(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], len(self.weight))
        if self.conv is not None and len(x):
            y: Tensor = self.conv(x.contiguous().T[None, :, :, None])  # channels last in memory
            return y[0, :, :, 0].T
        x = x.to(self.dtype)
        if self.packed is not None and len(x):
            _, *then = self.activation
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *then)
        with torch.autocast(x.device.type, enabled=False):
            return self.activation.apply(F.linear(x, self.weight, self.bias))


class FusedDeformableConv(nn.Module):
    """``activation(conv(x))`` for a deformable convolution, with the one that its offsets come from laid out.

    The arguments are those of `FusedConv`.
    """

    def __init__(
        self,
        conv: DeformableConv2d,
        dtype: torch.dtype,
        activation: Activation = _NONE,
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        weight, bias = conv.weight, conv.bias
        if affine is not None:
            scale, shift = affine
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale
        self.dtype, self.activation = dtype, activation
        self.weight, self.bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        self.where, self.modulated = (conv.stride, conv.padding, conv.dilation), conv.modulated
        self.same = isinstance(conv, DeformableConv2dSame)
        self.offset = FusedConv(conv.offset, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, H', W'] from x [N, in, H, W]."""
        x = x.to(self.dtype)
        if self.same:
            stride, _, dilation = self.where
            x = pad_same(x, self.weight.shape[2:], stride, dilation)
        offset, mask = moves(self.offset(x), self.modulated)
        return self.activation.apply(deform_conv2d(x, offset, self.weight, self.bias, *self.where, mask))


_SMALL = 1 << 22  # weights of a linear layer that is faster as a convolution
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame, FoldedConv, ConvReLU)
_DEFORMABLE = (DeformableConv2d, DeformableConv2dSame)
_SUMS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


def fuse(module: nn.Module, dtype: torch.dtype, example: Tensor | None = None) -> nn.Module:
    """`module` for inference: its convolutions and linear layers fused with what follows them.

    Where its forward is a fixed sequence of operations on tensors, what each layer feeds is seen in its graph
    (`torch.fx`). Otherwise its children are treated in the same way, one by one, in place. Extractors of region
    features stay as they are, since their numbers say where is read, but for layers that make maps
    (`RegionExtractor.map_layers`). Trunks keep the layers that they can give.
    example: an input of a module that maps a batch of images or maps to maps; where it is given sums are fused too.
    """
    if isinstance(module, RegionExtractor):
        for name, child in list(module.named_children()):
            if name in module.map_layers or isinstance(child, RegionExtractor):
                setattr(module, name, fuse(child, dtype))
        return module
    if _is_layer(module):
        return _layer(module, dtype)
    graph = None if isinstance(module, LayeredTrunk | Levels) else _traced(module, example)
    if graph is not None:
        return _fused_graph(graph, dtype, example)
    for name, child in list(module.named_children()):
        setattr(module, name, fuse(child, dtype))
    return module


def _is_layer(module: nn.Module) -> bool:
    if type(module) in _CONVOLUTIONS:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, *_DEFORMABLE)


def _layer(
    module: nn.Module,
    dtype: torch.dtype,
    activation: Activation = _NONE,
    affine: tuple[Tensor, Tensor] | None = None,
) -> nn.Module:
    if isinstance(module, nn.Linear):
        return FusedLinear(module, dtype, activation)
    if isinstance(module, DeformableConv2d):
        return FusedDeformableConv(module, dtype, activation, affine)
    assert isinstance(module, nn.Conv2d)
    return FusedConv(module, dtype, _RELU if isinstance(module, ConvReLU) else activation, affine)


class _Tracer(fx.Tracer):
    """Does not look into the modules that are dealt with whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = (*_CONVOLUTIONS, *_DEFORMABLE, FrozenBatchNorm, BatchNormAct2d, RegionExtractor)
        return isinstance(m, whole) or super().is_leaf_module(m, module_qualified_name)


def _traced(module: nn.Module, example: Tensor | None) -> fx.GraphModule | None:
    """The graph of `module`, or None where its forward is more than a fixed sequence of operations on tensors, or one
    that depends on more than it shows: it is tried on images of two sizes."""
    try:
        graph = fx.GraphModule(module, _Tracer().trace(module))
    except Exception:  # whatever a forward does that is no operation on a tensor
        return None
    less = 0 if example is None else min(32, example.shape[2] // 4)
    for x in () if example is None else (example, example[:, :, :-less, :-less]):
        for ours, theirs in zip(graph(x), module(x), strict=True):
            if not torch.equal(ours, theirs):
                return None
    return graph


def _fused_graph(module: fx.GraphModule, dtype: torch.dtype, example: Tensor | None) -> fx.GraphModule:
    if example is not None:
        ShapeProp(module).propagate(example)
    place = {node: i for i, node in enumerate(module.graph.nodes)}
    fused: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        layer = _module_of(module, node)
        if layer is None or not _is_layer(layer):
            continue
        chain, activation, affine, added = _what_follows(module, node, fused, place)
        name = f"fused_{len(fused)}"
        module.add_submodule(name, _layer(layer, dtype, activation, affine))
        with module.graph.inserting_after(chain[-1]):
            new = module.graph.call_module(name, (node.args[0], *([] if added is None else [added])))
        new.meta, place[new] = chain[-1].meta, place[chain[-1]]
        chain[-1].replace_all_uses_with(new)
        for old in reversed(chain):
            module.graph.erase_node(old)
        fused.add(new)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, if it calls one."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


Chain = tuple[list[fx.Node], Activation, tuple[Tensor, Tensor] | None, fx.Node | None]


def _what_follows(module: fx.GraphModule, node: fx.Node, fused: set[fx.Node], place: dict[fx.Node, int]) -> Chain:
    """The nodes that the layer `node` can carry out, itself the first; and with what: an activation, a norm's scale and
    shift, a sum with another node."""
    layer = _module_of(module, node)
    chain: list[fx.Node] = [node]
    affine: tuple[Tensor, Tensor] | None = None
    added: fx.Node | None = None
    while len(chain[-1].users) == 1 and not isinstance(layer, ConvReLU):
        (user,) = chain[-1].users
        follows = _module_of(module, user)
        activation = _NONE
        if isinstance(follows, FrozenBatchNorm | nn.BatchNorm2d):
            if not isinstance(layer, (nn.Conv2d, *_DEFORMABLE)) or affine is not None or added is not None:
                break
            act = _activation(getattr(follows, "act", nn.Identity()))
            if act is None or not getattr(follows, "track_running_stats", True):
                break
            if not (isinstance(follows, FrozenBatchNorm) and follows.folded):
                affine = _affine(follows)
            activation = act
        elif follows is not None:
            act = _activation(follows)
            if act is None:
                break
            activation = act
        elif user.target in _RELUS or (user.op == "call_method" and user.target in ("relu", "relu_")):
            activation = _RELU
        elif added is None and user.target in _SUMS and isinstance(layer, nn.Conv2d):
            added = _other_term(user, chain[-1], fused, place)
            if added is None:
                break
        else:
            break
        if added is not None and activation not in (_NONE, _RELU):  # oneDNN has these two after a sum
            break
        chain.append(user)
        if activation is not _NONE:
            return chain, activation, affine, added
    return chain, _NONE, affine, added


def _affine(norm: FrozenBatchNorm | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale [C] and the shift [C] that `norm` is in evaluation mode."""
    return (norm if isinstance(norm, FrozenBatchNorm) else FrozenBatchNorm(norm)).affine()


def _other_term(total: fx.Node, term: fx.Node, fused: set[fx.Node], place: dict[fx.Node, int]) -> fx.Node | None:
    """What `total` adds to `term`, where the sum may be written over it: nobody reads it afterwards. None elsewhere."""
    others = [arg for arg in total.args if arg is not term]
    if len(others) != 1 or total.kwargs:
        return None
    (other,) = others
    if not isinstance(other, fx.Node) or other not in fused:
        return None
    shapes = [getattr(each.meta.get("tensor_meta"), "shape", None) for each in (term, other)]
    if shapes[0] is None or shapes[0] != shapes[1]:
        return None
    readers = [user for user in other.users if user is not total]
    layers = all(user in fused for user in readers)  # they keep nothing of what they read
    return other if layers and all(place[user] < place[total] for user in readers) else None
