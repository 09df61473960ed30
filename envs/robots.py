"""What are the arms and grippers: limits with their sources, start positions, where camera and grasp point sit?

Joint positions rad, speeds rad/s, torques N m; gripper values in the unit of its driven joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.meshes import Floats

ARM_JOINTS = 7


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """Two fingers on one motor; a command is the left driven joint's position, the right one mirrors it."""

    name: str  # of robosuite's class
    joints: tuple[str, str]  # driven, left and right
    right_sign: float  # right position = sign * left position
    ties: tuple[tuple[str, float], ...]  # other joints that the mechanism moves: position = factor * left position
    unit: str
    open: float  # position of the left driven joint
    closed: float
    start: float  # PixMC's start
    speed: float  # a finger's, unit/s
    pixmc_step: float  # change at action 1 in a 60 Hz step
    kp: float  # servo gain, N/m or N m/rad
    force: float  # the servo's limit, N or N m
    fingers: tuple[str, str]  # bodies whose contact is a grasp, left and right
    point_m: tuple[float, float, float]  # PixMC's grasp point in a finger's frame
    stroke_m: float  # gap between the pads, open
    grasp_m: float  # the grasp point between the pads, along the hand's z axis

    def opening(self, action: float) -> float:
        """Return the commanded position for a gripper action, -1 open .. +1 closed."""
        return self.closed + 0.5 * (1.0 - action) * (self.open - self.closed)


@dataclass(frozen=True, kw_only=True)
class Robot:
    """One arm with its gripper."""

    name: str
    model: str  # robosuite's class
    joints: tuple[str, ...]
    low_rad: Floats
    high_rad: Floats
    speed_rad_s: Floats
    torque_nm: Floats
    start_rad: Floats  # PixMC's default position
    posture_rad: Floats  # where the arm's free motion drifts to while the hand moves
    gripper: Gripper
    wrist_camera: dict[str, str]  # MJCF camera on the hand


# Limits: Franka Emika Panda datasheet and franka_description. Fingers: Franka Hand manual, 50 mm/s a finger.
PANDA_HAND = Gripper(
    name="PandaGripper",
    joints=("finger_joint1", "finger_joint2"),
    right_sign=1.0,
    ties=(),
    unit="m",
    open=0.04,
    closed=0.0,
    start=0.035,
    speed=0.05,
    pixmc_step=0.0125,
    kp=1000.0,
    force=20.0,  # robosuite's PandaGripper
    fingers=("leftfinger", "rightfinger"),
    point_m=(0.0, 0.0, 0.045),
    stroke_m=0.08,
    grasp_m=0.0974,  # robosuite's eef, PixMC's 4.5 cm along a finger
)

PANDA = Robot(
    name="franka_panda",
    model="Panda",
    joints=tuple(f"joint{i + 1}" for i in range(ARM_JOINTS)),
    low_rad=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
    high_rad=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
    speed_rad_s=np.array([2.1750, 2.1750, 2.1750, 2.1750, 2.6100, 2.6100, 2.6100]),
    torque_nm=np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0]),
    start_rad=np.array([1.157, -1.066, -0.155, -2.239, -1.841, 1.003, 0.469]),
    # Else the elbow of PixMC's sideways start sinks onto the table (14 of 200 expert episodes).
    posture_rad=np.array([0.0, 0.0, 0.0, -2.0, 0.0, 2.0, 0.785]),
    gripper=PANDA_HAND,
    # PixMC's. Looks along the fingers, image up = hand +x: the fingers come in from below, the grasped cube stays seen.
    wrist_camera={"pos": "0.04 0 0.045", "xyaxes": "0 1 0 1 0 0", "fovy": "104.9"},
)

# Robotiq 2F-140 instruction manual: 140 mm stroke, 30 to 250 mm/s, 10 to 125 N. The driver turns 0.7 rad for the
# stroke; 0.1 m of finger make 125 N about 6 N m a side.
ROBOTIQ_140 = Gripper(
    name="Robotiq140Gripper",
    joints=("finger_joint", "right_outer_knuckle_joint"),
    right_sign=-1.0,
    # Outer and inner bars are a parallelogram (the mimic joints of Robotiq's URDF), so the pads stay parallel;
    # robosuite's tendons turn them inwards instead.
    ties=(
        ("left_inner_finger_joint", 1.0),
        ("right_inner_finger_joint", 1.0),
        ("left_inner_knuckle_joint", -1.0),
        ("right_inner_knuckle_joint", -1.0),
    ),
    unit="rad",
    open=0.0,
    closed=0.7,
    start=0.0,
    speed=1.25,
    pixmc_step=0.125,
    kp=20.0,
    force=6.0,
    fingers=("left_inner_finger", "right_inner_finger"),
    point_m=(0.0, 0.045, -0.031),  # the fingerpad's middle
    stroke_m=0.1285,
    grasp_m=0.2075,  # robosuite's eef; the pads reach 2 cm further
)

# KUKA LBR iiwa 7 R800 brochure: speeds 98, 98, 100, 130, 140, 180, 180 deg/s; limits and torques also robosuite's.
IIWA = Robot(
    name="kuka_iiwa7",
    model="IIWA",
    joints=tuple(f"joint_{i + 1}" for i in range(ARM_JOINTS)),
    low_rad=np.array([-2.96706, -2.0944, -2.96706, -2.0944, -2.96706, -2.0944, -3.05433]),
    high_rad=np.array([2.96706, 2.0944, 2.96706, 2.0944, 2.96706, 2.0944, 3.05433]),
    speed_rad_s=np.radians([98.0, 98.0, 100.0, 130.0, 140.0, 180.0, 180.0]),
    torque_nm=np.array([176.0, 176.0, 110.0, 110.0, 110.0, 40.0, 40.0]),
    start_rad=np.array([0.0, -0.4, 0.0, -1.0, 0.0, 1.0, 0.0]),
    posture_rad=np.array([0.0, 0.3, 0.0, -1.6, 0.0, 1.0, 0.0]),
    gripper=ROBOTIQ_140,
    wrist_camera={"pos": "0.08 0 0.02", "xyaxes": "0 1 0 1 0 0", "fovy": "104.9"},
)
