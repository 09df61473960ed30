"""Does a camera give what a policy needs: frames, in time, with something to see on them?"""

from __future__ import annotations

import time

import numpy as np

from deploy.cameras.capture import CameraError, CaptureSettings, make_source
from deploy.host_checks import FAILED, OK, WARNING, Finding

_FRAMES = 30
_SLOW = 0.8  # of the rate that was asked for
_BLACK_MAX = 10  # of 255


def check_camera(name: str, source: str) -> Finding:
    """Open a source, read some frames and judge them. ValueError for an unknown kind of source."""
    settings = CaptureSettings(name=name, source=source)
    device = make_source(settings)
    try:
        device.open()
        frames = [device.read() for _ in range(_FRAMES)]
        age_s = time.monotonic() - frames[-1][0]
    except CameraError as error:
        return Finding(name=f"camera {name}", verdict=FAILED, text=str(error))
    finally:
        device.close()
    return judge_frames(name, frames, age_s, settings.rate_hz)


def judge_frames(name: str, frames: list[tuple[float, np.ndarray]], age_s: float, wanted_hz: float) -> Finding:
    """Return the finding about frames (capture time s, picture): black ones fail, slow ones are a warning."""
    rate_hz = (len(frames) - 1) / max(frames[-1][0] - frames[0][0], 1e-6)
    height, width = frames[-1][1].shape[:2]
    slow, black = rate_hz < _SLOW * wanted_hz, int(frames[-1][1].max()) < _BLACK_MAX
    words = [f"{width}x{height} at {rate_hz:.0f} Hz, {1e3 * age_s:.0f} ms old"]
    words += ["black"] if black else []
    words += [f"slower than {wanted_hz:.0f} Hz"] if slow else []
    return Finding(
        name=f"camera {name}",
        verdict=FAILED if black else WARNING if slow else OK,
        text=", ".join(words),
        help="lens cap, exposure, light; USB 3 port without a hub, one process a device",
    )
