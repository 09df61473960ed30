"""Where is the cabinet's drawer now: how far open, and where is its handle?"""

from __future__ import annotations

from typing import Any

from envs.meshes import Floats
from envs.scene import Scene
from envs.worlds import DRAWER_TRAVEL_M, HANDLE_POINT_M


def handle_point(scene: Scene, data: Any) -> Floats:
    """Return the middle of the drawer's handle, world frame, m. (3,)"""
    point: Floats = data.xpos[scene.bodies["drawer"]] + HANDLE_POINT_M  # the cabinet never turns
    return point


def drawer_opening_m(scene: Scene, data: Any) -> float:
    """Return how far the drawer is pulled out."""
    return float(min(max(data.qpos[scene.joints["drawer"]], 0.0), DRAWER_TRAVEL_M))
