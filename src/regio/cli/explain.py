"""`regio explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["explain", "parse_box", "parse_place"]

Box = tuple[float, float, float, float]


def explain(
    image: Annotated[Path, typer.Argument(help="The photo.")],
    *,
    box: Annotated[
        str | None,
        typer.Option(
            help="x1,y1,x2,y2 in pixels of the photo, of which pixel i covers i to i + 1: what an extractor reads for "
            "this box."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="x,y in pixels of the photo, once or several times: where the deformable layers of --weights read for "
            "a unit there (default: the centre of --box; without one on the background, and on the smallest and the "
            "largest of the objects that it finds with at least half of its best score)."
        ),
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="What reads the box, as in regio train (default: that of --weights).")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint whose maps and extractor are used (default: ImageNet's maps).")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the pictures (default: a new one in runs/).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dpi: Annotated[int, typer.Option(min=30, max=600, help="Pixels per inch of the pictures.")] = 150,
) -> None:
    """Draw which cells of the feature map an extractor reads for a box, and where deformable layers read.

    With --box writes weights.png (the parts' weights over the photo) and rounding.png (RoIPool's rounded bins beside
    RoIAlign's samples for this box); for learned region features also terms.png (geometry alone, appearance alone,
    both); for deformable pooling offsets.png (the samples, and where they come from) and bins.png (the moved bins).

    For a checkpoint with deformable convolutions writes sampling-points.png: the points that the last three of them
    read, one on the other, for units at the places of --at.

    Without --weights the extractor is new, and reads a map of the default backbone with its ImageNet weights.
    """
    from regio.analysis import deformable_backbone
    from regio.config import load_detector
    from regio.data import read_image
    from regio.devices import pick_device
    from regio.run_folders import new_folder
    from regio.visualize.explain import pictures, points_picture, read_by, read_untrained

    console = Console()
    pixels = read_image(image)
    size = (pixels.shape[1], pixels.shape[2])
    corners = None if box is None else parse_box(box, size)
    places = [parse_place(each, size) for each in at or ()]
    device_used = pick_device(device)
    figures: dict[str, Figure] = {}
    if weights is None:
        if corners is None:
            raise ValueError("--box: expected x1,y1,x2,y2, or a checkpoint with deformable layers in --weights")
        if places:
            raise ValueError("--at: expected a checkpoint with deformable layers in --weights")
        figures |= pictures(read_untrained(pixels, corners, extractor, device_used))
    else:
        own = _own_extractor(weights, extractor)
        detector, _ = load_detector(weights)
        detector.to(device_used).eval()
        deformable = deformable_backbone(detector)
        if corners is None and not deformable:
            raise ValueError(f"--box: expected x1,y1,x2,y2, since {weights} has no deformable layers")
        if places and not deformable:
            raise ValueError(f"--at: expected a checkpoint with deformable layers, {weights} has none")
        if corners is not None:
            figures |= pictures(read_by(detector, pixels, corners, own, str(weights)))
            x1, y1, x2, y2 = corners
            places = places or [((x1 + x2) / 2, (y1 + y2) / 2)]
        if deformable:
            figures["sampling-points.png"] = points_picture(detector, pixels, image.name, places, str(weights))
    folder = new_folder(Path("runs"), "explain") if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=dpi)
    console.print(f"{', '.join(figures)} in {folder}", highlight=False, markup=False)


def _own_extractor(weights: Path, wanted: str | None) -> str | None:
    """The name of the extractor of a checkpoint, if it has one. Raises ValueError where another one is wanted."""
    from regio.checkpoints import read_card
    from regio.config import EXTRACTORS
    from regio.settings import named

    own: str | None = read_card(weights).model.get("extractor", {}).get("name")
    if wanted is not None and own is not None and wanted != own:
        named(EXTRACTORS, wanted, "extractor")
        raise ValueError(f"{weights}: its extractor is {own}, not {wanted}; leave out the extractor or the checkpoint")
    return own


def parse_box(text: str, size: tuple[int, int]) -> Box:
    """The box that "x1,y1,x2,y2" names in an image of `size` (height, width).

    Raises ValueError unless it is four numbers, x1 < x2 and y1 < y2, inside the image.
    """
    try:
        x1, y1, x2, y2 = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--box: expected four numbers x1,y1,x2,y2, got '{text}'") from None
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"--box: expected x1 < x2 and y1 < y2, got '{text}'")
    height, width = size
    if not (x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height):
        raise ValueError(f"--box: expected a box in the image, 0,0,{width},{height}, got '{text}'")
    return x1, y1, x2, y2


def parse_place(text: str, size: tuple[int, int]) -> tuple[float, float]:
    """The place that "x,y" names in an image of `size` (height, width). Raises ValueError unless it is one."""
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--at: expected two numbers x,y, got '{text}'") from None
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"--at: expected a place in the image, 0,0 to {width},{height}, got '{text}'")
    return x, y
