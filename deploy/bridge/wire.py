"""What do the two computers send each other, and what is refused before anybody acts on it?

A message is a header (magic, kind, length) and a body of a known size: a record of `records.py` as it lies in memory,
or a short JSON object. Nothing is pickled. The computers agree on version, layout of the records, bundle and cameras
first (`Hello`); afterwards a body of any other size than agreed ends the connection.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import importlib.metadata
import json
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from deploy.realtime.records import CHUNK, EPISODE, INFERENCE, STATE, frame_dtype

PROTOCOL = 1
PORT = 5757
LOST_S = 3.0  # without a word for so long, the link is lost; whoever has nothing to say pings
PING_S = 0.1
IMAGE_PX = (8, 1024)  # least and greatest side of a camera's picture
MOST_CAMERAS = 8
MOST_JSON = 65536  # bytes
_MAGIC = b"TOTB"
_HEADER = struct.Struct("<4sBI")
_SEND_BUFFER = 262144  # bytes: what a slow link queues is latency
PING = np.dtype([("sent_s", "<f8")])
PONG = np.dtype([("sent_s", "<f8"), ("robot_s", "<f8")])
_LEAST_HASH = 8


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1  # JSON; policy to robot, then back
    STATE = 2  # robot to policy
    EPISODE = 3  # robot to policy
    FRAME = 4  # robot to policy: number of the camera (1 byte) and a frame record
    CHUNK = 5  # policy to robot, in the robot's time
    INFERENCE = 6  # policy to robot, in the robot's time
    PING = 7  # policy to robot
    PONG = 8  # robot to policy


RECORDS = {
    Kind.STATE: STATE,
    Kind.EPISODE: EPISODE,
    Kind.CHUNK: CHUNK,
    Kind.INFERENCE: INFERENCE,
    Kind.PING: PING,
    Kind.PONG: PONG,
}


class WireError(ConnectionError):
    """The connection has ended, or must: the message says why."""


class Refused(ValueError):
    """The two computers do not belong together: the message says what differs, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What the policy's computer says first."""

    version: str
    protocol: int
    layout: str  # digest of the records' dtypes
    bundle: str  # hash
    cameras: tuple[str, ...]
    image_size: int
    task: dict[str, Any]
    policy_ms: dict[str, float]  # what a step costs there

    def check(self, bundle: str) -> None:
        """Raise Refused unless it fits this computer, and the bundle is the one that is expected here."""
        for name, theirs, ours in (
            ("toto_robot", self.version, package_version()),
            ("the bridge's protocol", self.protocol, PROTOCOL),
            ("the layout of the records", self.layout, layout()),
        ):
            if theirs != ours:
                raise Refused(
                    f"{name} differs: {theirs} on the policy's computer, {ours} on the robot's. "
                    "Install the same toto_robot on both"
                )
        if len(bundle) < _LEAST_HASH or not self.bundle.startswith(bundle):
            raise Refused(
                f"the policy's computer has bundle {self.bundle[:16]}, this one expects {bundle[:16]!r}: give the "
                f"first {_LEAST_HASH} or more characters of the hash that the policy's computer prints"
            )
        if not 0 < len(self.cameras) <= MOST_CAMERAS or not IMAGE_PX[0] <= self.image_size <= IMAGE_PX[1]:
            raise Refused(
                f"expected 1 to {MOST_CAMERAS} cameras of {IMAGE_PX} px, got {self.cameras} {self.image_size}"
            )


def make_hello(bundle: str, task: Mapping[str, Any], cameras: tuple[str, ...], policy_ms: Mapping[str, float]) -> Hello:
    """Return what this computer says of itself and of a bundle."""
    return Hello(
        version=package_version(),
        protocol=PROTOCOL,
        layout=layout(),
        bundle=bundle,
        cameras=cameras,
        image_size=int(task["image_size"]),
        task=dict(task),
        policy_ms=dict(policy_ms),
    )


def parse_hello(body: bytes) -> Hello:
    """Read a Hello; WireError for anything else."""
    found = parse_json(body)
    kinds = {"version": str, "protocol": int, "layout": str, "bundle": str, "cameras": list, "image_size": int}
    kinds |= {"task": dict, "policy_ms": dict}
    if set(found) != set(kinds) or any(not isinstance(found[name], kind) for name, kind in kinds.items()):
        raise WireError(f"the first message is no greeting of a policy's computer: {sorted(found)[:8]}")
    costs = found["policy_ms"]
    if not {"p10_ms", "p50_ms", "p99_ms"} <= set(costs) or not all(type(ms) in (int, float) for ms in costs.values()):
        raise WireError(f"what a step of the policy costs is p10_ms, p50_ms and p99_ms, got {sorted(costs)[:8]}")
    if not all(isinstance(name, str) and name.isidentifier() for name in found["cameras"]):
        raise WireError("a camera's name must be a word")
    return Hello(**{**found, "cameras": tuple(found["cameras"])})


def hello_body(hello: Hello) -> bytes:
    """Return the JSON of a Hello."""
    return json.dumps(asdict(hello)).encode()


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object; WireError for anything else."""
    try:
        found = json.loads(body)
    except ValueError as error:
        raise WireError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise WireError("not a JSON object")
    return found


def package_version() -> str:
    """Return the version of toto_robot on this computer."""
    try:
        return importlib.metadata.version("toto-robot")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def layout() -> str:
    """Return what changes when a record gets another field, size or byte order."""
    described = [(kind.name, RECORDS[kind].descr) for kind in RECORDS]
    return hashlib.sha256(repr((described, sys.byteorder)).encode()).hexdigest()[:16]


class Channel:
    """One connection. One thread receives, any may send; either raises WireError when the connection is over."""

    def __init__(self, connection: socket.socket, image_size: int = 0) -> None:
        """`image_size` is 0 until the greeting has told it: no pictures before."""
        self._socket, self._turn = connection, threading.Lock()
        self.image_size = image_size
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        connection.settimeout(LOST_S)

    def send(self, kind: Kind, body: bytes) -> None:
        """Send a message whole."""
        try:
            with self._turn:
                self._socket.sendall(_HEADER.pack(_MAGIC, kind, len(body)) + body)
        except OSError as error:
            raise WireError(f"the link is lost: {error}") from error

    def send_record(self, kind: Kind, record: np.ndarray) -> None:
        """Send a record (0-d) of its kind."""
        self.send(kind, record.tobytes())

    def receive(self) -> tuple[Kind, bytes]:
        """Wait for the next message; WireError for one that is malformed, and after LOST_S of silence."""
        magic, number, length = _HEADER.unpack(self._exactly(_HEADER.size))
        if magic != _MAGIC or number not in {int(kind) for kind in Kind}:
            raise WireError(f"not a message of this bridge: {magic!r} {number}")
        kind = Kind(number)
        if not self._allowed(kind, length):
            raise WireError(f"a message {kind.name.lower()} of {length} bytes is none that was agreed on")
        return kind, self._exactly(length)

    def _allowed(self, kind: Kind, length: int) -> bool:
        if kind is Kind.HELLO:
            return 0 < length <= MOST_JSON
        if kind is Kind.FRAME:
            return bool(self.image_size) and length == 1 + frame_dtype(self.image_size, self.image_size).itemsize
        return length == RECORDS[kind].itemsize

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except OSError as error:
                raise WireError(f"the link is lost: {error}") from error
            if not part:
                raise WireError("the other computer has closed the connection")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close; whoever waits for a message gets a WireError."""
        with contextlib.suppress(OSError):  # it was closed by the other side
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def record_of(kind: Kind, body: bytes) -> np.ndarray:
    """Return the record (0-d, writable) of a body that `receive` let through."""
    found: np.ndarray = np.frombuffer(body, RECORDS[kind], 1).copy().reshape(())
    return found
