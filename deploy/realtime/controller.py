"""What moves the arm? One process that owns the driver: how it starts, and how it ends.

Whatever ends it (SIGTERM, SIGINT, SIGHUP, SIGQUIT, the death of its parent, an exception) ends in a ramp to rest and
the end of the motion; a terminal's Ctrl-Z is ignored. Only SIGKILL and SIGSTOP are not heard: then the robot misses its
commands and stops by itself.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.drivers.base import RobotDriver
from deploy.realtime.clock import die_with_parent, sharpen_timer
from deploy.realtime.config import ControlConfig
from deploy.realtime.loop import Controller
from deploy.realtime.records import REPORT_FILE, Machine
from deploy.realtime.safety import GraspPoint
from deploy.realtime.ticklog import read_ticks, report_of

__all__ = ["ControlConfig", "run_control"]

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def run_control(
    config: ControlConfig, folder: Path, parent: int, make: Callable[[ControlConfig], RobotDriver] | None = None
) -> None:
    """Own the arm until asked to quit: the main function of the control process.

    `folder` has the mailboxes (`records.create_mailboxes`), `parent` is the process whose death ends this one (its
    main thread must have started it). Raises what refuses a start (`DriverError`, `PermissionError`, `ValueError`)
    before anything moves; with a log folder, the report says how it ended in any case.
    """
    asked: list[int] = []
    controller: Controller | None = None

    def quit_on(number: int, _: Any) -> None:
        asked.append(number)
        if controller is not None:
            controller.quit = True

    for number in _ENDING_SIGNALS:
        signal.signal(number, quit_on)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z: a loop that stands still misses the robot's cycles
    die_with_parent(parent)
    sharpen_timer()
    grasp_point = _grasp_point() if config.box is not None else None
    driver = (make or _make_driver)(config)
    error = ""
    try:
        with driver:
            controller = Controller(config, folder, driver, grasp_point)
            controller.quit = bool(asked)
            controller.run()
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        if controller is not None and config.log_folder is not None:
            _write_report(config.log_folder, config, controller, error, asked)


def _make_driver(config: ControlConfig) -> RobotDriver:
    from deploy.drivers.connect import make_driver

    robot = config.robot.removesuffix("_before_5_9")
    return make_driver(
        config.driver, robot=robot, address=config.address, realtime=config.realtime, **config.driver_settings
    )


def _grasp_point() -> GraspPoint:
    from deploy.kinematics import grasp_point

    return grasp_point


def _write_report(
    log_folder: Path, config: ControlConfig, controller: Controller, error: str, asked: list[int]
) -> None:
    """Write the figures of the run, computed from its tick log."""
    assert controller.log is not None
    ticks = read_ticks(controller.log.path)
    report = {
        "rate_hz": config.rate_hz,
        "driver": config.driver,
        "limits": controller.limits.joint.name,
        "limits_source": controller.limits.robot.source,
        "box_m": None if config.box is None else [*config.box.low_m, *config.box.high_m],
        **report_of(ticks, 1.0 / config.rate_hz),
        "missed_deadlines": controller.missed,
        "lost_log_records": controller.log.lost,
        "chunks_rejected": controller.follower.rejected,
        "recovery_tries": controller.machine.total_tries,
        "gripper_commands": controller.gripper_commands,
        "gripper_failures": controller.gripper_failures,
        "ended_in": Machine(controller.machine.state).name.lower(),
        "last_failure": controller.machine.reason,
        "signals": [signal.Signals(number).name for number in asked],
        "error": error,
    }
    partial = log_folder / f".{REPORT_FILE}.tmp"
    partial.write_text(json.dumps(report, indent=1))
    os.replace(partial, log_folder / REPORT_FILE)
