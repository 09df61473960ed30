"""A whole pick over the wire: the scripted expert's motion in simulation, through franky, until the task is done."""

import time

import franky
import gymnasium
import numpy as np

from deploy.emulator.client import Emulator

SEED = 1
CONTROL_S = 0.05


def demonstration():
    """Return joint positions (T, 7) and gripper actions (T,) of the expert in the simulated task."""
    made = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio")
    env = made.unwrapped
    made.reset(seed=SEED)
    expert, positions, grippers, info = env.expert(SEED), [env.data.qpos[:7].copy()], [], {}
    while not info.get("success"):
        action = expert.act().executed
        *_, info = made.step(action)
        positions.append(env.data.qpos[:7].copy())
        grippers.append(float(action[6]))
        assert len(grippers) < 166, "the expert failed"
    made.close()
    return np.array(positions), np.array([*grippers, grippers[-1]])


positions, grippers = demonstration()
with Emulator(seed=SEED) as emulator:
    robot = franky.Robot(emulator.address, realtime_config=franky.RealtimeConfig.Ignore)
    robot.set_collision_behavior(60.0, 60.0)
    hand = franky.Gripper(emulator.address)
    assert np.allclose(robot.state.q, positions[0], atol=1e-6), "the emulator starts where the simulation does"
    closed, pending, times = None, None, CONTROL_S * np.arange(len(positions))
    # Softer towards the wrist, whose motors give 12 N m.
    stiffness, damping = [600.0] * 4 + [250.0, 200.0, 100.0], [50.0] * 4 + [20.0, 15.0, 10.0]
    with franky.JointImpedanceTracker(robot, stiffness=stiffness, damping=damping) as tracker:
        start_s = robot.state.time.to_sec()
        while not emulator.status()["success"]:
            now_s = robot.state.time.to_sec() - start_s  # the robot's clock: it waits when this machine is busy
            assert now_s < times[-1] + 2.0, f"no success: {emulator.events()[-5:]} {emulator.status()}"
            q = [np.interp(now_s, times, positions[:, joint]) for joint in range(7)]
            ahead = [np.interp(now_s + 0.01, times, positions[:, joint]) for joint in range(7)]
            tracker.set_target(q, (np.array(ahead) - q) / 0.01)
            wanted = bool(np.interp(now_s, times, grippers) > 0)
            if wanted != closed:  # this scene begins with closed fingers
                closed = wanted
                pending = hand.grasp_async(0.0, 0.1, 20.0, 0.08, 0.08) if closed else hand.move_async(0.08, 0.1)
            time.sleep(0.01)
    assert pending is not None and pending.get()
    status = emulator.status()
    assert status["grasped"] and status["lost"] == 0 and not status["failed"]
print(f"pick: all well, success after {status['success_s']:.2f} s, {CONTROL_S * len(grippers):.2f} s in simulation")
