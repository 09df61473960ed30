"""Does the emulator lose a cycle in lockstep while other processes load every core, and how regular is its clock?

    python benchmarks/emulator_soak.py [--seconds 150] [--loads 2] [--pacing lockstep] [--address 127.0.0.1]

Starts an emulated FR3, `--loads` processes that multiply matrices without a pause, and franky's joint impedance tracker
(torques at 1 kHz) with a target that swings 0.2 rad at 20 updates a second. Prints one JSON object: cycles, lost ones,
longest run of them, robot seconds, and the server's period, work and wait in microseconds. Exit code 1 if anything was
lost in lockstep. Needs franky-control.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np
from tqdm import tqdm

from deploy.emulator.client import Emulator

UPDATE_S = 0.05
LOAD = "import numpy; a = numpy.ones((400, 400))\nwhile True: a = a @ a * 1e-3"


def soak(seconds: float, pacing: str, address: str | None) -> dict:
    """Return the figures of one run."""
    import franky

    with Emulator(pacing=pacing, address=address) as emulator:
        robot = franky.Robot(emulator.address, realtime_config=franky.RealtimeConfig.Ignore)
        home = np.array(robot.state.q)
        swing = np.array([0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2])
        emulator.reset_timing()
        start_s = time.monotonic()
        with franky.JointImpedanceTracker(robot) as tracker, tqdm(total=int(seconds), unit="s") as progress:
            while (passed_s := time.monotonic() - start_s) < seconds:
                tracker.set_target(home + swing * (1.0 - np.cos(passed_s)) / 2.0)
                progress.update(int(passed_s) - progress.n)
                time.sleep(UPDATE_S)
            status = emulator.status()
        return {
            "pacing": pacing,
            "host_s": round(time.monotonic() - start_s, 1),
            "robot_s": round(status["cycles"] / 1000, 1),
            **{key: status[key] for key in ("cycles", "lost", "longest_lost", "mode")},
            "timing_us": status["timing"],
        }


def main() -> int:
    """Run under load and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--loads", type=int, default=2)
    parser.add_argument("--pacing", choices=("lockstep", "strict"), default="lockstep")
    parser.add_argument("--address", default=None)
    arguments = parser.parse_args()
    loads = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(arguments.loads)]
    try:
        figures = soak(arguments.seconds, arguments.pacing, arguments.address)
    finally:
        for load in loads:
            load.kill()
    print(json.dumps({**figures, "loads": arguments.loads}, indent=1))
    return int(arguments.pacing == "lockstep" and figures["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
