"""Do packet faults do to packets what their names say, when they are on and not when they are over?"""

import json
import time
from pathlib import Path

import pytest

from deploy.emulator import faults
from deploy.emulator.client import Emulator
from deploy.emulator.faults import Fault, Packets


def fault(name: str, start_ms: int = 0, **parameters) -> Fault:
    faults.check(name, parameters)
    return Fault(name, parameters, start_ms, float(parameters.get("count", float("inf"))))


def arrivals(active: list[Fault], packets: int, direction: str = "command") -> list[tuple[int, int]]:
    """Send packet number k in millisecond k; return (millisecond, number) of what arrives."""
    way, found = Packets(direction, 0), []
    for now_ms in range(packets):
        ready = way.due(now_ms) + way.send(bytes([now_ms]) * 16, active, now_ms)
        found += [(now_ms, packet[0]) for packet in ready]
    return found


def test_without_faults_everything_arrives_at_once() -> None:
    assert arrivals([], 5) == [(k, k) for k in range(5)]


def test_loss_ends_after_its_count() -> None:
    assert [number for _, number in arrivals([fault("loss", count=3)], 6)] == [3, 4, 5]


def test_loss_of_the_other_direction_touches_nothing() -> None:
    assert len(arrivals([fault("loss", direction="state")], 6)) == 6
    assert not arrivals([fault("loss", direction="both")], 6, "state")


def test_periods() -> None:
    lost = set(range(20)) - {number for _, number in arrivals([fault("loss", period_ms=10, duration_ms=2)], 20)}
    assert lost == {0, 1, 10, 11}


def test_delay_delays_each_by_as_much() -> None:
    assert arrivals([fault("delay", cycles=3)], 6) == [(3, 0), (4, 1), (5, 2)]


def test_jitter_reorders_but_loses_nothing() -> None:
    found = arrivals([fault("delay", cycles=0, jitter_cycles=4, duration_ms=40)], 60)
    assert sorted(number for _, number in found) == list(range(60))
    assert all(0 <= now_ms - number <= 4 for now_ms, number in found)
    assert [number for _, number in found] != sorted(number for _, number in found)


def test_reorder_swaps_neighbours() -> None:
    assert [number for _, number in arrivals([fault("reorder", count=1)], 4)] == [1, 0, 2, 3]


def test_duplicate() -> None:
    assert [number for _, number in arrivals([fault("duplicate", count=2)], 3)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("how", ["truncate", "flip"])
def test_corrupt_changes_every_packet(how: str) -> None:
    way = Packets("command", 0)
    for now_ms in range(20):
        packet = bytes(range(32))
        (found,) = way.send(packet, [fault("corrupt", how=how)], now_ms)
        assert found != packet
        assert len(found) == 32 if how == "flip" else len(found) < 32


def test_time_limited_faults_end() -> None:
    limited = fault("gripper_stuck", start_ms=100, duration_ms=50)
    assert limited.on(149) and not limited.on(150) and limited.over(150)
    assert not fault("gripper_stuck", period_ms=10, duration_ms=2).over(1_000_000)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("earthquake", {}, "loss"),
        ("loss", {"direction": "up"}, "state"),
        ("loss", {"counts": 1}, "count"),
        ("loss", {"period_ms": 5}, "duration_ms"),
    ],
)
def test_bad_faults_are_refused(name: str, parameters: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        faults.check(name, parameters)


def test_the_event_file_has_what_the_emulator_says(tmp_path: Path) -> None:
    with Emulator(event_file=tmp_path / "events.jsonl") as emulator:
        emulator.fault("user_stop", duration_ms=20)
        emulator.reset(5)
        deadline_s = time.monotonic() + 20.0
        while not emulator.events(event="fault_over"):
            assert time.monotonic() < deadline_s, "the user stop does not end"
        told = emulator.events()
        assert emulator.events(since=told[0]["number"]) == told[1:]
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert written == told
    assert [event["number"] for event in told] == list(range(1, len(told) + 1))
