"""How do tests and programs start an emulated robot and talk to it beside the robot's own interface?"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.emulator.cameras import camera_file
from deploy.emulator.connections import CONTROL_PORT
from deploy.realtime.mailbox import memory_folder
from toto_robot.one_thread import ONE_THREAD

START_TIMEOUT_S = 120.0  # the first scene of a machine is composed from robosuite's models
_numbers = itertools.count(1)


class Emulator:
    """An emulator in a process of its own, on a loopback address of its own. Use it as a context manager.

    Args:
        env: task, as the console names it (`franka_pick`) or gymnasium's id.
        robot: `fr3` (protocol 10) or `fer` (protocol 5).
        seed: of the first scene.
        pacing: `lockstep` or `strict`.
        address: a loopback address; None takes a free one.
        cameras: which cameras are drawn, none by default; size in pixels, frames a second.
        options: further arguments of `gymnasium.make`.
    """

    def __init__(
        self,
        env: str = "franka_pick",
        *,
        robot: str = "fr3",
        seed: int = 0,
        pacing: str = "lockstep",
        address: str | None = None,
        cameras: tuple[str, ...] = (),
        image_size: int = 64,
        camera_rate_hz: float = 30.0,
        options: dict[str, Any] | None = None,
        event_file: Path | str | None = None,
    ) -> None:
        self.address = address or _free_address()
        self.folder = memory_folder("toto_robot_emulator_")
        self.cameras = {name: camera_file(self.folder, name) for name in cameras}
        self._settings = {
            "env": env,
            "robot": robot,
            "seed": seed,
            "pacing": pacing,
            "address": self.address,
            "cameras": list(cameras),
            "image_size": image_size,
            "camera_rate_hz": camera_rate_hz,
            "options": options or {},
            "event_file": str(event_file) if event_file else None,
            "folder": str(self.folder),
            "parent": os.getpid(),
        }
        self._process: subprocess.Popen[str] | None = None
        self._channel: socket.socket | None = None
        self._lines: Any = None

    def start(self) -> Self:
        """Start the process and wait until it listens. RuntimeError with its last words if it does not.

        It ends with the thread that starts it: the kernel's signal of a parent's death is that of the thread.
        """
        command = [sys.executable, "-m", "deploy.emulator", json.dumps(self._settings)]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
        log = open(self.folder / "log", "w+")  # noqa: SIM115 (the process writes to it)
        # In a session of its own: a terminal's Ctrl-C or hang-up reaches programs, not a robot.
        self._process = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env=environment, start_new_session=True
        )
        log.close()
        atexit.register(self.stop)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self._channel is None:
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                words = (self.folder / "log").read_text()[-3000:]
                self.stop()
                raise RuntimeError(f"the emulator did not start:\n{words}")
            self._try_connect()
        return self

    @property
    def pid(self) -> int:
        """Return the process id of the server, so that a test can kill it."""
        assert self._process is not None, "not started"
        return self._process.pid

    def reset(self, seed: int) -> None:
        """Put the scene where `env.reset(seed=seed)` puts it, arm and hand at rest in it, errors cleared.

        A connected client stays connected: its next state shows the robot idle in the new place, and the robot's clock
        goes on. ValueError while a motion runs.
        """
        self._ask("reset", seed=seed)

    def fault(self, name: str, **parameters: Any) -> None:
        """Switch a fault on (deploy/emulator/faults.py). ValueError for an unknown one."""
        self._ask("fault", name=name, **parameters)

    def guiding(self, on: bool) -> None:
        """Switch guiding mode: a hand may move the arm."""
        self._ask("guiding", on=on)

    def guide(self, q_rad: Any) -> None:
        """Pull the joints towards a position (7,) with a soft hand; None lets go."""
        self._ask("guide", q_rad=None if q_rad is None else [float(value) for value in q_rad])

    def status(self) -> dict[str, Any]:
        """Return mode, errors, cycle counts, losses, task success, figures of the clock."""
        return self._ask("status")

    def scene(self) -> dict[str, Any]:
        """Return what a simulator knows: `qpos`, `qvel` of the whole scene, `goal`, `success`, `failed`, `time_s`."""
        return self._ask("scene")

    def events(self, since: int = 0, event: str | None = None) -> list[dict[str, Any]]:
        """Return the events after a number, oldest first; of one kind if `event` is given."""
        found = self._ask("events", since=since)
        return [entry for entry in found if event is None or entry["event"] == event]

    def reset_timing(self) -> None:
        """Begin the figures of the clock anew."""
        self._ask("reset_timing")

    def kill(self) -> None:
        """Kill the server (SIGKILL) as a power cut would."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the process and remove its folder; twice is once."""
        atexit.unregister(self.stop)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _try_connect(self) -> None:
        try:
            self._channel = socket.create_connection((self.address, CONTROL_PORT), timeout=60.0)
        except OSError:
            time.sleep(0.05)
            return
        self._lines = self._channel.makefile("r")
        if self.status()["pid"] != self.pid:  # another emulator's: ours will say that it cannot listen there
            self._channel.close()
            self._channel = None
            time.sleep(0.05)

    def _ask(self, request: str, **parameters: Any) -> Any:
        if self._channel is None:
            raise RuntimeError("the emulator is not running: use it as a context manager, or call start()")
        self._channel.sendall(json.dumps({"do": request, **parameters}).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the emulator has ended")
        answer = json.loads(line)
        if not answer["ok"]:
            raise ValueError(answer["error"])
        return answer["value"]


def _free_address() -> str:
    """Return a loopback address where nobody listens, another one for each emulator of this machine."""
    for _ in range(1000):
        number = (os.getpid() * 41 + next(_numbers)) % (254 * 254)
        address = f"127.{77 + os.getpid() % 100}.{1 + number // 254}.{1 + number % 254}"
        with socket.socket() as probe:
            try:
                probe.bind((address, CONTROL_PORT))
            except OSError:
                continue
        return address
    raise RuntimeError("no free loopback address for an emulator")
