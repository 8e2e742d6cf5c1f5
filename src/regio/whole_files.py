"""Files that are written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["distinct_names", "write_json", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all: to a file beside it, flushed to disk, which then takes its place
    in one step. Raises OSError naming the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); an earlier file of this name is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Raises OSError naming the file."""
    write_whole(path, json.dumps(value).encode())


def distinct_names(files: Sequence[str | Path], suffix: str) -> list[str]:
    """A name for what is made of each of `files`: its own with `suffix`, and a number where two files share it. A name
    of more than 200 bytes is cut: with a number and another suffix it may be too long for a file."""
    names: dict[str, None] = {}
    for stem in (os.fsdecode(os.fsencode(Path(file).stem)[:200]) for file in files):
        name, number = f"{stem}{suffix}", 1
        while name in names:
            number += 1
            name = f"{stem}-{number}{suffix}"
        names[name] = None
    return list(names)
