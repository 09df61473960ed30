"""How does the policy's computer get mailboxes that look as if the robot stood beside it?

Records come in with the robot's computer's times and go into mailboxes of this one in its own; plans go out in the
robot's computer's time (`clock.py`). The inference process opens these mailboxes and knows nothing of a network.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploy.bridge.clock import CHUNK_TIMES, INFERENCE_TIMES, STATE_TIMES, Offset, shift
from deploy.bridge.wire import (
    LOST_S,
    PING,
    PING_S,
    Channel,
    Hello,
    Kind,
    Refused,
    WireError,
    hello_body,
    parse_json,
    record_of,
)
from deploy.bridge.workers import Workers
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
    create_mailboxes,
    frame_dtype,
)

_POLL_S = 0.002
_GREETING_S = 60.0  # the robot's computer may be asking a person


def camera_file(folder: Path, camera: str) -> Path:
    """Return where a camera's frames are on this computer."""
    return folder / f"camera_{camera}"


def create_all(folder: Path, cameras: tuple[str, ...], image_size: int) -> None:
    """Create the mailboxes that the robot's computer fills, and those of the plans."""
    create_mailboxes(folder)
    for camera in cameras:
        Mailbox(camera_file(folder, camera), frame_dtype(image_size, image_size), create=True).close()


def connect(host: str, port: int, hello: Hello) -> Channel:
    """Connect and be welcomed; Refused with the other side's reason, WireError if nobody answers there."""
    try:
        connection = socket.create_connection((host, port), timeout=5.0)
    except OSError as error:
        raise WireError(f"no robot's computer answers at {host}:{port}: {error}. Start its side first") from error
    channel = Channel(connection, hello.image_size)
    try:
        channel.send(Kind.HELLO, hello_body(hello))
        connection.settimeout(_GREETING_S)
        kind, body = channel.receive()
        connection.settimeout(LOST_S)
        answer = parse_json(body) if kind is Kind.HELLO else {}
        if "refused" in answer:
            raise Refused(f"the robot's computer refuses: {str(answer['refused'])[:500]}")
        if answer != {"welcome": True}:
            raise WireError("what answers there is not the robot's side of this bridge")
    except (WireError, Refused):
        channel.close()
        raise
    return channel


class PolicyEnd:
    """Fills this computer's mailboxes in `folder` and sends its plans; a context manager. The mailboxes exist."""

    def __init__(
        self, channel: Channel, hello: Hello, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is this computer's, that of the processes that use the mailboxes."""
        self._channel, self._clock, self.offset = channel, clock, Offset()
        self._states, self._episodes, self._chunks, self._told = (
            Mailbox(folder / name, dtype)
            for name, dtype in (
                (STATE_FILE, STATE),
                (EPISODE_FILE, EPISODE),
                (CHUNK_FILE, CHUNK),
                (INFERENCE_FILE, INFERENCE),
            )
        )
        self._frame = frame_dtype(hello.image_size, hello.image_size)
        self._eyes = [Mailbox(camera_file(folder, name), self._frame) for name in hello.cameras]
        self._workers = Workers(channel, self._send, self._receive)

    def __enter__(self) -> PolicyEnd:
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
        seen = {Kind.CHUNK: self._chunks.newest()[0], Kind.INFERENCE: self._told.newest()[0]}
        boxes = ((Kind.CHUNK, self._chunks, CHUNK_TIMES), (Kind.INFERENCE, self._told, INFERENCE_TIMES))
        pinged_s = -np.inf
        while not self._workers.wait(_POLL_S):
            now_s = self._clock()
            if now_s - pinged_s > PING_S:
                pinged_s = now_s
                ping = np.zeros((), PING)
                ping["sent_s"] = now_s
                self._channel.send_record(Kind.PING, ping)
            for kind, box, times in boxes:
                number, record = box.newest()
                if number != seen[kind] and self.offset.known:
                    seen[kind] = number
                    shift(record, times, self.offset.seconds)
                    self._channel.send_record(kind, record)

    def _receive(self) -> None:
        while self._workers.alive():
            kind, body = self._channel.receive()
            if kind is Kind.PONG:
                pong = record_of(kind, body)
                self.offset.observe(float(pong["sent_s"]), float(pong["robot_s"]), self._clock())
            elif kind not in (Kind.STATE, Kind.EPISODE, Kind.FRAME):
                raise WireError(f"a robot's computer does not send {kind.name.lower()}")
            elif kind is Kind.EPISODE:
                self._episodes.put(record_of(kind, body))
            elif self.offset.known:  # before that nothing can be dated
                self._take(kind, body)

    def _take(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.FRAME:
            if body[0] >= len(self._eyes):
                raise WireError(f"a frame of camera number {body[0]}; there are {len(self._eyes)}")
            frame = np.frombuffer(body, self._frame, 1, 1).copy().reshape(())
            shift(frame, ("capture_s",), -self.offset.seconds)
            self._eyes[body[0]].put(frame)
            return
        state = record_of(kind, body)
        shift(state, STATE_TIMES, -self.offset.seconds)
        self._states.put(state)

    def __exit__(self, *error: object) -> None:
        self._workers.close()
