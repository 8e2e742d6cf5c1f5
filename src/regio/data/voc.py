"""Reader of Pascal VOC's XML (Everingham et al. 2010, and the devkit's documentation).

VOC counts pixels from 1 and includes the last one: (xmin, ymin, xmax, ymax) becomes the half-open
(xmin - 1, ymin - 1, xmax, ymax). Many tools write such files counting from 0; their boxes come out one pixel too large
to the left and above, which a file cannot tell.

The class of every pixel of NAME.jpg is in ``SegmentationClass/NAME.png`` beside the folder of the XML files: 0 is the
background, i the i-th class, 255 unknown, as at the rims of objects. Where there is no such folder it follows from
``SegmentationObject/NAME.png``, in which i is the i-th object of the XML file.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regio.data.class_maps import LabelImage
from regio.data.dataset import DetectionDataset
from regio.data.images import IMAGE_SUFFIXES
from regio.data.records import Annotation, Problems, Record, size_in_file, sound_box, text_lines
from regio.types import IGNORED

__all__ = [
    "VOC_CLASSES",
    "is_voc",
    "read_voc",
    "voc_class_names",
    "voc_dataset",
    "voc_image_name",
    "xml_files",
]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(
    annotations: str | Path, images: str | Path, *, split_file: str | Path | None = None, strict: bool = False
) -> DetectionDataset:
    """The dataset of the XML files in the folder `annotations`, whose images lie in the folder `images`.

    The image of ``NAME.xml`` is ``NAME`` with an image suffix, or else its <filename>. Image ids number all XML files
    of the folder by name, from 1, and the classes are VOC's twenty if no other occurs in any of the files, otherwise
    the names that occur, sorted: neither depends on the split. split_file: take only the images named in this file,
    one a line (``ImageSets/Main/train.txt``). strict: raise at the first doubtful image or annotation instead of
    listing it in `problems`; the rules are in `regio.data.records`.

    Raises ValueError when a file is missing, is no XML or no VOC annotation, and when no image is found.
    """
    problems = Problems(strict)
    split = None if split_file is None else Path(split_file)
    dataset = voc_dataset(Path(annotations), Path(images), problems, split_file=split)
    problems.raise_damage()
    return dataset


def voc_dataset(
    annotations: Path,
    images: Path,
    problems: Problems,
    *,
    split_file: Path | None = None,
    class_names: Sequence[str] | None = None,
) -> DetectionDataset:
    """As `read_voc`, with damaged files listed in `problems`. class_names: in the order of the labels, where other
    folders have a say in them."""
    pages = _pages(annotations, problems)
    class_names = class_names or _class_names(pages)
    labels = {name: label for label, name in enumerate(class_names, start=1)}
    files, label_images = _ImageFiles(images), _LabelImages(annotations.parent)
    if split_file is None:
        files.list_others(pages, problems)
    records = []
    for id, page in _selected(pages, annotations, split_file, problems):
        path = files.of(page)
        if path is None:
            problems.add(page.file, "image", f"no such file: {images / page.image_name}; left out")
            continue
        size = page.size or size_in_file(path, problems)
        if size is None:
            continue
        objects = [_annotation(page, row, size, labels, problems) for row in range(len(page.objects))]
        label_image = label_images.of(page, labels)
        records.append(Record.of(id, path, path.name, size, [o for o in objects if o is not None], label_image))
    if not records:
        problems.raise_damage()
        raise ValueError(f"{split_file or annotations}: none of its images is in {images}")
    return DetectionDataset(class_names, range(1, len(class_names) + 1), records, problems=problems.found)


@dataclass(frozen=True)
class _Page:
    """One annotation file. size: (height, width), or None where it says none."""

    file: Path
    image_name: str
    size: tuple[int, int] | None
    objects: list[ET.Element]


class _ImageFiles:
    """The images of a folder, listed once: by name, and by name without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of images")
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        self._by_name = {path.name: path for path in paths}
        self._by_stem = {path.stem: path for path in reversed(paths)}

    def of(self, page: _Page) -> Path | None:
        return self._by_stem.get(page.file.stem) or self._by_name.get(page.image_name)

    def list_others(self, pages: list[_Page], problems: Problems) -> None:
        """List the images that are of no page and of no damaged file."""
        damaged = {problem.file.stem for problem in problems.damaged}
        annotated = {self.of(page) for page in pages}
        for path in self._by_name.values():
            if path not in annotated and path.stem not in damaged:
                problems.add(path, "image", "no annotation file; left out")


class _LabelImages:
    """The files in `folder` of the class of every pixel, listed once: by the name of the annotation file."""

    def __init__(self, folder: Path) -> None:
        self._classes, self._objects = (
            {path.stem: path for path in (folder / name).glob("*.png")}
            for name in ("SegmentationClass", "SegmentationObject")
        )

    def of(self, page: _Page, labels: dict[str, int]) -> LabelImage | None:
        """labels: by the name of the class, in their order."""
        path = (self._classes or self._objects).get(page.file.stem)
        if path is None:
            return None
        values = [*labels.values()] if self._classes else [labels[_name(row)] for row in page.objects]
        return LabelImage.of(path, values[: IGNORED - 1])


def xml_files(folder: Path) -> list[Path]:
    """The files in `folder` that are XML by their names, sorted."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".xml")


def is_voc(file: Path) -> bool:
    """Whether `file` seems to be a VOC annotation, by its first kilobytes."""
    try:
        with file.open("rb") as stream:
            return b"<annotation" in stream.read(4096)
    except OSError:
        return False


def voc_class_names(folders: Iterable[Path]) -> tuple[str, ...]:
    """The classes of all XML files in `folders`, as `read_voc` takes them of one. Damaged files are passed over."""
    problems = Problems(strict=False)
    return _class_names([page for folder in folders for page in _pages(folder, problems)])


def voc_image_name(file: Path) -> str | None:
    """The <filename> in an annotation `file`, without folders; None where it is damaged or has none."""
    pages = [page for page in [_parse(file, Problems(strict=False))] if page is not None]
    return pages[0].image_name if pages else None


def _pages(annotations: Path, problems: Problems) -> list[_Page]:
    files = xml_files(annotations) if annotations.is_dir() else []
    if not files:
        raise ValueError(f"{annotations}: no annotations: expected files *.xml")
    pages = [page for file in files if (page := _parse(file, problems)) is not None]
    if not pages:
        problems.raise_damage()
    return pages


def _parse(file: Path, problems: Problems) -> _Page | None:
    """The annotation in `file`, or None where it is damaged."""
    try:
        root = ET.fromstring(file.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:  # the latter of encodings that are not known
        problems.add_damage(file, "", f"not XML: {error}")
        return None
    if root.tag != "annotation":
        problems.add_damage(file, "", f"not a VOC annotation: expected <annotation>, got <{root.tag}>")
        return None
    sides = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    whole = [int(side) for side in sides if side and math.isfinite(side)]  # some tools write 0 x 0
    size = (whole[0], whole[1]) if len(whole) == 2 else None
    if any(not (row.findtext("name") or "").strip() for row in root.findall("object")):
        problems.add_damage(file, "", "not a VOC annotation: an <object> without <name>")
        return None
    image_name = Path((root.findtext("filename") or file.stem).strip()).name
    return _Page(file, image_name, size, root.findall("object"))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _name(row: ET.Element) -> str:
    return (row.findtext("name") or "").strip()


def _class_names(pages: list[_Page]) -> tuple[str, ...]:
    found = {_name(row) for page in pages for row in page.objects}
    if not found:
        raise ValueError(f"{pages[0].file.parent}: no classes: none of its {len(pages)} files has an <object>")
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _selected(
    pages: list[_Page], annotations: Path, split_file: Path | None, problems: Problems
) -> Iterable[tuple[int, _Page]]:
    """(image id, page) of the split, or of all pages."""
    by_stem = {page.file.stem: (id, page) for id, page in enumerate(pages, start=1)}
    if split_file is None:
        return list(by_stem.values())
    damaged = {problem.file.stem for problem in problems.damaged}
    selected = []
    for line in text_lines(split_file):
        whole = line.strip()
        if not whole:
            continue
        known = (name for name in (whole, whole.split()[0]) if name in by_stem or name in damaged)
        stem = next(known, whole)  # a name may have spaces, and a number may follow it
        if stem in by_stem:
            selected.append(by_stem[stem])
        elif stem not in damaged:
            problems.add(split_file, f"image {stem}", f"no such file: {annotations / stem}.xml; left out")
    return selected


def _annotation(
    page: _Page, row: int, size: tuple[int, int], labels: dict[str, int], problems: Problems
) -> Annotation | None:
    """Object number `row` of the page, or None where the rules leave it out."""
    element = page.objects[row]
    item = f"object {row + 1} ({_name(element)})"
    corners = [_number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    if any(corner is None for corner in corners):
        problems.add(page.file, item, "expected <bndbox> with numbers xmin, ymin, xmax, ymax; left out")
        return None
    xmin, ymin, xmax, ymax = (corner for corner in corners if corner is not None)
    box = sound_box((xmin - 1, ymin - 1, xmax, ymax), size, page.file, item, problems)
    if box is None:
        return None
    return Annotation(
        id=row + 1,
        box=box,
        label=labels[_name(element)],
        area=(box[2] - box[0]) * (box[3] - box[1]),
        difficult=bool(_number(element.findtext("difficult"))),
    )
