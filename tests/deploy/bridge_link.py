"""The bridge between two computers on loopback, for tests: a door, both ends, and a clock that is ahead on one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bridge.policy_end import PolicyEnd, connect, create_all
from deploy.bridge.robot_end import RobotEnd, greet
from deploy.bridge.wire import Refused, WireError, make_hello
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    CHUNK,
    EPISODE,
    EPISODE_FILE,
    INFERENCE,
    INFERENCE_FILE,
    frame_dtype,
)

PATIENCE_S = 60.0
AHEAD_S = 5000.0  # of the policy's computer's clock
HASH = "0123456789abcdef"
HEIGHT, WIDTH, SIZE = 24, 32, 16
HELLO = make_hello(
    HASH, {"image_size": SIZE, "env_id": "any"}, ("front",), {"p10_ms": 0.9, "p50_ms": 1.0, "p99_ms": 2.0}
)


def elsewhere() -> float:
    """What the policy's computer's clock shows."""
    return time.monotonic() + AHEAD_S


def wait(what: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until_s
        time.sleep(0.005)


class Door:
    """The robot's computer's listening socket, and what came through it."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.error: Exception | None = None
        self.end: RobotEnd | None = None
        self._thread: threading.Thread | None = None

    def open(self, folder: Path, cameras: Any, bundle: str = HASH[:8]) -> None:
        """Let one policy's computer in, in a thread."""

        def work() -> None:
            connection, _ = self.socket.accept()
            try:
                channel, hello = greet(connection, bundle)
                self.end = RobotEnd(channel, hello, folder, cameras).__enter__()
            except (Refused, WireError) as error:
                self.error = error

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def opened(self) -> RobotEnd:
        """Wait until somebody is in."""
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert self.end is not None, self.error
        return self.end

    def refused(self) -> str:
        """Wait until somebody was not let in; return why."""
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert self.error is not None and self.end is None
        return str(self.error)

    def close(self) -> None:
        if self.end is not None:
            self.end.__exit__()
        self.socket.close()


class Link:
    """Both computers' folders, and the bridge between them."""

    def __init__(self, door: Door, robot: Path, policy: Path) -> None:
        """The robot's mailboxes of state, plans and operator exist."""
        policy.mkdir()
        self.eye = Mailbox(robot / "front", frame_dtype(HEIGHT, WIDTH), create=True)
        create_all(policy, HELLO.cameras, SIZE)
        for folder in (robot, policy):
            Mailbox(folder / EPISODE_FILE, EPISODE, create=True).close()
            Mailbox(folder / INFERENCE_FILE, INFERENCE, create=True).close()
        door.open(robot, {"front": (robot / "front", (HEIGHT, WIDTH))})
        self.channel = connect("127.0.0.1", door.port, HELLO)
        self.policy_end = PolicyEnd(self.channel, HELLO, policy, elsewhere).__enter__()
        self.robot_end = door.opened()
        wait(lambda: self.policy_end.offset.known)
        self._folders = {"robot": robot, "policy": policy}

    def box(self, side: str, name: str, dtype: Any) -> Mailbox:
        return Mailbox(self._folders[side] / name, dtype)

    def close(self) -> None:
        self.policy_end.__exit__()


def plan(q_rad: np.ndarray, now_s: float, state_s: float) -> np.ndarray:
    """Return a chunk of a policy whose clock shows `now_s`: the first joint swings."""
    chunk = np.zeros((), CHUNK)
    times = now_s + 0.05 * np.arange(1, 9)
    chunk["made_s"], chunk["capture_s"], chunk["state_s"], chunk["count"] = now_s, now_s - 0.04, state_s, 8
    chunk["time_s"][:8], chunk["q_rad"][:8], chunk["gripper"][:8] = times, q_rad, -1.0
    chunk["q_rad"][:8, 0] += 0.3 * np.sin(4.0 * times)
    chunk["dq_rad_s"][:8, 0] = 1.2 * np.cos(4.0 * times)
    return chunk
