"""Does the report of a run look at one episode, and at nothing of the next?"""

from __future__ import annotations

import numpy as np

from deploy.realtime.records import TICK, Machine
from deploy.report import episode_ticks


def ticks_of(*machines: Machine) -> np.ndarray:
    """Ten ticks in each state, 10 ms apart."""
    ticks = np.zeros(10 * len(machines), TICK)
    ticks["start_s"] = 0.01 * np.arange(len(ticks))
    ticks["machine"] = np.repeat(machines, 10)
    return ticks


def test_an_episode_ends_where_the_arm_rests():
    ticks = ticks_of(Machine.IDLE, Machine.RUNNING, Machine.HOLDING, Machine.STOPPING, Machine.IDLE, Machine.RUNNING)
    steps = {"inference.end_s": np.array([0.05, 0.12, 0.19])}  # nothing of the second motion
    chosen = episode_ticks(ticks, steps)
    assert chosen["start_s"][0] >= 0.1 - 1e-9 and chosen["start_s"][-1] <= 0.4
    assert Machine.IDLE not in chosen["machine"] and Machine.STOPPING in chosen["machine"]
    second = episode_ticks(ticks, {"inference.end_s": np.array([0.45, 0.55])})
    assert len(second) == 10 and second["start_s"][0] >= 0.5 - 1e-9
    assert len(episode_ticks(ticks, {})) == 0
