"""Where runs go: folders that belong to one process, and the newest checkpoint in them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["emptied", "holds_a_run", "latest_checkpoint", "locked", "new_folder", "new_run"]

LOCK = ".lock"


def new_folder(project: Path, default: str) -> Path:
    """A folder that was not there before: the first free one of `project/default`, `default-2`, ..."""
    project.mkdir(parents=True, exist_ok=True)
    for folder in _numbered(project, default):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError  # there is no last number


@contextmanager
def new_run(project: Path, name: str | None, default: str) -> Iterator[Path]:
    """The folder of a new training, which belongs to this process alone within, see `locked`.

    It is `project/name`, or without a name the first free one of `project/default`, `default-2`, ... Free is one that
    does not hold a run and that no other process has; what a run left that ended before its first save is no run.

    Raises ValueError where the named one is not free.
    """
    for folder in [project / name] if name is not None else _numbered(project, default):
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
                if holds_a_run(folder):
                    raise ValueError(
                        f"{folder}: there is a run of this name; go on with --resume, or give another --name"
                    )
            except ValueError:
                if name is not None:
                    raise
                continue
            yield folder
            return


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Within, `folder`, which is made where it is missing, belongs to this process alone; a folder that is empty
    afterwards is removed. The lock is the system's, on the file `.lock`, and ends with the process however that ends.

    Raises ValueError where another process has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another process has a run going on there; give another --name") from None
    try:
        yield folder
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # not empty, as a rule
            folder.rmdir()


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """As `locked`, and what was in the folder is removed first."""
    with locked(folder):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        yield folder


def _numbered(project: Path, default: str) -> Iterator[Path]:
    yield project / default
    yield from (project / f"{default}-{number}" for number in count(2))


def holds_a_run(folder: Path, besides: Collection[str] = ()) -> bool:
    """Whether `folder` has anything but what a training leaves that ended before its first save, and what is named in
    `besides`."""
    return any(
        path.name not in ("config.yaml", "metrics.csv", LOCK, *besides) and not path.name.startswith("events.")
        for path in folder.iterdir()
    )


def latest_checkpoint(project: Path) -> Path:
    """The newest `weights/best.safetensors` of the runs in `project`. Raises ValueError where there is none."""
    found = sorted(project.glob("*/weights/best.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"--weights: no run in {project} has a checkpoint; name one, or train first (regio train)")
    return found[-1]
