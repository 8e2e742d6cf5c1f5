"""The YOLO reader: values by hand, the layouts there are, and every rule for doubtful input."""

import shutil
from pathlib import Path

import pytest

from regio.data import open_dataset, read_yolo
from regio.data.yolo import label_file
from tests.data.small_datasets import save_image, write_yolo_folder

BOX = "1 0.5 0.5 0.25 0.1\n"  # in 40 x 60 pixels: (15, 27, 25, 33)


def test_values_by_hand(tmp_path: Path) -> None:
    labels = {"a": BOX + "\n0 0.1 0.1 0.5 0.1 0.5 0.3\n", "b": "", "c": None}
    data = read_yolo(write_yolo_folder(tmp_path, labels))
    assert (data.class_names, data.category_ids, data.problems, data.notes) == (("cat", "dog"), (0, 1), (), ())
    assert [(r.id, r.name, r.size, len(r)) for r in data.records] == [
        (1, "a.png", (60, 40), 2),
        (2, "b.png", (60, 40), 0),
        (3, "c.png", (60, 40), 0),
    ]
    record = data.records[0]
    assert record.boxes.ravel().tolist() == pytest.approx([15, 27, 25, 33, 4, 6, 20, 18])
    assert record.labels.tolist() == [2, 1]
    assert record.annotation_ids.tolist() == [1, 3]  # numbers of lines
    assert record.segmentations[0] is None
    assert record.segmentations[1] == [pytest.approx([4, 6, 20, 6, 20, 18])]
    assert record.area.tolist() == pytest.approx([60, 16 * 12 / 2])
    assert data[0].targets.labels.tolist() == [2, 1]


def test_suffix_in_upper_case(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX, "b": BOX, "gone": BOX})
    for name, suffix in (("a", ".TXT"), ("gone", ".Txt")):
        label = tmp_path / "labels" / "train" / f"{name}.txt"
        label.rename(label.with_suffix(suffix))
    (tmp_path / "images" / "train" / "gone.png").unlink()
    data = read_yolo(file)
    assert [(r.name, len(r)) for r in data.records] == [("a.png", 1), ("b.png", 1)]
    assert [problem.file.name for problem in data.problems] == ["gone.Txt"]  # without an image


@pytest.mark.parametrize(
    "names, expected, ids",
    [
        ("names: [cat, dog]", ("cat", "dog"), (0, 1)),
        ("nc: 2\nnames:\n- cat\n- dog", ("cat", "dog"), (0, 1)),
        ("names:\n  1: dog\n  0: cat", ("cat", "dog"), (0, 1)),
        ("names: {1: dog, 7: cat}", ("dog", "cat"), (1, 7)),
        ("names: [on, 3]", ("on", "3"), (0, 1)),  # not a truth value and a number
    ],
)
def test_names(tmp_path: Path, names: str, expected: tuple[str, ...], ids: tuple[int, ...]) -> None:
    data = read_yolo(write_yolo_folder(tmp_path, {"a": BOX}, names))
    assert (data.class_names, data.category_ids) == (expected, ids)


@pytest.mark.parametrize(
    "page, message",
    [
        ("nc: 3\nnames: [cat, dog]", "nc is 3, but there are 2 names"),
        ("names: cat", "expected a list of names, or names by number, got 'cat'"),
        ("names: [cat, cat]", "name 'cat' is used twice"),
        ("names: {cat: 0}", "expected names by number, such as 0: cat, got cat: '0'"),
        ("names: [[cat]]", r"expected names by number, such as 0: cat, got 0: \['cat'\]"),
        ("nc: 3", "not a YOLO data set: expected names"),
        ("names: [cat", "not YAML: "),
        ("names: [cat, dog]\nkpt_shape: 17", r"expected kpt_shape \[keypoints, numbers of each\], got '17'"),
        ("names: [cat, dog]\ntest: gone", r"test: no such folder or file: .*gone; write it relative to this file"),
        ("names: [cat, dog]\ntest: {a: b}", "test: expected a folder or a text file, got {'a': 'b'}"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, page: str, message: str) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX}, page)
    with pytest.raises(ValueError, match=rf"data\.yaml: {message}") as error:
        read_yolo(file)
    assert "\n" not in str(error.value)


def test_yaml_without_splits_or_missing(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX})
    with pytest.raises(ValueError, match=r"data\.yaml: no split 'test': it has train, val"):
        read_yolo(file, "test")
    file.write_text("names: [cat]\ntrain:\n")
    with pytest.raises(ValueError, match="expected folders of images under train, val or test"):
        read_yolo(file)
    with pytest.raises(ValueError, match=r"gone\.yaml: cannot be read"):
        read_yolo(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    "line, kept, message",
    [
        ("2 0.5 0.5 0.1 0.1", None, r"line 2: of unknown class 2 \(there are 2, 0 to 1\); left out"),
        ("-1 0.5 0.5 0.1 0.1", None, "line 2: of unknown class -1"),
        ("0.5 0.5 0.5 0.1 0.1", None, "line 2: of unknown class 0.5"),
        ("0 0.5 0.5 0 0.1", None, r"line 2 \(cat\): box .* has width 0"),
        ("0 0.5 0.5 -0.1 0.1", None, r"line 2 \(cat\): box .* has width -4"),
        ("0 nan 0.5 0.1 0.1", None, r"line 2 \(cat\): box .* not finite"),
        ("0 0.5 0.5 inf 0.1", None, r"line 2 \(cat\): box .* not finite"),
        ("0 0.1 0.1 nan 0.1 0.5 0.3", None, r"line 2 \(cat\): box .* not finite"),
        ("0 20 30 10 6", None, r"line 2 \(cat\): box .* is outside its image of 40 x 60"),
        ("0 1 0.5 0.25 0.1", [35, 27, 40, 33], r"line 2 \(cat\): box .* sticks out"),
        ("0 0.5 0.1 -0.5 0.1 0.5 0.3", [0, 6, 20, 18], r"line 2 \(cat\): box .* sticks out"),
    ],
)
def test_doubtful_line(tmp_path: Path, line: str, kept: list[float] | None, message: str) -> None:
    file = write_yolo_folder(tmp_path, {"a": f"{BOX}{line}\n"})
    data = read_yolo(file)
    boxes = data.records[0].boxes.tolist()[1:]
    assert boxes == ([] if kept is None else [pytest.approx(kept)])
    assert len(data.problems) == 1
    with pytest.raises(ValueError, match=rf"labels/train/a\.txt: {message}"):
        read_yolo(file, strict=True)


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 0.5 0.5 0.1", r"expected a class and the numbers of a box \(4\) or a polygon .*, got 3 after the class"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"expected a class .*, got 5 after the class"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.9", r"expected a class .*, got 7 after the class"),
        ("0", r"expected a class .*, got 0 after the class"),
        ("cat 0.5 0.5 0.1 0.1", "expected numbers, got 'cat 0.5 0.5 0.1 0.1'"),
        ("0,0.5,0.5,0.1,0.1", "expected numbers, got '0,0.5,0.5,0.1,0.1'"),
    ],
)
def test_damaged_line_is_an_error_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = write_yolo_folder(tmp_path, {"a": f"{BOX}\n{line}\n"})
    with pytest.raises(ValueError, match=rf"labels/train/a\.txt: line 3: {message}$"):
        read_yolo(file)


def test_files_that_are_no_text_are_errors(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX, "b": BOX})
    for stem in "ab":
        (tmp_path / "labels" / "train" / f"{stem}.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt: cannot be read as text: .*; and 1 more like this"):
        read_yolo(file)


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX, "b": BOX})
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    (tmp_path / "labels" / "train" / "gone.txt").write_text(BOX)
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    data = read_yolo(file)
    assert [record.name for record in data.records] == ["a.png"]
    assert len(data.problems) == 2
    assert "gone.txt: no image of this name in" in str(data.problems[0])
    assert str(data.problems[1]).startswith(f"{tmp_path / 'images/train/b.png'}: image: cannot be read as an image")
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(ValueError, match=r"train: none of its 2 images has a label file \(.*labels/train/a\.txt, "):
        read_yolo(file)
    for image in (tmp_path / "images" / "train").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"train: no images in .*images/train"):
        read_yolo(file)


def test_text_files_and_lists_of_folders(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX, "b": BOX, "c": BOX})
    save_image(tmp_path / "images" / "more" / "deep" / "d.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "some.txt").write_text("../images/train/b.png\n\n../images/train/gone.png\n")
    file.write_text("train: [lists/some.txt, images/more]\nval: images/train\nnames: [cat, dog]\n")
    data = read_yolo(file)
    assert [(record.name, len(record)) for record in data.records] == [("b.png", 1), ("d.png", 0)]
    assert "lists/some.txt: line 3: no such file: " in str(data.problems[0])


def test_keypoints_are_passed_over_with_a_note(tmp_path: Path) -> None:
    page = "names: [cat, dog]\nkpt_shape: [2, 3]"
    file = write_yolo_folder(tmp_path, {"a": BOX.strip() + " 0.1 0.2 2 0.3 0.4 1\n"}, page)
    data = read_yolo(file)
    assert data.records[0].boxes.tolist() == [pytest.approx([15, 27, 25, 33])]
    assert data.records[0].segmentations == (None,)
    assert data.notes == ("keypoints are not read, only the boxes",)
    (tmp_path / "labels" / "train" / "a.txt").write_text(BOX)
    with pytest.raises(ValueError, match="expected a class and the numbers of a box and 6 numbers, got 4"):
        read_yolo(file)


def test_where_labels_are() -> None:
    assert label_file(Path("x/images/y/images/z/a.b.jpg")) == Path("x/images/y/labels/z/a.b.txt")
    assert label_file(Path("x/photos/a.jpg")) == Path("x/photos/a.txt")


def _write(folder: Path, images: str, labels: str, stem: str) -> None:
    save_image(folder / images / f"{stem}.png")
    (folder / labels).mkdir(parents=True, exist_ok=True)
    (folder / labels / f"{stem}.txt").write_text(BOX)


@pytest.mark.parametrize(
    "page, images, labels",
    [
        ("path: .\ntrain: images/train\nval: images/val\n", "images/{}", "labels/{}"),
        ("path: ../elsewhere\ntrain: images/train\nval: images/val\n", "images/{}", "labels/{}"),
        ("train: ../train/images\nval: ../val/images\ntest: # none\n", "{}/images", "{}/labels"),
        ("train: train\nvalid: val\n", "{}", "{}"),
    ],
    ids=["Ultralytics", "a path of another machine", "Roboflow", "side by side"],
)
def test_layouts(tmp_path: Path, page: str, images: str, labels: str) -> None:
    for split in ("train", "val"):
        _write(tmp_path / "d", images.format(split), labels.format(split), f"{split}1")
    file = tmp_path / "d" / "data.yaml"
    file.write_text(f"{page}names: [cat, dog]\n")
    for split in ("train", "val"):
        for place in (file, file.parent, tmp_path):
            data = open_dataset(place, split)
            assert [(record.name, len(record)) for record in data.records] == [(f"{split}1.png", 1)]
            assert bool(data.notes) == (place == tmp_path)  # which says that it was found inside


def test_path_of_the_data_in_yaml(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _write(tmp_path / "data" / "fruit", f"images/{split}", f"labels/{split}", split)
    file = tmp_path / "fruit.yaml"
    for path in ("data/fruit", tmp_path / "data" / "fruit"):
        file.write_text(f"path: {path}\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
        assert [record.name for record in open_dataset(tmp_path, "val").records] == ["val.png"]


@pytest.mark.parametrize("classes", ["classes.txt", "labels/classes.txt"])
def test_folders_without_yaml(tmp_path: Path, classes: str) -> None:
    for stem in ("a", "b", "c"):
        _write(tmp_path, "images", "labels", stem)
    with pytest.raises(ValueError, match=r"no names of classes: expected them in .*classes\.txt"):
        open_dataset(tmp_path)
    (tmp_path / classes).write_text("cat\ndog\n")
    data = open_dataset(tmp_path, "all")
    assert data.class_names == ("cat", "dog")
    assert [record.labels.tolist() for record in data.records] == [[2], [2], [2]]
    assert data.problems == ()
    assert (len(open_dataset(tmp_path, "train")), len(open_dataset(tmp_path, "val"))) == (2, 1)
    (tmp_path / classes).write_bytes(b"cat\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"classes\.txt: cannot be read as text: 'utf-8' codec"):
        open_dataset(tmp_path)
    (tmp_path / classes).write_text("cat\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt: expected the names of classes, one a line and each once"):
        open_dataset(tmp_path)


def test_byte_order_mark_before_the_names(tmp_path: Path) -> None:
    page = write_yolo_folder(tmp_path, {"a": "1 0.5 0.5 0.2 0.2"})
    page.write_text("names: [cat, dog]\ntrain: images/train\nval: images/train\n", encoding="utf-8-sig")
    assert open_dataset(tmp_path).class_names == ("cat", "dog")


def test_folders_of_splits_without_yaml(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _write(tmp_path, f"images/{split}", f"labels/{split}", split)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert [record.name for record in open_dataset(tmp_path, "val").records] == ["val.png"]


def test_of_several_yaml_files_one_must_be_named(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": BOX})
    for name in ("one.yaml", "two.yml"):
        shutil.copy(file, tmp_path / name)
    assert len(open_dataset(tmp_path, "train")) == 1  # data.yaml
    file.unlink()
    with pytest.raises(ValueError, match=r"2 YOLO data sets in it: .*one\.yaml, .*two\.yml; name one"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path / "two.yml", "train")) == 1
