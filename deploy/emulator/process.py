"""How does one process become an emulated robot: settings, priority, garbage collection, a clean end?"""

from __future__ import annotations

import gc
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.emulator.cameras import Cameras
from deploy.emulator.connections import CONTROL_PORT, listen
from deploy.emulator.robot import EmulatedRobot
from deploy.emulator.server import PACINGS, Server
from deploy.realtime.clock import die_with_parent

_PRIORITY = 50  # SCHED_FIFO, below a client's 99


@dataclass(kw_only=True)
class Settings:
    """Of one emulator; see `deploy.emulator.client.Emulator`."""

    env: str = "franka_pick"
    robot: str = "fr3"
    seed: int = 0
    pacing: str = "lockstep"
    address: str = "127.0.0.1"
    cameras: list[str] = field(default_factory=list)
    image_size: int = 64
    camera_rate_hz: float = 30.0
    options: dict[str, Any] = field(default_factory=dict)
    event_file: str | None = None
    folder: str | None = None  # of the cameras' mailboxes
    parent: int | None = None  # process whose death ends this one: a killed test leaves no emulator behind

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.pacing not in PACINGS:
            raise ValueError(f"pacing must be one of {', '.join(PACINGS)}, got {self.pacing!r}")
        if not self.address.startswith("127."):
            raise ValueError(f"the emulator listens on loopback only: address=127.x.y.z, got {self.address!r}")
        if self.cameras and self.folder is None:
            raise ValueError("cameras need folder: where their mailboxes go")
        if not 0.0 < self.camera_rate_hz <= 1000.0:
            raise ValueError(f"camera_rate_hz must be above 0, up to 1000, got {self.camera_rate_hz}")


def env_id(name: str) -> str:
    """Return gymnasium's id of a task: `franka_pick` is toto_robot/FrankaPick-v0."""
    return name if "/" in name else f"toto_robot/{''.join(part.capitalize() for part in name.split('_'))}-v0"


def make_server(settings: Settings) -> Server:
    """Return a server that listens."""
    listen(settings.address, CONTROL_PORT).close()  # a taken address is said before the scene is loaded
    event_file = Path(settings.event_file) if settings.event_file else None
    robot = EmulatedRobot(env_id(settings.env), settings.options, settings.robot, settings.seed, event_file)
    server = Server(robot, settings.address, settings.pacing)
    if settings.cameras:
        robot.cameras = _start_cameras(robot, settings)
    return server


def _start_cameras(robot: EmulatedRobot, settings: Settings) -> Cameras:
    chosen = {
        "folder": settings.folder,
        "env_id": env_id(settings.env),
        "options": settings.options,
        "cameras": settings.cameras,
        "image_size": settings.image_size,
        "camera_rate_hz": settings.camera_rate_hz,
    }
    return Cameras(robot.plant, chosen)


def run(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or a request to stop."""
    server = make_server(settings)

    def stop(*_: Any) -> None:
        server.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if settings.parent is not None:
        die_with_parent(settings.parent)
    raise_priority()
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection takes milliseconds; a tick makes no cycles
    try:
        server.serve()
    finally:
        server.close()
        server.robot.events.close()
        if server.robot.cameras is not None:
            server.robot.cameras.close()


def raise_priority() -> bool:
    """Run under SCHED_FIFO if that is allowed; say whether it is. Children (the cameras) do not inherit it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except PermissionError:
        return False
    return True
