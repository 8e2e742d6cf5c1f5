"""Which data set a folder holds: its format, and which of its files are which split.

============================================  ==========================================================================
found                                         read as
============================================  ==========================================================================
``SPLIT/_annotations.coco.json``              COCO, images beside it (Roboflow; its ``valid`` is ``val``)
``annotations/instances_SPLIT*.json``         COCO, images in ``SPLIT*/`` or ``images/SPLIT*/`` or ``images/``
``SPLIT.json``, ``NAME_SPLIT.json``, also in  COCO, images as above, or beside it
``annotations/``
one COCO JSON file, or the path of one        COCO, images as above; divided by `regio.data.divide`
``data.yaml``, or the path of one             YOLO, images and labels where it says
``images/``, ``labels/``, ``classes.txt``     YOLO; ``images/SPLIT/``, or divided
``Annotations/*.xml``, ``ImageSets/Main/``    Pascal VOC, images in ``JPEGImages/`` or ``images/``; the folder
                                              ``ImageSets/Segmentation`` itself: the same by its lists
``ANY/*.xml``                                 Pascal VOC, images as above, beside the XML files, or in another folder
                                              near it that holds the image an XML file names; divided
``SPLIT/*.xml``, ``SPLIT/ANY/*.xml``          the same, for each split (Roboflow)
============================================  ==========================================================================

The first line that fits counts. A JSON file is COCO when it has COCO's three keys; a file of another kind is ignored.
A folder with none of this may have one such data set somewhere inside: then that one is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from regio.data.coco import ROBOFLOW_FILE, coco_dataset, is_coco
from regio.data.dataset import DetectionDataset
from regio.data.images import IMAGE_SUFFIXES
from regio.data.records import Problems, text_lines
from regio.data.voc import is_voc, voc_class_names, voc_dataset, voc_image_name, xml_files
from regio.data.yolo import YoloSource, is_yolo, yolo_dataset, yolo_source

__all__ = ["Layout", "Reader", "find_layout", "same_split"]

_ALIASES = {"val": ("val", "valid", "validation"), "train": ("train", "training"), "test": ("test", "testing")}
_SPLITS = tuple(name for names in _ALIASES.values() for name in names)
_CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_NOT_SEARCHED = frozenset({"__pycache__", "node_modules", "site-packages"})

Reader = Callable[[Problems], DetectionDataset]


@dataclass(frozen=True)
class Layout:
    """A data set as it was found.

    format: in words. source: the folder or file to name in messages. splits: what reads each, by its own name; with a
    single one, nothing says which images are for validation. note: what a user should know of how it was found.
    """

    format: str
    source: Path
    splits: Mapping[str, Reader]
    note: str | None = None


def same_split(names: Mapping[str, object], split: str) -> list[str]:
    """Those of `names` that mean `split`: "valid" and "instances_val2017" mean "val"."""
    known = _ALIASES.get(split, (split,))
    return [name for name in names if name in known] or [n for n in names if _plain(n).split("_")[-1] in known]


def find_layout(path: Path) -> Layout:
    """The data set at `path`: a folder, a COCO JSON file or a YOLO YAML file.

    Raises ValueError when there is none, and when a folder has several in it and none of its own, naming them.
    """
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        raise ValueError(
            f'{path}: no such dataset: expected a folder, a COCO JSON file, a YOLO data.yaml, or the word "shapes"'
        )
    layout = _of_folder(path, path) or _of_lists(path)
    if layout is not None:
        return layout
    found = list(_below(path, path))
    if len(found) > 1:
        names = ", ".join(str(folder) for folder, _ in found)
        raise ValueError(f"{path}: {len(found)} data sets in it: {names}; name one of them")
    if found:
        folder, layout = found[0]
        return replace(layout, note=f"{path}: the data set in it is {folder} ({layout.format})")
    raise ValueError(_nothing(path))


def _of_file(path: Path) -> Layout:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: no dataset: expected a folder or a COCO JSON file, got a single image")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _yolo(yolo_source(path))
    split = path.stem.removeprefix("instances_")
    folders = [folder for root in (path.parent, path.parent.parent) for folder in _image_folders(root, split)]
    return Layout("COCO", path, {split: partial(coco_dataset, path, folders)})


def _of_folder(folder: Path, top: Path) -> Layout | None:
    """The data set whose files lie in `folder` itself. Images of VOC are looked for up to `top`."""
    return _coco(folder) or _yolo_in(folder) or _voc(folder, top)


def _below(folder: Path, top: Path) -> Iterator[tuple[Path, Layout]]:
    """The data sets inside `folder`. Hidden folders and links are not searched."""
    for child in _subfolders(folder):
        if child.name.startswith(".") or child.name in _NOT_SEARCHED or child.is_symlink():
            continue
        layout = _of_folder(child, top)
        if layout is not None:
            yield child, layout
        else:
            yield from _below(child, top)


def _nothing(path: Path) -> str:
    expected = (
        "expected COCO (annotations/instances_train.json, train/_annotations.coco.json or one .json file), Pascal VOC "
        "(Annotations/*.xml with JPEGImages/) or YOLO (data.yaml, or images/, labels/ and classes.txt)"
    )
    if next(_xml_folders(path), None) or any(is_voc(file) for file in path.rglob("*.[xX][mM][lL]")):
        return f"{path}: no images: expected them in {path / 'JPEGImages'} or {path / 'images'}, beside the XML files"
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return f"{path}: no names of classes: expected them in {path / 'classes.txt'}, one a line, or in a data.yaml"
    other = [file for folder in (path / "annotations", path) for file in sorted(folder.glob("*.json"))]
    hint = f"; {other[0]} lacks images, annotations or categories" if other else ""
    return f"{path}: no dataset found: {expected}{hint}"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


# COCO


def _coco(path: Path) -> Layout | None:
    files = _coco_files(path)
    if not files:
        return None
    source = next(iter(files.values())) if len(files) == 1 else path
    return Layout("COCO", source, {split: partial(_read_coco_at, path, file) for split, file in files.items()})


def _coco_files(path: Path) -> dict[str, Path]:
    """COCO files by the name of their split."""
    roboflow = {child.parent.name: child for child in sorted(path.glob(f"*/{ROBOFLOW_FILE}"))}
    if roboflow:
        return roboflow
    for folder in (path / "annotations", path):
        files = sorted(folder.glob("instances_*.json"))
        if files:
            return {file.stem.removeprefix("instances_"): file for file in files}
    files = [file for folder in (path / "annotations", path) for file in sorted(folder.glob("*.json"))]
    return {file.stem: file for file in files if is_coco(file)}


def _read_coco_at(path: Path, file: Path, problems: Problems) -> DetectionDataset:
    if file.name == ROBOFLOW_FILE:
        return coco_dataset(file, [file.parent], problems)
    folders = [*_image_folders(path, file.stem.removeprefix("instances_")), file.parent]
    return coco_dataset(file, folders, problems)


def _plain(split: str) -> str:
    """The split without its year: train of train2017."""
    return split.rstrip("0123456789")


def _image_folders(path: Path, split: str) -> list[Path]:
    """Where the images of `split` may lie, the likeliest first."""
    names = (split, _plain(split), _plain(split).split("_")[-1])
    candidates = [folder / name for name in names for folder in (path, path / "images")] + [path / "images", path]
    return list(dict.fromkeys(candidates))


# YOLO


def _yolo(source: YoloSource) -> Layout:
    readers = {split: partial(yolo_dataset, source, split) for split in source.splits}
    return Layout("YOLO", source.file, readers)


def _yolo_in(path: Path) -> Layout | None:
    pages = [file for ending in ("*.yaml", "*.yml") for file in sorted(path.glob(ending)) if is_yolo(file)]
    chosen = [file for file in pages if file.stem == "data"] or pages
    if len(chosen) > 1:
        raise ValueError(f"{path}: {len(chosen)} YOLO data sets in it: {', '.join(map(str, chosen))}; name one of them")
    if chosen:
        return _yolo(yolo_source(chosen[0]))
    images, labels = path / "images", path / "labels"
    file = next((path / name for name in _CLASS_FILES if (path / name).is_file()), None)
    if file is None or not (images.is_dir() and labels.is_dir()):
        return None
    names = [line.strip() for line in text_lines(file) if line.strip()]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"{file}: expected the names of classes, one a line and each once, got {len(names)} lines")
    splits = {child.name: (child,) for child in _subfolders(images) if child.name in _SPLITS}
    return _yolo(YoloSource(file, dict(enumerate(names)), splits or {"all": (images,)}))


# Pascal VOC


def _voc(path: Path, top: Path) -> Layout | None:
    parts = {
        child.name: part for child in _subfolders(path) if child.name in _SPLITS and (part := _voc_part(child, top))
    }
    if parts:
        folders = [annotations for annotations, _ in parts.values()]

        def read(split: str, problems: Problems) -> DetectionDataset:
            return voc_dataset(*parts[split], problems, class_names=voc_class_names(folders))

        source = path if len(parts) > 1 else folders[0]
        return Layout("Pascal VOC", source, {split: partial(read, split) for split in parts})
    part = _voc_part(path, top)
    if part is None:
        return None
    annotations, images = part
    listed = _voc_listed(annotations, images, annotations.parent / "ImageSets" / "Main")
    return listed or Layout("Pascal VOC", annotations, {"all": partial(voc_dataset, annotations, images)})


def _of_lists(path: Path) -> Layout | None:
    """The data set whose splits are the lists in `path` itself, such as ``VOC2012/ImageSets/Segmentation``."""
    path = path.resolve()
    part = _voc_part(path.parents[1], path.parents[1]) if path.parent.name == "ImageSets" else None
    return None if part is None else _voc_listed(*part, path)


def _voc_listed(annotations: Path, images: Path, lists: Path) -> Layout | None:
    readers = {
        file.stem: partial(voc_dataset, annotations, images, split_file=file)
        for file in sorted(lists.glob("*.txt"))
        if "_" not in file.stem  # cat_train.txt is about one class
    }
    return Layout("Pascal VOC", lists, readers) if readers else None


def _voc_part(path: Path, top: Path) -> tuple[Path, Path] | None:
    """A folder of XML files in `path`, or `path` itself, and the folder of their images; None where there is none."""
    folders = list(_xml_folders(path))
    standard = [folder for folder in folders if folder.name.lower() == "annotations"]
    chosen = standard or folders
    if len(chosen) > 1:
        raise ValueError(f"{path}: XML files in {', '.join(map(str, chosen))}; name the folder of one data set")
    if not chosen:
        return None
    images = _voc_images(chosen[0], path, top)
    return None if images is None else (chosen[0], images)


def _xml_folders(path: Path) -> Iterator[Path]:
    """The folders of VOC annotations: `path` and those directly in it."""
    for folder in (*_subfolders(path), path):
        if any(is_voc(file) for file in xml_files(folder)):
            yield folder


def _voc_images(annotations: Path, path: Path, top: Path) -> Path | None:
    """Where the images of the XML files in `annotations` lie: in `path`, or in the folders above it up to `top`."""
    names = {voc_image_name(file) for file in xml_files(annotations)[:50]} - {None}
    roots = [path, *(root for root in path.parents if root.is_relative_to(top))]
    for root in roots:
        usual = (root / "JPEGImages", root / "images", root / "Images", annotations)
        for folder in usual:
            if folder.is_dir() and any(child.suffix.lower() in IMAGE_SUFFIXES for child in folder.iterdir()):
                return folder
        others = [
            folder for folder in (*_subfolders(root), root) if any((folder / str(name)).is_file() for name in names)
        ]
        if len(others) > 1:
            raise ValueError(f"{annotations}: images in {' and in '.join(map(str, others))}: expected one folder")
        if others:
            return others[0]
    return None
