"""`regio explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["explain", "parse_box"]

Box = tuple[float, float, float, float]


def explain(
    image: Annotated[Path, typer.Argument(help="The photo.")],
    *,
    box: Annotated[str, typer.Option(help="x1,y1,x2,y2 in pixels of the photo, of which pixel i covers i to i + 1.")],
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
    """Draw which cells of the feature map an extractor reads for a box, and with what weight.

    Writes weights.png (the parts' weights over the photo) and rounding.png (RoIPool's rounded bins beside RoIAlign's
    samples for this box); for learned region features also terms.png (geometry alone, appearance alone, both); for
    deformable pooling offsets.png (the samples, and where they come from).

    Without --weights the extractor is new, and reads a map of the default backbone with its ImageNet weights.
    """
    from regio.data import read_image
    from regio.devices import pick_device
    from regio.run_folders import new_folder
    from regio.visualize.explain import pictures, read_trained, read_untrained

    console = Console()
    pixels = read_image(image)
    corners = parse_box(box, (pixels.shape[1], pixels.shape[2]))
    place = pick_device(device)
    if weights is None:
        read = read_untrained(pixels, corners, extractor, place)
    else:
        read = read_trained(pixels, corners, extractor, weights, place)
    figures = pictures(read)
    folder = new_folder(Path("runs"), "explain") if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=dpi)
    console.print(f"{', '.join(figures)} in {folder}", highlight=False)


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
