"""How do the libraries' states, which share libfranka's names, become ours?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deploy.drivers.base import Mode, RobotState

_MODES = {
    "Other": Mode.OTHER,
    "Idle": Mode.IDLE,
    "Move": Mode.MOVE,
    "Guiding": Mode.GUIDING,
    "Reflex": Mode.REFLEX,
    "UserStopped": Mode.USER_STOPPED,
    "AutomaticErrorRecovery": Mode.RECOVERING,
}


def convert(found: Any) -> RobotState:
    """Return a library's RobotState as ours."""
    mode = mode_of(found)
    return RobotState(
        time_s=time.monotonic(),
        robot_time_s=found.time.to_sec(),
        q_rad=np.array(found.q),
        dq_rad_s=np.array(found.dq),
        q_desired_rad=np.array(found.q_d),
        tau_nm=np.array(found.tau_J),
        tau_external_nm=np.array(found.tau_ext_hat_filtered),
        wrench_n_nm=np.array(found.O_F_ext_hat_K),
        mode=mode,
        # 20 us for 41 flags, which are all false while the arm moves
        errors=() if mode is Mode.MOVE else flags(found.current_errors),
        command_success_rate=float(found.control_command_success_rate),
    )


def mode_of(found: Any) -> Mode:
    """Return the mode of a library's state; panda_py's names begin with a k."""
    return _MODES.get(found.robot_mode.name.removeprefix("k"), Mode.OTHER)


def flags(errors: Any) -> tuple[str, ...]:
    """Return the names of the errors that are set in a library's `Errors`."""
    return tuple(name for name in dir(errors) if not name.startswith("_") and getattr(errors, name) is True)
