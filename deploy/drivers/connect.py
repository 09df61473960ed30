"""Which driver moves this robot? Found by name; a client library is imported when its driver connects."""

from __future__ import annotations

import difflib
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
    check_driver(name, robot)
    if realtime not in REALTIME:
        raise ValueError(f"realtime must be one of {', '.join(REALTIME)}, got {realtime!r}")
    if name != "twin" and not address:
        raise ValueError(f"driver {name} needs address=<the robot's address>, such as 172.16.0.2")
    made: RobotDriver = _class_of(name)(robot=robot, address=address, realtime=realtime, **settings)
    return made


def check_driver(name: str, robot: str) -> None:
    """Raise ValueError for a driver or an arm that there is not, and for two that do not belong together."""
    if name not in DRIVERS:
        near = difflib.get_close_matches(name, DRIVERS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"driver must be one of {', '.join(DRIVERS)}, got {name!r}{hint}")
    if robot not in DEFAULT:
        raise ValueError(f"robot must be one of {', '.join(DEFAULT)}, got {robot!r}")
    if name == "twin":  # it stands for any arm, and is not imported here: it needs MuJoCo
        return
    if robot not in _class_of(name).robots:
        raise ValueError(
            f"driver {name} moves {' or '.join(_class_of(name).robots)}, not {robot}: leave driver out for "
            f"{DEFAULT[robot]}, the default of {robot}"
        )


def _class_of(name: str) -> Any:
    module, driver = DRIVERS[name]
    return getattr(importlib.import_module(module), driver)
