"""How do clients reach the emulated robot: sockets of arm, hand and control channel, messages out of byte streams?"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONTROL_PORT = 1339  # ours: JSON lines, next to the robot's 1337 and the hand's 1338


def listen(address: str, port: int) -> socket.socket:
    """Return a listening TCP socket. OSError says who must give way."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {address}:{port} ({error.strerror}): another emulator may run there; choose another "
            "loopback address, such as address=127.0.0.2"
        ) from error
    listener.listen(4)
    listener.setblocking(False)
    return listener


def datagram_socket(address: str) -> socket.socket:
    """Return a UDP socket on a free port of an address."""
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    channel.bind((address, 0))
    channel.setblocking(False)
    return channel


@dataclass(eq=False)
class Connection:
    """One TCP client; `buffer` is what came and is not yet a whole message."""

    channel: socket.socket
    host: str
    buffer: bytearray = field(default_factory=bytearray)
    udp: tuple[str, int] | None = None  # where its state goes, after Connect

    def fileno(self) -> int:
        """Let `select` take it."""
        return self.channel.fileno()

    def read(self) -> bool:
        """Take what has come; False when the client has gone."""
        try:
            chunk = self.channel.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.buffer += chunk
        return bool(chunk)

    def messages(self, header: np.dtype) -> list[tuple[int, int, bytes]]:
        """Return whole messages: command, id, payload. ValueError for a size that cannot be."""
        found = []
        while len(self.buffer) >= header.itemsize:
            entry = np.frombuffer(bytes(self.buffer[: header.itemsize]), header, 1)[0]
            size = int(entry["size"])
            if not header.itemsize <= size <= 4096:
                raise ValueError(f"a message of {size} bytes is none of this interface")
            if len(self.buffer) < size:
                break
            found.append((int(entry["command"]), int(entry["id"]), bytes(self.buffer[header.itemsize : size])))
            del self.buffer[:size]
        return found

    def lines(self) -> list[dict[str, Any]]:
        """Return whole JSON lines. ValueError for one that is none."""
        *whole, rest = bytes(self.buffer).split(b"\n")
        self.buffer = bytearray(rest)
        return [json.loads(line) for line in whole if line.strip()]

    def send(self, data: bytes) -> None:
        """Send all; a client that has gone is noticed when its end is read."""
        try:
            self.channel.setblocking(True)
            self.channel.sendall(data)
        except OSError:
            pass
        finally:
            self.channel.setblocking(False)

    def answer(self, header: np.dtype, command: int, command_id: int, payload: bytes) -> None:
        """Send one message."""
        head = np.array([(command, command_id, header.itemsize + len(payload))], header)
        self.send(head.tobytes() + payload)

    def close(self) -> None:
        """Close the socket."""
        self.channel.close()


def accept(listener: socket.socket) -> Connection:
    """Return the connection of the client that waits."""
    channel, (host, _) = listener.accept()
    channel.setblocking(False)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(channel, host)
