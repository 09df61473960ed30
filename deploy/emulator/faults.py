"""Which faults are switched on, and what do they do to the packets that come and go?

A fault has a name and parameters; `count` ends it after so many packets, `duration_ms` after so much robot time,
`period_ms` repeats its `duration_ms` as often, `probability` picks packets at random (seeded: a run can be repeated).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

PACKET_FAULTS = ("loss", "delay", "reorder", "duplicate", "corrupt")
DIRECTIONS = ("command", "state", "both")
# Everything else that `Emulator.fault` knows, with its own parameters.
SWITCHES: dict[str, tuple[str, ...]] = {
    "stall": ("duration_ms",),  # the server stands still for so much host time
    "tcp_close": (),  # both connections of the robot client and the hand's
    "version": ("number",),  # what the server says it speaks, None: the truth
    "reflex": ("error",),
    "user_stop": ("pressed", "duration_ms"),
    "push": ("wrench", "duration_ms"),  # N and N m on the hand, world axes
    "gripper_stuck": ("duration_ms", "period_ms"),
    "gripper_slow": ("factor", "duration_ms", "period_ms"),
    "camera_freeze": ("duration_ms", "period_ms"),
    "camera_black": ("duration_ms", "period_ms"),
    "clear": (),
}
_PACKET_PARAMETERS = (
    *("direction", "count", "probability", "cycles", "jitter_cycles", "duration_ms", "period_ms", "how"),
)


@dataclass
class Fault:
    """One fault that is on, or waits for its next period."""

    name: str
    parameters: dict[str, Any]
    start_ms: int
    left: float = field(default=float("inf"))  # packets

    def on(self, now_ms: int) -> bool:
        """Say whether it acts now."""
        passed, period = now_ms - self.start_ms, self.parameters.get("period_ms")
        if period:
            passed %= int(period)
        return self.left > 0 and passed < self.parameters.get("duration_ms", float("inf"))

    def over(self, now_ms: int) -> bool:
        """Say whether it will never act again."""
        return self.left <= 0 or (not self.parameters.get("period_ms") and not self.on(now_ms))


def check(name: str, parameters: dict[str, Any]) -> None:
    """Raise ValueError for an unknown fault or parameter."""
    known = _PACKET_PARAMETERS if name in PACKET_FAULTS else SWITCHES.get(name)
    if known is None:
        raise ValueError(f"no fault {name!r}; known: {', '.join((*PACKET_FAULTS, *SWITCHES))}")
    unknown = set(parameters) - set(known)
    if unknown:
        raise ValueError(f"fault {name} has no {sorted(unknown)}; its parameters: {', '.join(known) or 'none'}")
    if parameters.get("direction", "command") not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {parameters['direction']!r}")
    if parameters.get("period_ms") and "duration_ms" not in parameters:
        raise ValueError("a fault with period_ms needs duration_ms: how much of each period it acts")


class Packets:
    """Packets of one direction on their way through the faults."""

    def __init__(self, direction: str, seed: int) -> None:
        self._direction, self._random = direction, random.Random(seed)
        self._waiting: list[tuple[int, bytes]] = []  # due in robot ms
        self._held: bytes | None = None  # of a reordering: goes after the next one
        self.lost = 0

    def send(self, packet: bytes, faults: list[Fault], now_ms: int) -> list[bytes]:
        """Put a packet on its way; return what arrives now because of it."""
        packets = [packet]
        for fault in faults:
            if fault.name in PACKET_FAULTS and self._hits(fault, now_ms):
                fault.left -= 1
                packets = self._apply(fault, packets, now_ms)
        if self._held is not None and packets and packet is not self._held:
            packets.append(self._held)
            self._held = None
        return packets

    def due(self, now_ms: int) -> list[bytes]:
        """Return delayed packets that arrive now."""
        ready = [packet for due_ms, packet in self._waiting if due_ms <= now_ms]
        self._waiting = [entry for entry in self._waiting if entry[0] > now_ms]
        return ready

    def _hits(self, fault: Fault, now_ms: int) -> bool:
        if fault.parameters.get("direction", "command") not in (self._direction, "both") or not fault.on(now_ms):
            return False
        return self._random.random() < fault.parameters.get("probability", 1.0)

    def _apply(self, fault: Fault, packets: list[bytes], now_ms: int) -> list[bytes]:
        if fault.name == "loss":
            self.lost += len(packets)
            return []
        if fault.name == "delay":
            cycles = int(fault.parameters.get("cycles", 1))
            cycles += self._random.randint(0, int(fault.parameters.get("jitter_cycles", 0)))
            if cycles == 0:
                return packets
            self._waiting += [(now_ms + cycles, packet) for packet in packets]
            return []
        if fault.name == "duplicate":
            return packets * 2
        if fault.name == "reorder" and self._held is None and packets:
            self._held = packets[0]
            return packets[1:]
        if fault.name == "corrupt":
            return [self._corrupt(packet, fault.parameters.get("how", "truncate")) for packet in packets]
        return packets

    def _corrupt(self, packet: bytes, how: str) -> bytes:
        if how == "truncate":
            return packet[: self._random.randrange(1, len(packet))]
        position = self._random.randrange(8, len(packet))  # behind the message id
        return packet[:position] + bytes([packet[position] ^ 0xFF]) + packet[position + 1 :]
