"""Trunks of heads."""

import pytest
import torch
from torch.nn import functional as F

from regio.roi_heads import FullyConnected


def test_the_layers_of_a_trunk_by_name() -> None:
    torch.manual_seed(0)
    trunk, y = FullyConnected(4, (2, 3), 8), torch.randn(5, 4, 2, 3)
    layers = trunk.layers(y)
    assert list(layers) == ["pool5", "fc6", "fc7"]
    torch.testing.assert_close(layers["pool5"], y.reshape(5, 24), rtol=0, atol=0)
    torch.testing.assert_close(layers["fc6"], F.relu(y.reshape(5, 24) @ trunk.fc6.weight.T + trunk.fc6.bias))
    torch.testing.assert_close(layers["fc7"], F.relu(layers["fc6"] @ trunk.fc7.weight.T + trunk.fc7.bias))
    torch.testing.assert_close(layers["fc7"], trunk(y), rtol=0, atol=0)
    assert {name: len(each) for name, each in trunk.layers(y[:0]).items()} == {"pool5": 0, "fc6": 0, "fc7": 0}


def test_dropout_is_of_training_alone() -> None:
    torch.manual_seed(0)
    trunk, y = FullyConnected(4, (2, 2), 512, dropout=0.5), torch.randn(20, 4, 2, 2)
    plain = FullyConnected(4, (2, 2), 512)
    plain.load_state_dict(trunk.state_dict())
    torch.testing.assert_close(trunk.eval()(y), plain(y), rtol=0, atol=0)
    kept, whole = trunk.train().layers(y)["fc6"], plain.layers(y)["fc6"]
    torch.testing.assert_close(kept[kept > 0], 2 * whole[kept > 0])
    assert abs(float((kept > 0).sum() / (whole > 0).sum()) - 0.5) < 0.03


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_bad_dropout(share: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout: expected a share in \[0, 1\), got {share}"):
        FullyConnected(4, (2, 2), 8, dropout=share)
