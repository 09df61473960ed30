"""What does the arm tell its client every millisecond: the packed state?"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.drivers.base import Floats
from deploy.emulator import protocol
from deploy.emulator.arm import Arm

_SQRT_HALF = np.sqrt(0.5)
# The Franka Hand on the flange: turned by -45 degrees, grasp point 103.4 mm out (Franka Hand manual).
F_T_NE = np.array(
    [[_SQRT_HALF, _SQRT_HALF, 0, 0], [-_SQRT_HALF, _SQRT_HALF, 0, 0], [0, 0, 1, 0.1034], [0, 0, 0, 1]], float
)


class StateWriter:
    """Fills one record again and again; `bytes` of it go out."""

    def __init__(self, arm: Arm) -> None:
        self._arm, self._record = arm, np.zeros(1, arm.version.state)
        names = arm.version.state.names or ()
        self._view: dict[str, Any] = {name: self._record[name][0] for name in names if self._record[name].ndim > 1}
        self._view["O_ddP_O"][2] = -9.81  # what the vendor's models take as gravity
        self._write_hand()

    def write(self) -> bytes:
        """Return the state of now."""
        arm, view, record = self._arm, self._view, self._record
        plant = arm.plant
        record["message_id"] = arm.time_ms
        pose = _columns(plant.pose() @ self._f_t_ee)
        for name in ("O_T_EE", "O_T_EE_d", "O_T_EE_c"):
            view[name][:] = pose
        view["tau_J"][:] = arm.torque + plant.gravity_nm
        view["tau_J_d"][:], view["dtau_J"][:] = arm.torque, arm.torque_rate
        view["q"][:] = view["theta"][:] = plant.q_rad
        view["dq"][:] = view["dtheta"][:] = plant.dq_rad_s
        view["q_d"][:], view["dq_d"][:], view["ddq_d"][:] = arm.desired.q, arm.desired.dq, arm.desired.ddq
        view["elbow"][:] = view["elbow_d"][:] = view["elbow_c"][:] = (plant.q_rad[2], np.sign(plant.q_rad[3]))
        view["tau_ext_hat_filtered"][:] = arm.external
        view["O_F_ext_hat_K"][:] = arm.wrench
        self._write_contacts()
        record["motion_generator_mode"], record["controller_mode"] = arm.state_modes
        record["robot_mode"] = arm.mode
        record["control_command_success_rate"] = arm.success_rate
        view["errors"][:] = [name in arm.errors for name in protocol.ERRORS] if arm.errors else False
        reasons = arm.reflex_reason
        view["reflex_reason"][:] = [name in reasons for name in protocol.ERRORS] if reasons else False
        return record.tobytes()

    def refresh(self) -> None:
        """Take over frames and loads that a client has set."""
        self._write_hand()

    def _write_hand(self) -> None:
        arm, view, record = self._arm, self._view, self._record
        self._f_t_ee = F_T_NE @ arm.ne_t_ee
        view["F_T_NE"][:], view["NE_T_EE"][:] = _columns(F_T_NE), _columns(arm.ne_t_ee)
        view["F_T_EE"][:], view["EE_T_K"][:] = _columns(self._f_t_ee), _columns(arm.ee_t_k)
        record["m_ee"], center, inertia = arm.plant.hand_inertia()
        view["F_x_Cee"][:], view["I_ee"][:] = center, inertia.ravel()
        record["m_load"] = arm.load["mass"]
        view["F_x_Cload"][:], view["I_load"][:] = arm.load["center"], arm.load["inertia"]

    def _write_contacts(self) -> None:
        arm, view = self._arm, self._view
        if not arm.external.any() and not view["joint_contact"].any() and not view["cartesian_contact"].any():
            return
        torque, wrench = np.abs(arm.external), np.abs(arm.wrench)
        view["joint_contact"][:] = torque > arm.collision.torque_lower
        view["cartesian_contact"][:] = wrench > arm.collision.force_lower
        view["joint_collision"][:] = torque > arm.collision.torque_upper
        view["cartesian_collision"][:] = wrench > arm.collision.force_upper


def _columns(matrix: Floats) -> Floats:
    return matrix.T.ravel()
