"""The VOC reader: values by hand, real files, and every rule for doubtful input."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from regio.data import VOC_CLASSES, DetectionDataset, open_dataset, read_voc
from regio.data.records import Problems
from regio.data.voc import voc_dataset
from tests.data.small_datasets import save_image, voc_object, voc_page, write_voc


def _read(folder: Path, strict: bool = False) -> DetectionDataset:
    return read_voc(folder / "Annotations", folder / "JPEGImages", strict=strict)


def test_values_by_hand(tmp_path: Path) -> None:
    page = voc_page(voc_object("dog", (1, 1, 40, 60)), voc_object("person", (5, 10, 5, 11), difficult=1))
    data = _read(write_voc(tmp_path, {"b": page, "a": voc_page()}))
    assert data.class_names == VOC_CLASSES
    assert data.category_ids == tuple(range(1, 21))
    assert [(r.id, r.name, len(r)) for r in data.records] == [(1, "a.png", 0), (2, "b.png", 2)]
    record = data.records[1]
    assert record.boxes.tolist() == [[0, 0, 40, 60], [4, 9, 5, 11]]  # counted from 1, the last pixel included
    assert record.labels.tolist() == [12, 15]
    assert record.difficult.tolist() == [False, True]
    assert record.area.tolist() == [2400, 2]
    assert data[1].targets.difficult.tolist() == [False, True]
    written = data.to_coco()["annotations"]
    assert [(a["bbox"], a["ignore"], a["difficult"], a["iscrowd"]) for a in written] == [
        ([0, 0, 40, 60], 0, 0, 0),
        ([4, 9, 1, 2], 1, 1, 0),
    ]


def test_other_names_are_sorted_and_do_not_depend_on_the_split(tmp_path: Path) -> None:
    box = (1, 1, 9, 9)
    pages = {"a": voc_page(voc_object("zebra", box)), "b": voc_page(voc_object("ant", box), voc_object("dog", box))}
    folder = write_voc(tmp_path, pages)
    (tmp_path / "list.txt").write_text("a 1\n\n")
    data = read_voc(folder / "Annotations", folder / "JPEGImages", split_file=tmp_path / "list.txt")
    assert data.class_names == ("ant", "dog", "zebra")
    assert [(r.id, r.labels.tolist()) for r in data.records] == [(1, [3])]


@pytest.mark.parametrize(
    "corners, kept, message",
    [
        ((6, 1, 5, 9), None, r"object 1 \(cat\): box \(5, 0, 5, 9\) has width 0"),
        (("nan", 1, 5, 9), None, r"object 1 \(cat\): box .* not finite"),
        ((41, 1, 50, 9), None, r"object 1 \(cat\): box .* outside its image of 40 x 60"),
        ((30, 1, 50, 9), [29, 0, 40, 9], r"object 1 \(cat\): box .* sticks out"),
        (("left", 1, 5, 9), None, r"object 1 \(cat\): expected <bndbox> with numbers"),
    ],
)
def test_doubtful_object(tmp_path: Path, corners: tuple[object, ...], kept: list[float] | None, message: str) -> None:
    page = voc_page(voc_object("cat", corners), voc_object("cat", (1, 1, 2, 2)))
    folder = write_voc(tmp_path, {"a": page})
    data = _read(folder)
    assert data.records[0].boxes.tolist()[:-1] == ([] if kept is None else [kept])
    assert len(data.problems) == 1
    with pytest.raises(ValueError, match=rf"a\.xml: {message}"):
        _read(folder, strict=True)


def test_object_without_a_box(tmp_path: Path) -> None:
    data = _read(write_voc(tmp_path, {"a": voc_page("<object><name>cat</name></object>")}))
    assert "expected <bndbox>" in str(data.problems[0])


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<width>0</width><height>0</height>",
        "<width>40</width><height>inf</height>",
        "<width>nan</width><height>60</height>",
    ],
)
def test_size_comes_from_the_file_where_xml_has_none(tmp_path: Path, size: str) -> None:
    data = _read(write_voc(tmp_path, {"a": voc_page(voc_object("cat", (1, 1, 5, 5)), size=size)}))
    assert data.records[0].size == (60, 40)


def test_image_found_by_filename_where_no_stem_fits(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": voc_page(voc_object("cat", (1, 1, 5, 5)), filename="photos/other.png")})
    (folder / "JPEGImages" / "a.png").rename(folder / "JPEGImages" / "other.png")
    assert _read(folder).records[0].name == "other.png"


def test_missing_image_is_left_out_and_listed(tmp_path: Path) -> None:
    page = voc_page(voc_object("cat", (1, 1, 5, 5)))
    folder = write_voc(tmp_path, {"a": page, "b": page})
    (folder / "JPEGImages" / "a.png").unlink()
    data = _read(folder)
    assert [r.name for r in data.records] == ["b.png"]
    assert str(data.problems[0]).startswith(str(folder / "Annotations" / "a.xml"))
    (folder / "JPEGImages" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"Annotations: none of its images is in .*JPEGImages"):
        _read(folder)


def test_image_listed_without_annotation(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": voc_page(voc_object("cat", (1, 1, 5, 5)))})
    save_image(folder / "JPEGImages" / "c.png")
    (tmp_path / "list.txt").write_text("a\nc\n")
    data = read_voc(folder / "Annotations", folder / "JPEGImages", split_file=tmp_path / "list.txt")
    assert [r.name for r in data.records] == ["a.png"]
    assert "list.txt: image c: no such file" in str(data.problems[0])


def test_image_without_annotation(tmp_path: Path) -> None:
    page = voc_page(voc_object("cat", (1, 1, 5, 5)))
    folder = write_voc(tmp_path, {"a": page, "b": page, "damaged": "<annotation>"})
    other = folder / "JPEGImages" / "c.png"
    save_image(other)
    problems = Problems(strict=False)
    data = voc_dataset(folder / "Annotations", folder / "JPEGImages", problems)
    assert [r.name for r in data.records] == ["a.png", "b.png"]
    assert [str(problem) for problem in data.problems] == [f"{other}: image: no annotation file; left out"]
    (folder / "Annotations" / "damaged.xml").unlink()
    (folder / "JPEGImages" / "damaged.png").unlink()
    with pytest.raises(ValueError, match=r"c\.png: image: no annotation file; left out"):
        _read(folder, strict=True)


def test_suffix_in_upper_case(tmp_path: Path) -> None:
    page = voc_page(voc_object("cat", (1, 1, 5, 5)))
    folder = write_voc(tmp_path, {"a": page, "b": page})
    for name in "ab":
        (folder / "Annotations" / f"{name}.xml").rename(
            folder / "Annotations" / f"{name}{'.XML' if name == 'a' else '.Xml'}"
        )
    assert [(r.name, len(r)) for r in open_dataset(folder, "all", strict=True).records] == [("a.png", 1), ("b.png", 1)]


def test_names_with_spaces_in_a_list(tmp_path: Path) -> None:
    page = voc_page(voc_object("cat", (1, 1, 5, 5)))
    folder = write_voc(tmp_path, {"my photo": page, "my": page, "other": page})
    (tmp_path / "list.txt").write_text("my photo \nother 1\nno photo\n")
    data = read_voc(folder / "Annotations", folder / "JPEGImages", split_file=tmp_path / "list.txt")
    assert [r.name for r in data.records] == ["my photo.png", "other.png"]
    assert [problem.item for problem in data.problems] == ["image no photo"]


def test_byte_order_mark_of_a_list(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": voc_page(voc_object("cat", (1, 1, 5, 5)))})
    (tmp_path / "list.txt").write_text("a\n", encoding="utf-8-sig")
    data = read_voc(folder / "Annotations", folder / "JPEGImages", split_file=tmp_path / "list.txt")
    assert [r.name for r in data.records] == ["a.png"] and data.problems == ()
    (tmp_path / "list.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"list\.txt: cannot be read as text"):
        read_voc(folder / "Annotations", folder / "JPEGImages", split_file=tmp_path / "list.txt")


@pytest.mark.parametrize(
    "page, message",
    [
        ("<annotation>", "not XML"),
        ('<?xml version="1.0" encoding="gb2312"?><annotation/>', "not XML: multi-byte encodings are not supported"),
        ('<?xml version="1.0" encoding="foo"?><annotation/>', "not XML: unknown encoding: foo"),
        ("<kml></kml>", "not a VOC annotation: expected <annotation>, got <kml>"),
        (voc_page("<object><bndbox/></object>"), "not a VOC annotation: an <object> without <name>"),
    ],
)
def test_file_that_is_not_voc(tmp_path: Path, page: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.xml: {message}"):
        _read(write_voc(tmp_path, {"a": page}))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Annotations: no classes: none of its 1 files has an <object>"):
        _read(write_voc(tmp_path / "x", {"a": voc_page()}))
    with pytest.raises(ValueError, match="no annotations: expected files"):
        read_voc(tmp_path, tmp_path)


def test_real_voc(shared_data: Path) -> None:
    for name, images, objects, difficult in (("voc2012_100", 100, 273, 38), ("voc2007_13", 13, 41, 6)):
        folder = shared_data / name
        data = _read(folder, strict=True)
        assert data.class_names == VOC_CLASSES
        assert (len(data), sum(map(len, data.records))) == (images, objects)
        assert sum(int(r.difficult.sum()) for r in data.records) == difficult
        for record in data.records[::10]:
            boxes = ET.parse(folder / "Annotations" / f"{record.path.stem}.xml").getroot().findall("object/bndbox")
            corners = [[float(b.findtext(k) or "") for k in ("xmin", "ymin", "xmax", "ymax")] for b in boxes]
            assert record.boxes.tolist() == [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in corners]


def test_real_voc_images_have_the_annotated_size(shared_data: Path) -> None:
    data = open_dataset(shared_data / "voc2007_13", "train")
    assert [data[i].size for i in range(len(data))] == data.sizes
