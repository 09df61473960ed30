"""Which client package speaks to which robot, and which version does the robot at an address speak?

The versions of client and robot must be equal. The table is the compatibility matrix of libfranka
(docs/compatibility_matrix.rst) with the packages that contain each libfranka.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from dataclasses import dataclass
from importlib import metadata

PORT = 1337  # of the Franka Control Interface
_CONNECT = struct.Struct("<IIIHH")  # command 0, command id, size; version, UDP port (libfranka-common rbk_types.h)
_ANSWER = struct.Struct("<IIIBH")  # the same header; status, version
_NO_VERSION = 0  # nobody speaks it: the robot answers with its own and starts no session
_PANDA_BUILDS = "https://github.com/JeanElsner/panda-py/releases"
_FRANKY_BUILDS = "https://timschneider42.github.io/franky/whl/by-robot-server-version"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One version of the interface."""

    libfranka: str
    system: str  # of the robot
    packages: dict[str, str]  # driver to what to install


INTERFACES: dict[int, Interface] = {
    3: Interface(libfranka="0.7.1", system="FER >= 3.0.0", packages={}),
    4: Interface(libfranka="0.8.0", system="FER >= 4.0.0", packages={}),
    5: Interface(
        libfranka="0.9.2", system="FER >= 4.2.1", packages={"panda": "pip install --no-deps panda-python==1.1.1"}
    ),
    6: Interface(libfranka="0.13.2", system="FR3 >= 5.2.0", packages={}),
    7: Interface(libfranka="0.13.6", system="FR3 >= 5.5.0", packages={}),
    8: Interface(libfranka="0.14.2", system="FR3 >= 5.7.0", packages={}),
    9: Interface(libfranka="0.17.0", system="FR3 >= 5.7.2", packages={}),
    10: Interface(
        libfranka="0.21.2",
        system="FR3 >= 5.9.0",
        packages={
            "franky": 'pip install "franky-control>=2.0,<3"',
            "pylibfranka": 'pip install "pylibfranka>=0.21,<0.22"',
        },
    ),
}
# The first libfranka that speaks a version (docs/compatibility_matrix.rst).
_SINCE = {
    3: (0, 7, 1),
    4: (0, 8, 0),
    5: (0, 9, 1),
    6: (0, 10, 0),
    7: (0, 13, 3),
    8: (0, 14, 1),
    9: (0, 15, 0),
    10: (0, 18, 0),
}
_LIBFRANKA = re.compile(r"libfranka[^/]*\.so\.(\d+)\.(\d+)\.(\d+)$")
# Wheels of the package index; each project publishes builds with other versions of libfranka beside them.
SPEAKS = {"franky": 10, "pylibfranka": 10, "panda": 5}
DISTRIBUTIONS = {"franky": "franky-control", "pylibfranka": "pylibfranka", "panda": "panda-python"}


def installed(driver: str) -> str | None:
    """Return the version of a driver's package, None without it."""
    try:
        return metadata.version(DISTRIBUTIONS[driver])
    except metadata.PackageNotFoundError:
        return None


def speaks(driver: str) -> int:
    """Return the version that a driver's installed package speaks, by the libfranka inside it.

    That of the package index where it is not installed, or does not show its libfranka.
    """
    library = libfranka(driver)
    spoken = [version for version, first in _SINCE.items() if library is not None and library >= first]
    return max(spoken, default=SPEAKS[driver])


def libfranka(driver: str) -> tuple[int, int, int] | None:
    """Return the version of the libfranka in a driver's installed package, by its file name; None if none shows."""
    try:
        files = metadata.files(DISTRIBUTIONS[driver]) or []
    except metadata.PackageNotFoundError:
        return None
    found = [match for file in files if (match := _LIBFRANKA.search(str(file)))]
    return (int(found[0][1]), int(found[0][2]), int(found[0][3])) if found else None


def install_command(driver: str) -> str:
    """Return the command that installs a driver's package."""
    return INTERFACES[SPEAKS[driver]].packages[driver]


def advice(server: int) -> str:
    """Return which package to install for a robot of this server version."""
    interface = INTERFACES.get(server)
    if interface is None:
        return f"no known libfranka speaks version {server}: known are {', '.join(map(str, INTERFACES))}"
    if interface.packages:
        options = " or ".join(f"`{command}` (driver={name})" for name, command in interface.packages.items())
        return f"that is {interface.system}: {options}"
    return (
        f"that is {interface.system}: install a build with libfranka {interface.libfranka}: `pip install --pre "
        f"franky-control --extra-index-url {_FRANKY_BUILDS}/{server}/` "
        f"(driver=franky) or {_PANDA_BUILDS} (driver=panda), or update the robot's system"
    )


def ask_version(address: str, timeout_s: float = 1.0) -> int | None:
    """Return the version that the robot at an address speaks, None if nobody answers. Moves nothing, opens no session.

    The robot must be free: while a client is connected it answers no other.
    """
    try:
        with socket.create_connection((address, PORT), timeout_s) as channel:
            channel.settimeout(timeout_s)
            channel.sendall(_CONNECT.pack(0, 0, _CONNECT.size, _NO_VERSION, 0))
            answer = b""
            while len(answer) < _ANSWER.size:
                part = channel.recv(_ANSWER.size - len(answer))
                if not part:
                    return None
                answer += part
            channel.shutdown(socket.SHUT_WR)
            channel.recv(1)  # until the robot has closed too, and is free for the next client
    except TimeoutError:
        return _version(answer) if "answer" in locals() else None
    except OSError:
        return None
    return _version(answer)


def ask_until_free(address: str, patience_s: float = 1.5) -> int | None:
    """Ask again for a while: a robot that has just refused a client needs a moment until it answers the next."""
    until_s = time.monotonic() + patience_s
    while (found := ask_version(address)) is None and time.monotonic() < until_s:
        time.sleep(0.05)
    return found


def _version(answer: bytes) -> int | None:
    return int(_ANSWER.unpack(answer)[4]) if len(answer) == _ANSWER.size else None
