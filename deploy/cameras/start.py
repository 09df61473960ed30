"""Which cameras does a bundle look through, and where do their pictures come from on a real arm?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from deploy.cameras.capture import CaptureProcess, CaptureSettings, make_source

CameraPlaces = dict[str, tuple[Path, tuple[int, int]]]  # name -> mailbox and the (height, width) that stand in it


def start_cameras(
    entries: Sequence[str], names: Sequence[str], folder: Path, stack: contextlib.ExitStack
) -> CameraPlaces:
    """Start a process for each camera `names` that a bundle looks through; ValueError for a missing one.

    `entries` are `<name>=<source>`; the mailboxes lie in `folder`, and `stack` ends the processes.
    """
    given = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    missing = [name for name in names if name not in given]
    if missing or len(given) < len(entries):
        raise ValueError(
            f"the bundle looks through {', '.join(names)}: give cameras=[<name>=<source>,...], "
            f"such as [{names[0]}=opencv:0]; got {list(entries)}"
        )
    started: CameraPlaces = {}
    for name in names:
        settings = CaptureSettings(name=name, source=given[name])
        make_source(settings)  # an unknown kind is refused here
        process = stack.enter_context(CaptureProcess(settings, folder / f"camera_{name}"))
        started[name] = (process.path, (settings.height, settings.width))
    return started
