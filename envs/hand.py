"""Where does the robot start, and where are its fingers: what all tasks of both robots share?"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.meshes import Floats
from envs.robots import ARM_JOINTS
from envs.scene import Scene

START_NOISE = 0.125  # PixMC: rad for joints, m or rad for the fingers, then clipped to their range


def place_robot(scene: Scene, data: Any, random: np.random.Generator) -> None:
    """Write PixMC's start position plus noise; one draw for both fingers, which one motor drives."""
    robot, hand = scene.robot, scene.robot.gripper
    arm = robot.start_rad + random.uniform(-START_NOISE, START_NOISE, ARM_JOINTS)
    data.qpos[:ARM_JOINTS] = np.clip(arm, robot.low_rad, robot.high_rad)
    low, high = sorted((hand.open, hand.closed))
    finger = np.clip(hand.start + random.uniform(-START_NOISE, START_NOISE), low, high)
    data.qpos[scene.joints[hand.joints[0]]] = finger
    data.qpos[scene.joints[hand.joints[1]]] = hand.right_sign * finger
    for joint, factor in hand.ties:
        data.qpos[scene.joints[joint]] = factor * finger


def finger_points(scene: Scene, data: Any) -> tuple[Floats, Floats]:
    """Return PixMC's grasp points of the left and the right finger, world frame, m. (3,), (3,)"""
    point = scene.robot.gripper.point_m
    left, right = (data.xpos[body] + data.xmat[body].reshape(3, 3) @ point for body in scene.finger_bodies)
    return left, right


def opening_m(scene: Scene, data: Any) -> float:
    """Return the gap between the finger pads."""
    left, right = finger_points(scene, data)
    return length(left - right)


def length(vector: Floats) -> float:
    """Return the Euclidean norm (numpy's own costs ten times as much on three numbers)."""
    return float(np.sqrt(vector @ vector))
