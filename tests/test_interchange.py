"""Detections in the forms of other libraries."""

import numpy as np
import pytest
import torch

from regio.interchange import detections_from_coco, detections_to_coco, from_supervision, to_supervision
from regio.masks import GridMasks
from regio.types import Detections

SIZE = (60, 80)


def found(masks: bool = True, count: int = 5) -> Detections:
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=g) * 20], 1)
    grid = GridMasks(torch.rand(count, 14, 14, generator=g)) if masks else None
    return Detections(boxes, torch.randint(1, 4, (count,), generator=g), torch.rand(count, generator=g), grid)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("count", [0, 5])
def test_coco_and_back(masks: bool, count: int) -> None:
    one = found(masks, count)
    rows = detections_to_coco(one, 7, [3, 18, 44], SIZE)
    again = detections_from_coco(rows, [3, 18, 44])
    torch.testing.assert_close(again.boxes, one.boxes, rtol=0, atol=1e-5)
    assert torch.equal(again.labels, one.labels) and torch.equal(again.scores, one.scores)
    if masks and count:
        assert one.masks is not None and again.masks is not None
        assert torch.equal(again.masks.paste(again.boxes, SIZE), one.masks.paste(one.boxes, SIZE))
    else:
        assert again.masks is None


def test_unknown_categories_are_named() -> None:
    rows = detections_to_coco(found(False), 7, [3, 18, 44])
    with pytest.raises(ValueError, match=r"category_id: expected one of \[1\], got"):
        detections_from_coco(rows, [1])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("count", [0, 5])
def test_supervision_and_back(masks: bool, count: int) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    one = found(masks, count)
    there = to_supervision(one, ["cat", "dog", "cow"], SIZE)
    assert isinstance(there, supervision.Detections) and len(there) == count
    assert there.class_id.tolist() == (one.labels - 1).tolist()  # labels begin at 1 here, at 0 there
    assert there.data["class_name"].tolist() == [["cat", "dog", "cow"][label - 1] for label in one.labels.tolist()]
    again = from_supervision(there)
    assert torch.equal(again.boxes, one.boxes) and torch.equal(again.labels, one.labels)
    assert torch.equal(again.scores, one.scores)
    assert (again.masks is None) == (one.masks is None)
    if masks:
        assert one.masks is not None and again.masks is not None
        assert torch.equal(again.masks.paste(again.boxes, SIZE), one.masks.paste(one.boxes, SIZE))
    with pytest.raises(ValueError, match="confidence: expected one a detection, got None"):
        from_supervision(supervision.Detections(xyxy=np.zeros((1, 4)), class_id=np.zeros(1, dtype=int)))


def test_masks_need_a_size() -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    with pytest.raises(ValueError, match=r"size: expected the \(height, width\) of the image"):
        to_supervision(found(), ["cat", "dog", "cow"])
