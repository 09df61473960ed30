"""Is everything refused that is no part of the bridge: other versions, other bundles, malformed messages?"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bridge_link import HELLO, SIZE, Door, Link, wait

from deploy.bridge.policy_end import connect
from deploy.bridge.wire import Kind, Refused, WireError, hello_body
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    STATE,
    create_mailboxes,
    frame_dtype,
)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


@pytest.fixture
def link(door: Door, tmp_path: Path) -> Iterator[Link]:
    (tmp_path / "robot").mkdir()
    create_mailboxes(tmp_path / "robot")
    made = Link(door, tmp_path / "robot", tmp_path / "policy")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.0.1"}, "toto_robot differs: 0.0.1"),
        ({"protocol": 99}, "protocol differs: 99"),
        ({"layout": "0" * 16}, "layout of the records differs"),
        ({"bundle": "f" * 64}, "this one expects '01234567'"),
        ({"image_size": 4096}, "cameras of"),
        ({"cameras": ()}, "cameras of"),
    ],
)
def test_what_does_not_belong_together_is_refused_on_both_sides(
    door: Door, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    door.open(tmp_path, {})
    with pytest.raises(Refused, match="the robot's computer refuses") as refused:
        connect("127.0.0.1", door.port, replace(HELLO, **change))
    assert words in str(refused.value) and words in door.refused()


def test_a_short_hash_is_no_hash(door: Door, tmp_path: Path) -> None:
    door.open(tmp_path, {}, bundle="")
    with pytest.raises(Refused, match="8 or more characters"):
        connect("127.0.0.1", door.port, HELLO)
    door.refused()


def test_nobody_there_and_somebody_else_there_are_told(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(WireError, match="no robot's computer answers"):
        connect("127.0.0.1", port, HELLO)

    def other() -> None:
        connection, _ = door.socket.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2 and more of it\r\n")

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(WireError):
        connect("127.0.0.1", door.port, HELLO)
    thread.join()


def message(kind: int, body: bytes, length: int | None = None, magic: bytes = b"TOTB") -> bytes:
    size = len(body) if length is None else length
    return magic + bytes([kind]) + size.to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: robot\r\n\r\n",
        message(Kind.HELLO, b"{}", magic=b"ABCD"),
        message(99, b""),
        message(Kind.HELLO, b"", length=4_000_000_000),
        message(Kind.HELLO, b"\x80\x04\x95 a pickle"),
        message(Kind.HELLO, b"[1, 2]"),
        message(Kind.HELLO, b"{}"),
        message(Kind.HELLO, hello_body(HELLO).replace(b'"front"', b'"../../etc"')),
        message(Kind.HELLO, hello_body(HELLO).replace(b"p99_ms", b"p98_ms")),
        message(Kind.CHUNK, bytes(CHUNK.itemsize)),  # before the greeting
        message(Kind.FRAME, bytes(100)),
        message(Kind.HELLO, b"half")[:-2],
    ],
)
def test_malformed_greetings_are_refused(door: Door, tmp_path: Path, sent: bytes) -> None:
    door.open(tmp_path, {})
    with socket.create_connection(("127.0.0.1", door.port)) as stranger:
        stranger.sendall(sent)
        with contextlib.suppress(OSError):  # it has hung up already
            stranger.shutdown(socket.SHUT_WR)
        assert door.refused()


@pytest.mark.parametrize(
    ("side", "sent"),
    [
        ("policy", message(Kind.CHUNK, bytes(CHUNK.itemsize - 1))),
        ("policy", message(Kind.STATE, bytes(STATE.itemsize))),  # the wrong way
        ("policy", message(Kind.FRAME, b"", length=4_000_000_000)),
        ("robot", message(Kind.CHUNK, bytes(CHUNK.itemsize))),
        ("robot", message(Kind.FRAME, bytes([7]) + bytes(frame_dtype(SIZE, SIZE).itemsize))),  # no such camera
        ("robot", message(Kind.FRAME, bytes(3))),
    ],
)
def test_malformed_messages_end_the_link(link: Link, side: str, sent: bytes) -> None:
    ends = {"policy": link.policy_end, "robot": link.robot_end}
    sender, other = ends[side], ends["robot" if side == "policy" else "policy"]
    sender._channel._socket.sendall(sent)
    wait(lambda: not other.alive())
    assert other.error
    assert link.box("robot", CHUNK_FILE, CHUNK).newest()[0] == 0
    wait(lambda: not sender.alive())
