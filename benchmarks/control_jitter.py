"""How regular is the control process's tick, beside a bare timer loop in C that does nothing, at the same time?

    python benchmarks/control_jitter.py [--driver franky] [--seconds 30] [--rate 200] [--priority 0] [--loads 0]

Starts the emulator in strict pacing (1 kHz of wall-clock time), our control process with its real driver at `--rate`,
a policy process that multiplies matrices for most of each 50 ms and sends a chunk of 8 waypoints after it, and a C loop
of clock_nanosleep at the same rate and scheduling. Prints one JSON line: periods p50, p99, p99.9 and max of both in
microseconds. `ratio` compares p99 (C over ours, so 1 is as good as the machine allows).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deploy.drivers.connect import DEFAULT
from deploy.emulator.client import Emulator
from deploy.realtime.controller import ControlConfig, run_control
from deploy.realtime.mailbox import Mailbox, memory_folder
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    OPERATOR,
    OPERATOR_FILE,
    REPORT_FILE,
    STATE,
    STATE_FILE,
    TICK_FILE,
    Machine,
    create_mailboxes,
)
from deploy.realtime.ticklog import read_ticks
from toto_robot.run_folder import git_commit, machine

PERIOD_S = 0.05  # of the policy
START_S = 30.0
LOAD = "import numpy; a = numpy.ones((400, 400))\nwhile True: a = a @ a * 1e-3"
TIMER = r"""
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
int main(int count, char **words) {
  long period = 1e9 / atof(words[1]), ticks = atof(words[1]) * atof(words[2]);
  struct sched_param priority = {atoi(words[3])};
  if (priority.sched_priority > 0 && sched_setscheduler(0, SCHED_FIFO, &priority)) return 1;
  prctl(PR_SET_TIMERSLACK, 1);
  double *seen = malloc(ticks * sizeof(double));
  struct timespec next, now;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (long i = 0; i < ticks; i++) {
    next.tv_nsec += period;
    while (next.tv_nsec >= 1000000000) { next.tv_nsec -= 1000000000; next.tv_sec++; }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, 0);
    clock_gettime(CLOCK_MONOTONIC, &now);
    seen[i] = now.tv_sec + 1e-9 * now.tv_nsec;
  }
  return fwrite(seen, sizeof(double), ticks, stdout) != (size_t)ticks;
}
"""


def think_and_send(folder: Path) -> None:
    """Be a policy: load a core for 30 ms of every 50 ms, then plan 0.4 s of a slow swing."""
    states, chunks = Mailbox(folder / STATE_FILE, STATE), Mailbox(folder / CHUNK_FILE, CHUNK)
    begun_s, home = time.monotonic(), states.newest()[1]["q_rad"].copy()
    matrix = np.ones((400, 400), np.float32)
    chunk = np.zeros((), CHUNK)
    while True:
        capture_s = time.monotonic()
        while time.monotonic() < capture_s + 0.6 * PERIOD_S:
            matrix = matrix @ matrix * 1e-3
        times = capture_s + PERIOD_S * np.arange(1, 9)
        angle = times - begun_s
        chunk["made_s"], chunk["capture_s"], chunk["count"] = time.monotonic(), capture_s, len(times)
        chunk["time_s"][:8] = times
        chunk["q_rad"][:8] = home + 0.1 * (1 - np.cos(angle))[:, None]
        chunk["dq_rad_s"][:8] = 0.1 * np.sin(angle)[:, None]
        chunks.put(chunk)
        time.sleep(max(0.0, capture_s + PERIOD_S - time.monotonic()))


def measure(config: ControlConfig, seconds: float, folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return our periods and C's (us) of the same seconds, and our report."""
    assert config.log_folder is not None
    create_mailboxes(folder)
    spawn = multiprocessing.get_context("spawn")
    control = spawn.Process(target=run_control, args=(config, folder, os.getpid()))
    control.start()
    states = Mailbox(folder / STATE_FILE, STATE)
    _wait_until(lambda: states.newest()[0] > 0, control)
    policy = spawn.Process(target=think_and_send, args=(folder,), daemon=True)
    policy.start()
    _wait_until(lambda: int(states.newest()[1]["machine"]) == Machine.RUNNING, control)
    timer = _start_timer(config, seconds, folder)
    begun_s = time.monotonic()
    with tqdm(total=seconds, unit="s") as progress:
        while (passed_s := time.monotonic() - begun_s) < seconds:
            progress.update(round(passed_s - progress.n, 1))
            time.sleep(0.2)
    times = np.frombuffer(timer.communicate()[0])
    policy.kill()
    ask = np.zeros((), OPERATOR)
    ask["quit"] = True
    Mailbox(folder / OPERATOR_FILE, OPERATOR).put(ask)
    control.join()
    start_s = read_ticks(config.log_folder / TICK_FILE)["start_s"]
    ours = start_s[(start_s >= times[0]) & (start_s <= times[-1])]
    report = json.loads((config.log_folder / REPORT_FILE).read_text())
    return np.diff(ours) * 1e6, np.diff(times) * 1e6, report


def _wait_until(what: Any, control: Any) -> None:
    until_s = time.monotonic() + START_S
    while not what():
        if not control.is_alive() or time.monotonic() > until_s:
            raise SystemExit("the control process did not start to move the arm")
        time.sleep(0.01)


def _start_timer(config: ControlConfig, seconds: float, folder: Path) -> subprocess.Popen:
    source, program = folder / "timer.c", folder / "timer"
    source.write_text(TIMER)
    subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    words = [str(program), str(config.rate_hz), str(seconds), str(config.realtime_priority)]
    return subprocess.Popen(words, stdout=subprocess.PIPE)


def figures(periods_us: np.ndarray) -> dict[str, float]:
    """Return what a tick's period was."""
    named = {f"p{share:g}": round(float(np.percentile(periods_us, share)), 1) for share in (50, 99, 99.9)}
    return {**named, "max": round(float(periods_us.max()), 1)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", default="franky")
    parser.add_argument("--robot", default="fr3", choices=sorted(DEFAULT))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO of both loops; 0 leaves the scheduling")
    parser.add_argument("--loads", type=int, default=0, help="more processes that load a core each")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        twin = arguments.driver == "twin"
        emulator = None if twin else stack.enter_context(Emulator(robot=arguments.robot, pacing="strict"))
        config = ControlConfig(
            driver=arguments.driver,
            robot=arguments.robot,
            address=emulator.address if emulator else "",
            rate_hz=arguments.rate,
            realtime_priority=arguments.priority,
            log_folder=log,
        )
        for _ in range(arguments.loads):
            stack.callback(subprocess.Popen([sys.executable, "-c", LOAD]).kill)
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder)
        ours, peer, report = measure(config, arguments.seconds, folder)
        robot = emulator.status()["timing"] if emulator else {}
    result = {
        "name": "tick",
        "ours": figures(ours)["p99"],
        "peer": figures(peer)["p99"],
        "peer_name": "C, clock_nanosleep",
        "unit": "us, p99 of the period",
        "ratio": round(figures(peer)["p99"] / figures(ours)["p99"], 3),
        "ours_us": figures(ours),
        "peer_us": figures(peer),
        "robot_us": robot,
        "work_ms": report["work_ms"],
        "capture_to_command_ms": report["capture_to_command_ms"],
        "starved_share": report["starved_share"],
        "seconds_in": {name: round(value, 1) for name, value in report["seconds_in"].items() if value},
        "recovery_tries": report["recovery_tries"],
        "last_failure": report["last_failure"],
        "settings": dict(vars(arguments)),
        "commit": git_commit(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
