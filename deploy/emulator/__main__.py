"""How does the emulator's own process start: `python -m deploy.emulator '{"env": "franka_pick", ...}'`?"""

from __future__ import annotations

import json
import sys

from deploy.emulator.process import Settings, run

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.emulator '<settings as JSON>'; people use `toto_robot emulator`")
    run(Settings(**json.loads(sys.argv[1])))
