"""Which clips does a LeRobot data set hold for pretraining: each camera of each episode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toto_robot.data.clip_sources import file_fingerprint
from toto_robot.data.episodes import IMAGE_PREFIX
from toto_robot.data.lerobot import LeRobotFolder
from toto_robot.data.recording import is_image
from toto_robot.data.sampling import Kind
from toto_robot.data.sources import Source
from toto_robot.data.video import BadVideo, Frame, resize_square


@dataclass(frozen=True)
class LeRobotSource:
    """What one camera saw in one episode of a LeRobot data set."""

    dataset: LeRobotFolder
    dataset_id: str
    index: int
    key: str  # observation.images.<camera>
    source: str
    kind: Kind = "video"

    @property
    def id(self) -> str:
        """Return data set/episode/camera."""
        return f"{self.group}/{self.key.removeprefix(IMAGE_PREFIX)}"

    @property
    def group(self) -> str:
        """Return data set/episode: its cameras show the same moments."""
        return f"{self.dataset_id}/episode_{self.index:06d}"

    def fingerprint(self) -> str:
        """Hash the file that the pictures are in, as for a video, and which part of it they are."""
        where = (file_fingerprint(self.dataset.file_of(self.index, self.key)), self.dataset.place_of(self.index))
        return hashlib.sha256(repr(where).encode()).hexdigest()

    def header(self) -> tuple[int, float]:
        """Return the length of the episode and its rate."""
        return self.dataset.lengths[self.index], self.dataset.fps

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Decode the episode's part of the video, or its stored pictures."""
        try:
            for picture in self.dataset.pictures(self.index, self.key):
                yield resize_square(picture, size_px)
        except (ValueError, OSError) as error:
            raise BadVideo(str(error)) from error


def clips_of(path: Path, name: str, source: str) -> list[Source]:
    """Return the clips of the data set at `path`, called `name`; ValueError where it is damaged or has no cameras."""
    dataset = LeRobotFolder(path)
    cameras = [key for key in dataset.features if is_image(key)]
    if not cameras:
        raise ValueError(f"{path} holds no images: its keys are {', '.join(dataset.features)}")
    return [LeRobotSource(dataset, name, index, key, source) for index in range(len(dataset)) for key in cameras]
