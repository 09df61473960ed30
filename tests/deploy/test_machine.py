"""Does every event lead to the state it should, and does nothing move that must not?"""

from __future__ import annotations

from typing import Any

import pytest

from deploy.drivers.base import CommunicationViolation, ConnectionLost, DriverError, Mode, ReflexError, UserStopped
from deploy.realtime.machine import Do, MachineSettings, Seen, StateMachine
from deploy.realtime.records import Machine

SETTINGS = MachineSettings(stale_s=0.1, stop_s=0.5, tries=3, pause_s=0.5)


class Story:
    """Steps a machine at 100 Hz."""

    def __init__(self) -> None:
        self.machine, self.now_s = StateMachine(SETTINGS), 50.0

    def step(self, *, age_s: float = 0.0, **seen: Any) -> Do:
        self.now_s += 0.01
        return self.machine.step(Seen(now_s=self.now_s, chunk_made_s=self.now_s - age_s, **seen))

    def running(self) -> Story:
        assert self.step() is Do.START
        assert self.machine.state is Machine.RUNNING
        return self


def test_a_fresh_chunk_starts_and_a_stale_one_holds_then_stops() -> None:
    story = Story()
    assert story.step(age_s=0.2) is Do.NOTHING and story.machine.state is Machine.IDLE
    story.running()
    made_s, states = story.now_s, []
    for _ in range(60):
        story.now_s += 0.01
        done = story.machine.step(Seen(now_s=story.now_s, chunk_made_s=made_s, at_rest=True))
        states.append((round(story.now_s - made_s, 2), story.machine.state, done))
    holding = [age for age, state, _ in states if state is Machine.HOLDING]
    assert holding[0] == pytest.approx(0.1, abs=0.011) and holding[-1] == pytest.approx(0.5, abs=0.011)
    assert [done for *_, done in states].count(Do.END) == 1
    assert states[-1][1] is Machine.IDLE


def test_holding_goes_on_with_the_next_fresh_chunk() -> None:
    story = Story().running()
    story.step(age_s=0.3)
    assert story.machine.state is Machine.HOLDING
    story.step()
    assert story.machine.state is Machine.RUNNING
    story.step(hold=True)
    assert story.machine.state is Machine.HOLDING
    story.step(hold=True)
    assert story.machine.state is Machine.HOLDING
    story.step()
    assert story.machine.state is Machine.RUNNING


def test_a_stop_waits_for_rest_and_the_same_chunk_does_not_start_again() -> None:
    story = Story().running()
    story.step(stop=True, at_rest=False)
    for _ in range(5):
        assert story.step(stop=True, at_rest=False) is Do.NOTHING
        assert story.machine.state is Machine.STOPPING
    story.step(at_rest=False)  # a stop that was asked for is not taken back half way
    assert story.machine.state is Machine.STOPPING
    assert story.step(stop=True) is Do.END
    stopped_s = story.now_s
    assert story.machine.step(Seen(now_s=stopped_s + 0.05, chunk_made_s=stopped_s - 0.01)) is Do.NOTHING
    assert story.machine.step(Seen(now_s=stopped_s + 0.05, chunk_made_s=stopped_s + 0.04)) is Do.START


def test_a_plan_about_what_was_before_a_stop_starts_nothing() -> None:
    """Inference that began before a stop ends after it: the chunk is new, what it was made from is not."""
    story = Story().running()
    story.step(stop=True)
    assert story.step(stop=True) is Do.END
    stopped_s = story.now_s
    assert story.step(observed_s=stopped_s - 0.02) is Do.NOTHING
    assert story.step(observed_s=stopped_s) is Do.NOTHING
    assert story.step(observed_s=stopped_s + 0.005) is Do.START


def test_a_user_stop_during_a_reflex_needs_a_confirmation() -> None:
    story = Story().running()
    story.step(failure=ReflexError("joint_reflex"))
    story.step(mode=Mode.REFLEX)
    story.step(mode=Mode.USER_STOPPED)
    assert story.machine.state is Machine.USER_STOPPED
    for _ in range(500):  # released, and longer than every pause
        assert story.step(mode=Mode.REFLEX) is Do.NOTHING
    assert story.step(mode=Mode.REFLEX, confirmations=1) is Do.RECOVER


@pytest.mark.parametrize("failure", [ReflexError("joint_reflex"), CommunicationViolation("late"), DriverError("no")])
def test_a_reflex_is_recovered_a_bounded_number_of_times_with_growing_pauses(failure: DriverError) -> None:
    story = Story().running()
    tries: list[float] = []
    story.step(failure=failure)
    for _ in range(3000):
        if story.step(mode=Mode.REFLEX) is Do.RECOVER:
            tries.append(story.now_s)
            story.step(failure=ReflexError("still"))
    assert len(tries) == 3 and story.machine.gave_up and story.machine.state is Machine.REFLEX
    assert tries[2] - tries[1] > 1.5 * (tries[1] - tries[0])
    assert story.step(mode=Mode.REFLEX, confirmations=1) is Do.RECOVER  # an operator may begin anew
    story.step()
    assert story.machine.state is Machine.IDLE
    assert story.step() is Do.START


def test_long_running_forgives_earlier_tries() -> None:
    story = Story().running()
    for _ in range(10):
        story.step(failure=ReflexError("again"))
        while story.step(mode=Mode.REFLEX) is not Do.RECOVER:
            assert not story.machine.gave_up
        story.step()
        assert story.step() is Do.START
        for _ in range(510):
            story.step()
    assert story.machine.state is Machine.RUNNING and story.machine.total_tries == 10


def test_after_a_user_stop_nothing_moves_without_a_confirmation_that_came_later() -> None:
    story = Story().running()
    story.step(failure=UserStopped("pressed"), confirmations=4)
    for _ in range(2000):
        assert story.step(mode=Mode.USER_STOPPED, confirmations=4) is Do.NOTHING
    assert story.machine.state is Machine.USER_STOPPED
    assert story.step(mode=Mode.USER_STOPPED, confirmations=5) is Do.RECOVER
    story.step(failure=UserStopped("still pressed"), confirmations=5)
    for _ in range(100):
        assert story.step(mode=Mode.USER_STOPPED, confirmations=5) is Do.NOTHING
    assert story.step(mode=Mode.USER_STOPPED, confirmations=6) is Do.RECOVER
    story.step(confirmations=6)
    assert story.step(confirmations=6) is Do.START


@pytest.mark.parametrize("mode", [Mode.USER_STOPPED, Mode.REFLEX])
def test_a_robot_that_stopped_without_an_error_is_noticed(mode: Mode) -> None:
    for story in (Story(), Story().running()):
        assert story.step(mode=mode) is Do.NOTHING
        assert story.machine.state is (Machine.REFLEX if mode is Mode.REFLEX else Machine.USER_STOPPED)


def test_a_lost_connection_is_rebuilt_a_bounded_number_of_times() -> None:
    story = Story().running()
    story.step(failure=ConnectionLost("closed"))
    assert story.machine.state is Machine.LOST
    for _ in range(3):
        while story.step(mode=Mode.OTHER) is not Do.CONNECT:
            assert story.machine.state is Machine.LOST
        story.step(failure=ConnectionLost("nobody answers"))
    for _ in range(2000):
        assert story.step(mode=Mode.OTHER) is Do.NOTHING
    assert story.machine.gave_up
    story = Story().running()
    story.step(failure=ConnectionLost("closed"))
    while story.step(mode=Mode.OTHER) is not Do.CONNECT:
        pass
    story.step()
    assert story.machine.state is Machine.IDLE and story.step() is Do.START


def test_a_stop_request_keeps_a_fallen_robot_still() -> None:
    story = Story().running()
    story.step(failure=ReflexError("joint_reflex"))
    for _ in range(500):
        assert story.step(mode=Mode.REFLEX, stop=True) is Do.NOTHING


def test_settings_that_would_move_on_a_stale_action_are_refused() -> None:
    for bad in ({"stale_s": 0.0}, {"stop_s": 0.6}, {"stale_s": 0.4, "stop_s": 0.3}, {"tries": -1}, {"pause_s": 0.0}):
        with pytest.raises(ValueError, match=r"expected|an arm holds"):
            MachineSettings(**bad)  # type: ignore[arg-type]
