"""What can a test or a person ask of the emulator: JSON lines, one request and one answer a line?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.drivers.base import ARM_JOINTS
from deploy.emulator.connections import Connection
from deploy.emulator.plant import DT_S

if TYPE_CHECKING:
    from deploy.emulator.server import Server


class Controls:
    """Requests {"do": name, ...parameters}; answers {"ok": true, "value": ...} or {"ok": false, "error": text}."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[str, Callable[..., Any]] = {
            "status": self._status,
            "events": self._events,
            "reset": self._reset,
            "fault": self._fault,
            "guiding": self._guiding,
            "guide": self._guide,
            "scene": self._scene,
            "reset_timing": self._reset_timing,
            "stop": self._stop,
        }

    def answers(self, connection: Connection) -> list[bytes]:
        """Return the answers to what has come."""
        try:
            requests = connection.lines()
        except ValueError as error:
            return [_line({"ok": False, "error": f"not a JSON line: {error}"})]
        return [_line(self._answer(request)) for request in requests]

    def _answer(self, request: Any) -> dict[str, Any]:
        try:
            if not isinstance(request, dict) or request.get("do") not in self._known:
                raise ValueError(f"a request is {{'do': one of {', '.join(self._known)}, ...}}, got {request!r}")
            name = request.pop("do")
            return {"ok": True, "value": self._known[name](**request)}
        except (ValueError, TypeError, KeyError) as error:
            return {"ok": False, "error": str(error)}

    def _status(self) -> dict[str, Any]:
        server = self._server
        return {**server.robot.status(), "connected": server.client is not None, "pid": os.getpid()}

    def _events(self, since: int = 0) -> list[dict[str, Any]]:
        return self._server.robot.events.since(since)

    def _reset(self, seed: int) -> None:
        self._server.robot.reset(int(seed))

    def _fault(self, name: str, **parameters: Any) -> None:
        self._server.robot.fault(name, parameters)
        if self._server.robot.drop_clients:
            self._server.robot.drop_clients = False
            self._server.drop_clients()

    def _guiding(self, on: bool) -> None:
        self._server.robot.arm.guiding(bool(on))

    def _guide(self, q_rad: list[float] | None) -> None:
        target = None if q_rad is None else np.array(q_rad, float)
        if target is not None and (target.shape != (ARM_JOINTS,) or not np.isfinite(target).all()):
            raise ValueError(f"guide needs {ARM_JOINTS} finite joint positions or null, got {q_rad}")
        self._server.robot.plant.guide = target

    def _scene(self) -> dict[str, Any]:
        plant = self._server.robot.plant
        return {
            "time_s": plant.ticks * DT_S,
            "qpos": plant.data.qpos.tolist(),
            "qvel": plant.data.qvel.tolist(),
            "goal": plant.goal,
            "success": plant.success_s is not None,
            "failed": plant.failed,
        }

    def _reset_timing(self) -> None:
        self._server.robot.timing.reset()

    def _stop(self) -> None:
        self._server.stopping = True


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
