"""Convolutions made of several."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regio.convolutions import LargeSeparable


def test_large_separable_is_a_convolution_of_the_whole_size() -> None:
    """Its two products of thin kernels, multiplied out, are one dense kernel."""
    torch.manual_seed(0)
    layer = LargeSeparable(3, 2, hidden=4, size=5).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    (column, row), (row2, column2) = layer.column_row, layer.row_column
    kernel = torch.einsum("micv,omru->oivu", column.weight[..., 0:1].squeeze(3)[:, :, None], row.weight)  # type: ignore
    kernel = kernel + torch.einsum("miru,omvc->oivu", row2.weight, column2.weight)  # type: ignore
    x = torch.randn(2, 3, 11, 13, dtype=torch.float64)
    inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))  # the biases between reach into the padding
    bias = sum(
        second.bias + second.weight.sum((2, 3)) @ first.bias  # type: ignore
        for first, second in ((column, row), (row2, column2))
    )
    expected = F.relu(F.conv2d(x, kernel, bias, padding=2))
    torch.testing.assert_close(layer(x)[inner], expected[inner])
    assert layer(x).shape == (2, 2, 11, 13) and bool((layer(x) > 0).any()) and bool((layer(x) == 0).any())


def test_large_separable_starts_small_and_has_a_centre() -> None:
    torch.manual_seed(0)
    layer = LargeSeparable(64, 490, hidden=16)
    assert [tuple(each.kernel_size) for each in layer.column_row] == [(15, 1), (1, 15)]
    assert [tuple(each.kernel_size) for each in layer.row_column] == [(1, 15), (15, 1)]
    for each in (*layer.column_row, *layer.row_column):
        assert abs(float(each.weight.detach().std()) - 0.01) < 5e-4 and not each.bias.any()  # type: ignore
    with pytest.raises(ValueError, match="size: expected an odd number of cells, got 4"):
        LargeSeparable(3, 3, size=4)
