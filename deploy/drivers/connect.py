"""Which driver moves this robot? Found by name; a client library is imported when its driver connects."""

from __future__ import annotations

import importlib
from typing import Any

from deploy.drivers.base import RobotDriver

DRIVERS = {
    "franky": ("deploy.drivers.franky", "FrankyDriver"),
    "pylibfranka": ("deploy.drivers.pylibfranka", "PylibfrankaDriver"),
    "panda": ("deploy.drivers.panda", "PandaDriver"),
    "twin": ("deploy.drivers.twin", "TwinDriver"),
}
# What each arm is driven by unless the user says otherwise.
DEFAULT = {"fr3": "franky", "fer": "panda"}
REALTIME = ("ignore", "enforce")


def make_driver(name: str, *, robot: str, address: str = "", realtime: str = "ignore", **settings: Any) -> RobotDriver:
    """Return a driver that is not connected yet; imports no client library.

    Args:
        name: franky, pylibfranka, panda or twin.
        robot: fr3 or fer.
        address: of the robot; the twin has none.
        realtime: `enforce` refuses a kernel without real time.
        settings: the driver's own, such as stiffness and damping (7,).
    """
    if name not in DRIVERS:
        raise ValueError(f"driver must be one of {', '.join(DRIVERS)}, got {name!r}")
    if robot not in DEFAULT:
        raise ValueError(f"robot must be one of {', '.join(DEFAULT)}, got {robot!r}")
    if realtime not in REALTIME:
        raise ValueError(f"realtime must be one of {', '.join(REALTIME)}, got {realtime!r}")
    if name != "twin" and not address:
        raise ValueError(f"driver {name} needs address=<the robot's address>, such as 172.16.0.2")
    module, driver = DRIVERS[name]
    made: RobotDriver = getattr(importlib.import_module(module), driver)(
        robot=robot, address=address, realtime=realtime, **settings
    )
    return made
