"""How does panda-python (Apache-2.0; libfranka 0.9 in a C++ thread at 1 kHz) move a FER? Its joint position controller.

While a controller runs, panda_py hands out the state of the control thread's last cycle; when that thread has died of
an error, the same state for ever. So the end of a motion is asked for (`raise_error`), and the state after it is read
from the robot itself. libfranka 0.9 gives real-time priority to its control thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from typing import Any

from deploy.drivers import versions
from deploy.drivers.base import ConnectionLost, Floats
from deploy.drivers.client import ClientDriver
from deploy.drivers.remote_hand import RemoteHand


class PandaDriver(ClientDriver):
    """A FER behind panda_py's JointPosition controller."""

    name = "panda"
    module = "panda_py"
    robots = ("fer",)

    def _open(self) -> Any:
        from panda_py import libfranka

        config = libfranka.RealtimeConfig.kEnforce if self._enforce else libfranka.RealtimeConfig.kIgnore
        return self._library.Panda(self.address, realtime_config=config)

    def _read(self) -> Any:
        if self._running:
            return self._arm.get_state()
        return self._arm.get_robot().read_once()

    def _begin(self, q_rad: Floats) -> None:
        from panda_py import controllers

        self._error: Exception | None = None
        self._motion = controllers.JointPosition(self._stiffness, self._damping)
        self._arm.start_controller(self._motion)
        self._motion.set_control(q_rad)

    def _send(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        self._motion.set_control(q_rad, dq_rad_s)

    def _ended(self) -> bool:
        if self._error is None:
            try:
                self._arm.raise_error()
            except Exception as error:  # a RuntimeError whatever happened; the robot's flags say what
                self._error = error
        return self._error is not None

    def _end(self) -> None:
        self._arm.stop_controller()

    def _let_go(self) -> None:
        self._arm.stop_controller()
        if self._error is not None:
            raise self._error

    def _abandon(self, arm: Any) -> None:
        # The destructor reads from the robot; on a dead connection that throws, which ends the process. So the object
        # is never freed, and its connection is shut from outside: the robot takes one client at a time.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(arm))
        _shut(socket.gethostbyname(self.address))

    def _drop(self) -> None:
        if self._arm is not None:
            with contextlib.suppress(ConnectionLost):
                self._raw()  # a connection that died unseen is abandoned, not freed
        super()._drop()

    def _clear_errors(self) -> None:
        self._arm.get_robot().automatic_error_recovery()

    def _open_hand(self) -> RemoteHand:
        return RemoteHand("panda_py.libfranka", self.address)


def _shut(host: str) -> None:
    """Shut this process's connections to a robot."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(number))) as found:
            if found.getpeername() == (host, versions.PORT):
                found.shutdown(socket.SHUT_RDWR)
