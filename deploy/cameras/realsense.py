"""How is an Intel RealSense read: by its serial number, colour only, reset when no frame comes?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deploy.cameras.capture import CameraError, CaptureSettings

_TIMEOUT_MS = 2000
_WALL_CLOCKS = ("global_time", "system_time")  # of rs2_timestamp_domain; hardware_clock is the device's own


class RealSenseSource:
    """One RealSense by serial number; an empty one takes the only device."""

    def __init__(self, settings: CaptureSettings, serial: str) -> None:
        self._settings, self._serial = settings, serial
        self._pipeline: Any = None

    def open(self) -> None:
        """Start the colour stream; CameraError if the library or the device is missing."""
        try:
            import pyrealsense2 as rs
        except ImportError as error:
            raise CameraError(
                'the RealSense library is missing: pip install "toto-robot[realsense]" (or pip install pyrealsense2)'
            ) from error
        config = rs.config()
        if self._serial:
            config.enable_device(self._serial)
        size = (self._settings.width, self._settings.height)
        config.enable_stream(rs.stream.color, *size, rs.format.rgb8, int(self._settings.rate_hz))
        self._pipeline = rs.pipeline()
        try:
            profile = self._pipeline.start(config)
            # Frames in the library's own queue are latency.
            for sensor in profile.get_device().query_sensors():
                if sensor.supports(rs.option.frames_queue_size):
                    sensor.set_option(rs.option.frames_queue_size, 1)
        except RuntimeError as error:
            self._pipeline = None
            raise CameraError(f"RealSense {self._serial or '(any)'}: {error}") from error

    def read(self) -> tuple[float, np.ndarray]:
        """Return capture time and picture; CameraError after two seconds without a frame."""
        try:
            frames = self._pipeline.wait_for_frames(_TIMEOUT_MS)
        except RuntimeError as error:  # "Frame didn't arrive within 2000"
            raise CameraError(f"RealSense {self._serial}: {error}; check cable and USB port") from error
        arrived_s = time.monotonic()
        color = frames.get_color_frame()
        if not color:
            raise CameraError(f"RealSense {self._serial}: a frame set without colour")
        # The picture is older than its arrival, however much, where the library counts in the host's wall clock.
        wall = str(color.get_frame_timestamp_domain()).rpartition(".")[2] in _WALL_CLOCKS
        age_s = max(0.0, time.time() - color.get_timestamp() / 1000.0) if wall else 0.0
        return arrived_s - age_s, np.asanyarray(color.get_data()).copy()

    def close(self) -> None:
        """Stop the stream and reset the device, which cures one that gives no frames."""
        if self._pipeline is not None:
            try:
                device = self._pipeline.get_active_profile().get_device()
                self._pipeline.stop()
                device.hardware_reset()
            except RuntimeError:
                pass  # it has gone
            self._pipeline = None
