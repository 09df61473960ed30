"""Where may the grasp point be in each task, in the frame of the arm's base?

Of 60 episodes of each task's expert (seeds 0 to 59, noise of 0, 0.125 and 0.25), what the grasp point reached, and
10 cm more on each side. FrankaPick's table top is at 0.4 m there: the fingers touch it at 0.41, and 2 cm below it leave
room for a command that presses, not for one that pushes through. FrankaCabinet's has another 12 cm towards the arm:
a shove while the drawer opens takes the hand there.
"""

from __future__ import annotations

from collections.abc import Sequence

from deploy.realtime.safety import Box

WORKSPACES = {
    "toto_robot/FrankaPick-v0": Box(low_m=(0.08, -0.41, 0.38), high_m=(0.76, 0.41, 0.97)),
    "toto_robot/FrankaCabinet-v0": Box(low_m=(-0.15, -0.30, 0.55), high_m=(0.79, 0.30, 1.04)),
}


def box_of(numbers: Sequence[float] | None, env_id: str) -> Box | None:
    """Return the box of six numbers, the task's own for none of them, no box for None or a task without one."""
    if numbers is None:
        return None
    if not numbers:
        return WORKSPACES.get(env_id)
    if len(numbers) != 6:
        raise ValueError(
            "box_m is six numbers in metres, [x, y, z low, x, y, z high] in the frame of the arm's base, such as "
            f"[0.1,-0.4,0.4,0.7,0.4,0.9]; [] is the task's own, null none; got {list(numbers)}"
        )
    x, y, z, x_high, y_high, z_high = (float(number) for number in numbers)
    return Box(low_m=(x, y, z), high_m=(x_high, y_high, z_high))
