"""Where is the hand for given joint positions, and how does it move with each joint?

Modified Denavit-Hartenberg parameters of FER and FR3, which are the same (FCI documentation, robot and interface
specifications). Frame: the arm's base; the grasp point lies between the fingers. m and rad; leading axes are samples.
"""

from __future__ import annotations

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats

_A_M = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D_M = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA_RAD = tuple(0.5 * np.pi * sign for sign in (0, -1, 1, 1, -1, 1, 1))
# Hand on the flange: in the data sheet 0.107 m and -45 deg. These are the simulated scenes' (robosuite's Panda), which
# the policies were trained with; 0.5 mm and 0.03 deg off.
_HAND_M, _HAND_RAD = 0.1065, 2.0 * np.arctan2(-0.38291098, 0.92378524)
_FLANGE = np.eye(4)  # in the frame of joint 7
_FLANGE[2, 3] = 0.107
_GRASP_M = 0.0974  # from the hand's mount to between the pads


def frames(q_rad: Floats) -> Floats:
    """Return the poses of joints 1 to 7 and of the grasp point for positions (..., 7), as (..., 8, 4, 4)."""
    q = np.asarray(q_rad, np.float64)
    pose = np.broadcast_to(np.eye(4), (*q.shape[:-1], 4, 4))
    found = []
    for joint in range(ARM_JOINTS):
        pose = pose @ _link(_A_M[joint], _ALPHA_RAD[joint], _D_M[joint], q[..., joint])
        found.append(pose)
    hand = _link(0.0, 0.0, _HAND_M + _GRASP_M, np.asarray(_HAND_RAD))
    return np.stack([*found, pose @ hand], axis=-3)


def grasp_pose(q_rad: Floats) -> tuple[Floats, Floats]:
    """Return the grasp point (..., 3) and the hand's rotation (..., 3, 3) for positions (..., 7)."""
    pose = frames(q_rad)[..., ARM_JOINTS, :, :]
    return pose[..., :3, 3], pose[..., :3, :3]


def grasp_point(q_rad: Floats) -> Floats:
    """Return the grasp point (..., 3) for positions (..., 7)."""
    return grasp_pose(q_rad)[0]


def tool_motion(q_rad: Floats, dq_rad_s: Floats, on_flange: Floats) -> tuple[Floats, Floats, Floats]:
    """Return pose (4, 4), velocity m/s and angular velocity rad/s (3,) of a frame on the flange, base axes.

    `on_flange` is its pose (4, 4) there: libfranka's F_T_EE for the hand.
    """
    poses = frames(q_rad)[:ARM_JOINTS]
    pose = poses[-1] @ _FLANGE @ on_flange
    axes, arms = poses[:, :3, 2], pose[:3, 3] - poses[:, :3, 3]
    return pose, dq_rad_s @ np.cross(axes, arms), dq_rad_s @ axes


def jacobian(q_rad: Floats) -> Floats:
    """Return d(grasp point, rotation vector) / dq (..., 6, 7) for positions (..., 7)."""
    poses = frames(q_rad)
    axes, origins = poses[..., :ARM_JOINTS, :3, 2], poses[..., :ARM_JOINTS, :3, 3]
    arms = poses[..., ARM_JOINTS, None, :3, 3] - origins
    return np.swapaxes(np.concatenate([np.cross(axes, arms), axes], axis=-1), -1, -2)


def _link(a_m: float, alpha_rad: float, d_m: float, theta_rad: Floats) -> Floats:
    """Return the transform (..., 4, 4) of one row of modified Denavit-Hartenberg parameters (Craig)."""
    ca, sa = np.cos(alpha_rad), np.sin(alpha_rad)
    ct, st = np.cos(theta_rad), np.sin(theta_rad)
    pose = np.zeros((*np.shape(theta_rad), 4, 4))
    pose[..., 0, 0], pose[..., 0, 1], pose[..., 0, 3] = ct, -st, a_m
    pose[..., 1, 0], pose[..., 1, 1], pose[..., 1, 2], pose[..., 1, 3] = st * ca, ct * ca, -sa, -d_m * sa
    pose[..., 2, 0], pose[..., 2, 1], pose[..., 2, 2], pose[..., 2, 3] = st * sa, ct * sa, ca, d_m * ca
    pose[..., 3, 3] = 1.0
    return pose
