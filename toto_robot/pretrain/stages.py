"""What has this run done already? A run is a list of stages; each is done once, timed, and told in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toto_robot.pretrain.distributed import ALONE, Processes
from toto_robot.run_folder import lock_folder, read_json, write_json

_FILE = "stages.json"


class Stages:
    """The stages of a run folder, in `stages.json`: name -> whether it is done, minutes, and what it found out.

    Of several processes the first one reads and writes the file, and keeps other runs out of the folder until it ends.
    """

    def __init__(
        self, run_dir: Path, settings: Mapping[str, Any], title: str = "", processes: Processes = ALONE
    ) -> None:
        """`settings` decide what the stages make; ValueError when the run folder was begun with others, or is in use.

        `title` stands before the name of each stage that is printed.
        """
        self._title, self._processes = title, processes
        self._path = run_dir / _FILE
        self._state: dict[str, Any] = processes.first(lambda: self._open(run_dir, settings))

    def _open(self, run_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        self._lock = lock_folder(run_dir)
        found: dict[str, Any] = {"settings": dict(settings), "stages": {}}
        if self._path.exists():
            found = read_json(self._path)
        changed = [key for key in settings if found["settings"].get(key) != settings[key]]
        if changed:
            what = ", ".join(f"{key}: {found['settings'].get(key)} -> {settings[key]}" for key in changed)
            raise ValueError(
                f"{run_dir} holds a run with other settings ({what}); continue it with its own settings, or start a "
                "new run with run=<another folder>"
            )
        write_json(self._path, found)
        return found

    def run(self, name: str, work: Callable[[], dict[str, Any]], *, together: bool = False) -> dict[str, Any]:
        """Do a stage unless it is done; return what it found out (JSON values, "summary" is the line to print).

        Of several processes the first one does it while the others wait, or all do it `together`.
        """
        stage = self._state["stages"].setdefault(name, {"done": False, "minutes": 0.0, "found": {}})
        again = " (done before)" if stage["done"] else ""
        if not stage["done"]:
            began, before = time.monotonic(), stage["minutes"]
            try:
                stage["found"] = self._work_together(work) if together else self._processes.first(work)
                stage["done"] = True
            finally:  # the time of an interrupted attempt counts too
                stage["minutes"] = before + (time.monotonic() - began) / 60
                if self._processes.is_first:
                    write_json(self._path, self._state)
        line = f"{self._title + name:<19} {stage['found'].get('summary', ''):<76}"
        print(f"{line} {stage['minutes']:5.1f} min{again}", flush=True)
        found: dict[str, Any] = stage["found"]
        return found

    def _work_together(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        mine = work()
        return self._processes.first(lambda: mine)

    @property
    def minutes(self) -> dict[str, float]:
        """Return the minutes that each stage took, over all its attempts."""
        return {name: round(stage["minutes"], 2) for name, stage in self._state["stages"].items()}
