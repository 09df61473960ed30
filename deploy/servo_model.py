"""How would the simulated arm follow a command, so that the real one moves as the policy has learned to expect?

The simulated servo (envs/control.py, preset `real`) is soft: torque kp * (command - position) - kd * speed, which
approaches a command with kd / kp = 75 ms. A real arm's tracker is stiffer. Sent as it is, a command would be reached in
one period, and a policy that waits for the arm to come after its command would overshoot.
"""

from __future__ import annotations

import numpy as np

from deploy.drivers.base import Floats
from deploy.task_interface import LAG_S

LASTS_S = 0.32
_DT_S, _EVERY = 0.001, 10
# Inertia over kd: 0.2 to 1.6 kg m2 of the scene's arm over 60 N m s/rad; what matters is that it is far below the lag.
INERTIA_S = 0.015


def servo_path(q_rad: Floats, dq_rad_s: Floats, command_rad: Floats) -> tuple[Floats, Floats, Floats]:
    """Return times (K,) from 0, positions (K, 7) and velocities (K, 7) from a state (7,) towards a command (7,)."""
    q, dq = np.array(q_rad, np.float64), np.array(dq_rad_s, np.float64)
    path = [(0.0, q.copy(), dq.copy())]
    for step in range(1, round(LASTS_S / _DT_S) + 1):
        dq += _DT_S / INERTIA_S * ((command_rad - q) / LAG_S["real"] - dq)
        q += _DT_S * dq
        if step % _EVERY == 0:
            path.append((step * _DT_S, q.copy(), dq.copy()))
    times, positions, speeds = zip(*path, strict=True)
    return np.array(times), np.stack(positions), np.stack(speeds)
