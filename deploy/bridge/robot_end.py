"""What does the robot's computer do with a connected policy's computer: newest records out, plans in?

Two threads beside the mailboxes of a run. The control process reads the plans' mailbox as it always does and never
waits for the network; if the link is cut no plan comes any more, so the arm holds and then ramps to rest by the age of
the last one. A plan's stamp must lie between the robot state that it was made from and its arrival, both of which this
computer's clock has measured: a wrong clock on the other side cannot make a plan fresher than it is.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.bridge.wire import PONG, Channel, Hello, Kind, Refused, WireError, parse_hello, record_of
from deploy.bridge.workers import Workers
from deploy.cameras.reader import fit
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    EPISODE,
    EPISODE_FILE,
    INFERENCE,
    INFERENCE_FILE,
    STATE,
    STATE_FILE,
    frame_dtype,
)

_POLL_S = 0.002
_CLOCK_S = 0.02  # by how much stamps may contradict the two that are known here


def greet(connection: socket.socket, bundle: str) -> tuple[Channel, Hello]:
    """Hear who connects; Refused (told to both sides) unless it fits, WireError for what is no policy's computer."""
    channel = Channel(connection)
    try:
        kind, body = channel.receive()
        if kind is not Kind.HELLO:
            raise WireError(f"the first message is {kind.name.lower()}, not a greeting")
        hello = parse_hello(body)
        hello.check(bundle)
    except Refused as error:
        channel.send(Kind.HELLO, json.dumps({"refused": str(error)}).encode())
        channel.close()
        raise
    except WireError:
        channel.close()
        raise
    channel.image_size = hello.image_size
    return channel, hello


class RobotEnd:
    """Carries a run's mailboxes in `folder` to the policy's computer and its plans back; a context manager."""

    def __init__(
        self, channel: Channel, hello: Hello, folder: Path, cameras: Mapping[str, tuple[Path, tuple[int, int]]]
    ) -> None:
        """`cameras`: name to mailbox and (height, width) in it. The mailboxes exist."""
        self._channel, self._size = channel, hello.image_size
        self.rejected: Counter[str] = Counter()  # plans that were not passed on, by reason
        self._states, self._episodes = (
            Mailbox(folder / name, dtype) for name, dtype in ((STATE_FILE, STATE), (EPISODE_FILE, EPISODE))
        )
        self._chunks, self._told = (
            Mailbox(folder / name, dtype) for name, dtype in ((CHUNK_FILE, CHUNK), (INFERENCE_FILE, INFERENCE))
        )
        self._eyes = [Mailbox(cameras[name][0], frame_dtype(*cameras[name][1])) for name in hello.cameras]
        self._workers = Workers(channel, self._send, self._receive)

    def __enter__(self) -> RobotEnd:
        self._channel.send(Kind.HELLO, b'{"welcome": true}')
        self._workers.start()
        return self

    def alive(self) -> bool:
        """Say whether the link stands."""
        return self._workers.alive()

    @property
    def error(self) -> str:
        """Return why the link ended."""
        return self._workers.error

    def _send(self) -> None:
        """Send what is newest; a link that is too slow for everything skips what was overtaken."""
        seen: Counter[str] = Counter()
        while not self._workers.wait(_POLL_S):
            for kind, box in ((Kind.EPISODE, self._episodes), (Kind.STATE, self._states)):
                number, record = box.newest()
                if number != seen[kind.name]:
                    seen[kind.name] = number
                    self._channel.send_record(kind, record)
            for index, eye in enumerate(self._eyes):
                number, record = eye.newest()
                if number != seen[f"camera {index}"]:
                    seen[f"camera {index}"] = number
                    self._channel.send(Kind.FRAME, bytes([index]) + self._shrunk(record))

    def _shrunk(self, frame: np.ndarray) -> bytes:
        """Return a frame at the size that the policy sees: a hundredth of the bytes, the same picture there."""
        small = np.zeros((), frame_dtype(self._size, self._size))
        small["capture_s"], small["number"] = frame["capture_s"], frame["number"]
        small["image"] = fit(frame["image"], self._size)
        return small.tobytes()

    def _receive(self) -> None:
        while self._workers.alive():
            kind, body = self._channel.receive()
            if kind is Kind.PING:
                pong = np.zeros((), PONG)
                pong["sent_s"], pong["robot_s"] = record_of(kind, body)["sent_s"], time.monotonic()
                self._channel.send_record(Kind.PONG, pong)
            elif kind is Kind.CHUNK:
                self._take(record_of(kind, body), time.monotonic())
            elif kind is Kind.INFERENCE:
                self._told.put(record_of(kind, body))
            else:
                raise WireError(f"a policy's computer does not send {kind.name.lower()}")

    def _take(self, chunk: np.ndarray, now_s: float) -> None:
        made_s, state_s = float(chunk["made_s"]), float(chunk["state_s"])
        if made_s > now_s + _CLOCK_S:
            self.rejected["made after it came"] += 1
        elif state_s > 0.0 and made_s < state_s - _CLOCK_S:
            self.rejected["made before the state it came from"] += 1
        else:
            chunk["made_s"] = min(made_s, now_s)
            self._chunks.put(chunk)

    def __exit__(self, *error: object) -> None:
        self._workers.close()
