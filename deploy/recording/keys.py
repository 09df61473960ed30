"""What can the person at the terminal do with keys while recording?

enter   begin the episode            y  end it as a success      e  end it as a failure     x  discard it
i k  j l  u o   hand forward/back, left/right, up/down (robot's base)
1 2  3 4  5 6   turn about x, y, z                               g  open or close the gripper
s, space, q     ramp to rest and end the run                     c  confirm after a user stop
"""

from __future__ import annotations

import time

import numpy as np

from deploy.drivers.base import Floats
from deploy.operator_keys import OperatorKeys, Stoppable

# Key -> axis of the hand's motion (x, y, z, about x, about y, about z) and sign.
_MOVES = {key.encode(): (index // 2, 1.0 if index % 2 == 0 else -1.0) for index, key in enumerate("ikjluo123456")}
_HELD_S = 0.15  # a terminal repeats a held key every 30 to 50 ms, and tells no release


class RecordingKeys(OperatorKeys):
    """OperatorKeys that also begin and discard episodes and move the hand."""

    def __init__(self, session: Stoppable) -> None:
        super().__init__(session)
        self._pressed_s: dict[bytes, float] = {}
        self.gripper: float | None = None  # -1 open or +1 closed, None before the first g
        self.touched_s = float("-inf")  # when the person moved anything last

    def press(self, key: bytes) -> None:
        """Act on a key; those of OperatorKeys too."""
        if key in _MOVES or key == b"g":
            self.touched_s = time.monotonic()
            if key == b"g":
                self.gripper = -1.0 if self.gripper == 1.0 else 1.0
            else:
                self._pressed_s[key] = self.touched_s
        elif key == b"x":
            self._verdict = "discard"
        else:
            super().press(key)

    def motion(self) -> Floats:
        """Return the hand motion (6,) of the keys that are held, each axis -1, 0 or 1."""
        motion, now_s = np.zeros(6), time.monotonic()
        for key, pressed_s in list(self._pressed_s.items()):
            axis, sign = _MOVES[key]
            if now_s - pressed_s < _HELD_S:
                motion[axis] += sign
        return motion

    def forget(self) -> None:
        """Begin an episode: nothing pressed, the gripper as it is."""
        self._pressed_s.clear()
        self._verdict, self.gripper, self.touched_s = None, None, float("-inf")
