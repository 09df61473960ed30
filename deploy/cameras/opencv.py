"""How are a V4L2 device and a video file read: one frame in the driver's queue, stamped at the grab?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deploy.cameras.capture import CameraError, CaptureSettings


class OpenCVSource:
    """A camera that OpenCV opens, or a video file that runs in a loop at its settings' rate."""

    def __init__(self, settings: CaptureSettings, place: str, is_file: bool) -> None:
        self._settings, self._place, self._is_file = settings, place, is_file
        self._device: Any = None
        self._due_s = 0.0

    def open(self) -> None:
        """Open the device; CameraError if it is not there or is another process's."""
        try:
            import cv2
        except ImportError as error:
            raise CameraError("OpenCV is missing: pip install opencv-python-headless") from error
        if self._is_file:
            self._device = cv2.VideoCapture(self._place)
        else:
            place: Any = int(self._place) if self._place.isdigit() else self._place
            self._device = cv2.VideoCapture(place, cv2.CAP_V4L2)
            self._device.set(cv2.CAP_PROP_FRAME_WIDTH, self._settings.width)
            self._device.set(cv2.CAP_PROP_FRAME_HEIGHT, self._settings.height)
            self._device.set(cv2.CAP_PROP_FPS, self._settings.rate_hz)
            self._device.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # newest only; a longer queue is latency
        if not self._device.isOpened():
            raise CameraError(f"{self._place} does not open: is it connected, and does another process hold it?")

    def read(self) -> tuple[float, np.ndarray]:
        """Return capture time and picture; CameraError when the device gives none."""
        import cv2

        if self._is_file:
            self._wait()
        grabbed = self._device.grab()  # V4L2 waits up to 10 s for a frame
        capture_s = time.monotonic()
        if not grabbed and self._is_file:
            self._device.set(cv2.CAP_PROP_POS_FRAMES, 0)
            grabbed = self._device.grab()
        done, picture = self._device.retrieve() if grabbed else (False, None)
        if not done or picture is None:
            raise CameraError(f"{self._place} gives no frame")
        size = (self._settings.width, self._settings.height)
        if (picture.shape[1], picture.shape[0]) != size:
            if not self._is_file:
                raise CameraError(f"{self._place} gives {picture.shape[1]}x{picture.shape[0]}, not {size[0]}x{size[1]}")
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return capture_s, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def _wait(self) -> None:
        self._due_s = max(self._due_s + 1.0 / self._settings.rate_hz, time.monotonic())
        time.sleep(max(0.0, self._due_s - time.monotonic()))

    def close(self) -> None:
        """Release the device."""
        if self._device is not None:
            self._device.release()
            self._device = None
