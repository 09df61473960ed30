"""Which files lie below a folder, where links may lead in circles and folders may be closed?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

Listing = tuple[Path, list[str], list[str]]  # a folder, the names of the folders in it, the names of the files


def walk(top: Path, on_closed: Callable[[Path, OSError], object] | None = None) -> Iterator[Listing]:
    """Yield every folder at and below `top` once, sorted, links followed; drop names from its folders to skip them.

    Hidden names are left out. A folder that several links lead to is yielded at one place, its own where that is below
    `top`: a circle of links ends, and no file comes twice. A folder that cannot be listed is given to `on_closed`, or
    its OSError is raised.
    """
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    yield from _walk(top, seen, links, on_closed)
    while links:
        yield from _walk(links.pop(0), seen, links, on_closed)


def _walk(
    folder: Path, seen: set[tuple[int, int]], links: list[Path], on_closed: Callable[[Path, OSError], object] | None
) -> Iterator[Listing]:
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name)
            linked = {entry.name for entry in shown if entry.is_symlink()}
            folders = [entry.name for entry in shown if _is_folder(entry)]
            below = set(folders)
            files = [entry.name for entry in shown if entry.name not in below]
    except OSError as error:
        if on_closed is None:
            raise
        on_closed(folder, error)
        return
    yield folder, folders, files
    for name in folders:
        if name in linked:
            links.append(folder / name)  # after all real folders, which keep their own names
        else:
            yield from _walk(folder / name, seen, links, on_closed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; whoever opens it hears the reason
        return False
