"""Is a deployment that cannot work refused before anything moves, and some before anything is contacted?"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from dataclasses import replace

import numpy as np
import pytest
from deploy_run import changed, deploy, events

from deploy.drivers import scheduling
from deploy.emulator.client import Emulator
from deploy.person import confirm_motion
from deploy.policy_loop import PolicyRate, check_rate
from deploy.run_franka import DeployConfig, control_config
from toto_robot.data.video import write_mp4


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"robot": "ur5"}, "emulator, twin, fr3, fer"),
        ({"robot": "fr3"}, "address"),
        ({"address": "172.16.0.2"}, "robot=emulator"),
        ({"robot": "twin", "cameras": ("front=opencv:0",)}, "robot=twin brings its own"),
        ({"emulated": "fr2"}, "fr2"),
        ({"episodes": 0}, "episodes"),
        ({"driver": "pylibfrank"}, "franky, pylibfranka, panda, twin, got 'pylibfrank', did you mean 'pylibfranka'"),
        ({"driver": "panda"}, "panda moves fer, not fr3"),
        ({"driver": "twin"}, "go together"),
        ({"robot": "twin", "driver": "franky"}, "go together"),
        ({"control": "torque"}, "joint_impedance, cartesian_impedance"),
        ({"control": "cartesian_impedance", "emulated": "fer"}, "driver=franky only"),
        ({"box_m": (0.1, 0.2)}, "six numbers"),
        ({"box_m": (0.5, -0.4, 0.4, 0.1, 0.4, 0.9)}, "low_m < high_m"),
        ({"step_rad": 0.0}, "step_rad"),
        ({"collision": 0.0}, "collision is a contact threshold above 0"),
        ({"collision": 20.0, "emulated": "fer", "driver": "panda"}, "driver=franky sets.*got 20.0 and panda"),
        ({"realtime_priority": 99}, "realtime_priority"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        DeployConfig(policy="bundle", **settings)


def test_a_real_arm_without_a_workspace_box_is_refused_unless_it_is_asked_for(tmp_path):
    description = {"task": {"control_rate_hz": 20.0, "env_id": "lab/Drawer-v0"}}
    real = DeployConfig(policy="bundle", robot="fr3", address="172.16.0.2")
    with pytest.raises(ValueError, match=r"lab/Drawer-v0 has no workspace box of its own: give box_m=.*box_m=null"):
        control_config(real, "172.16.0.2", description, tmp_path)
    assert control_config(replace(real, box_m=None), "172.16.0.2", description, tmp_path).box is None
    assert control_config(DeployConfig(policy="bundle"), "127.0.0.1", description, tmp_path).box is None
    known = {"task": {**description["task"], "env_id": "toto_robot/FrankaPick-v0"}}
    assert control_config(real, "172.16.0.2", known, tmp_path).box is not None


def test_a_rate_that_the_encoder_cannot_hold_is_refused_with_numbers():
    check_rate({"p10_ms": 39.0, "p50_ms": 60.0, "p99_ms": 90.0}, 20.0)  # a busy machine
    with pytest.raises(PolicyRate, match=r"20 Hz.*50\.0 ms.*60\.0.*90\.0 ms"):
        check_rate({"p10_ms": 50.0, "p50_ms": 60.0, "p99_ms": 90.0}, 20.0)


def test_a_real_arm_needs_a_person_at_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(RuntimeError, match="terminal"):
        confirm_motion("172.16.0.2")


def test_missing_cameras_are_refused(bundle, tmp_path):
    done = deploy(bundle, tmp_path, "robot=fr3", "address=127.0.0.9")
    assert done.returncode == 1 and "front, wrist" in done.stderr


def test_an_address_where_nobody_answers_is_refused(bundle, tmp_path):
    cameras = f"cameras=[front=file:{tmp_path / 'none.mp4'},wrist=file:{tmp_path / 'none.mp4'}]"
    done = deploy(bundle, tmp_path, "robot=fr3", "address=127.0.0.9", cameras)
    assert done.returncode == 1 and "no answer at 127.0.0.9:1337" in done.stderr and "FCI" in done.stderr


@pytest.mark.skipif(scheduling.realtime_kernel(), reason="this kernel is real-time")
def test_a_kernel_without_real_time_is_refused_where_it_is_asked_for(bundle, tmp_path):
    done = deploy(bundle, tmp_path, "realtime=enforce")
    assert done.returncode == 1 and "kernel" in done.stderr and events(tmp_path) == []


def take_no_priority() -> None:
    """Be as a user without an entry in limits.conf: no real-time priority, not even as root."""
    set_no_capability, sys_nice = 24, 23  # PR_CAPBSET_DROP, CAP_SYS_NICE: gone with the next exec
    ctypes.CDLL(None).prctl(set_no_capability, sys_nice, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))


def test_a_priority_that_is_not_permitted_is_refused_before_anything_is_contacted(bundle, tmp_path):
    done = deploy(bundle, tmp_path, "realtime_priority=20", preexec_fn=take_no_priority)
    assert done.returncode == 1 and "nothing has moved" in done.stderr
    assert "realtime_priority=20" in done.stderr and "limits.conf" in done.stderr and "rtprio 99" in done.stderr
    assert events(tmp_path) == []  # not even the emulator was started


@pytest.mark.parametrize(
    ("task", "word"),
    [
        ({"robot": "kuka_iiwa"}, "bundle is for robot 'kuka_iiwa'"),
        ({"action_units": ["mm"] * 3 + ["deg"] * 3 + ["open -1 .. closed +1"]}, "action_units"),
    ],
)
def test_a_bundle_for_another_arm_or_in_other_units_is_refused(bundle, tmp_path, task, word):
    done = deploy(changed(bundle, tmp_path, **task), tmp_path / "run")
    assert done.returncode == 1 and word in done.stderr, done.stderr
    assert events(tmp_path / "run") == []


def test_a_bundle_whose_rate_the_encoder_cannot_hold_is_refused_before_a_motion(bundle, tmp_path):
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    done = deploy(changed(bundle, tmp_path, control_rate_hz=2000.0), tmp_path / "run")
    assert done.returncode == 1 and "the bundle wants 2000 Hz, a period of 0.5 ms" in done.stderr, done.stderr
    assert "motion_started" not in events(tmp_path / "run")


def test_a_camera_without_a_frame_is_refused_before_a_motion(bundle, tmp_path):
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    write_mp4(tmp_path / "good.mp4", np.random.default_rng(0).integers(0, 255, (10, 48, 64, 3), np.uint8), 30.0)
    (tmp_path / "cut.mp4").write_bytes(b"")
    cameras = f"cameras=[front=file:{tmp_path / 'good.mp4'},wrist=file:{tmp_path / 'cut.mp4'}]"
    with Emulator() as robot:
        where = f"address={robot.address}"
        done = deploy(bundle, tmp_path / "run", "robot=fr3", where, cameras, "camera_s=4", "preflight_s=0.1")
        assert done.returncode == 1 and "no frame within 4 s from camera wrist:" in done.stderr, done.stderr
        assert robot.events(event="connect") and not robot.events(event="motion_started")
