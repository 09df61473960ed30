"""What does the control process need to know?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.realtime.gripper import GripperSettings
from deploy.realtime.limits import Margins, limits_for
from deploy.realtime.machine import MachineSettings
from deploy.realtime.safety import Box, GraspPoint, SafetyLimits


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Everything the control process needs to know."""

    driver: str = "franky"  # franky, pylibfranka, panda, twin
    robot: str = "fr3"  # whose limits hold: fer, or fr3 (which of its two sets, its interface version says)
    address: str = ""
    realtime: str = "ignore"  # or enforce: refuse a kernel without real-time
    driver_settings: Mapping[str, Any] = field(default_factory=dict)
    rate_hz: float = 200.0
    realtime_priority: int = 0  # SCHED_FIFO of the loop; 0 leaves the scheduling as it is
    blend_s: float = 0.1
    margins: Margins = field(default_factory=Margins)
    step_rad: float = 0.3
    box: Box | None = None  # workspace of the grasp point
    machine: MachineSettings = field(default_factory=MachineSettings)
    gripper: GripperSettings = field(default_factory=GripperSettings)
    dry_run: bool = False  # connects and computes everything, moves nothing
    log_folder: Path | None = None  # for the tick log and the report; None keeps neither

    def __post_init__(self) -> None:
        """Refuse rates that the loop is not made for."""
        if not 50.0 <= self.rate_hz <= 500.0:
            raise ValueError(f"rate_hz of the control loop: expected 50 to 500, got {self.rate_hz}")
        if not 0 <= self.realtime_priority < 99:
            raise ValueError(f"realtime_priority: expected 0 to 98, got {self.realtime_priority}")

    def safety(self, grasp_point: GraspPoint | None, server_version: int) -> SafetyLimits:
        """Return what the safety filter keeps, on a robot that answers with this interface version."""
        return SafetyLimits(
            robot=limits_for(self.robot, server_version),
            margins=self.margins,
            step_rad=self.step_rad,
            max_age_s=self.machine.stale_s,
            box=self.box,
            grasp_point=grasp_point if self.box is not None else None,
        )
