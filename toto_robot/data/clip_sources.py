"""What can one clip be: a video file, a picture file, what one camera saw in an episode, a folder that stays closed?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore
from toto_robot.data.images import decode_image
from toto_robot.data.sampling import Kind
from toto_robot.data.video import BadVideo, Frame, decode, probe, refuse_special, resize_square

_BLOCK_FRAMES = 64  # read from an episode store at once
_SAMPLE_BYTES = 2**20  # of the head and of the tail of a file that its fingerprint covers


@dataclass(frozen=True, slots=True)
class _FileSource:
    """A file that is a clip of its own."""

    id: str
    path: Path
    source: str

    @property
    def group(self) -> str:
        """Return the file itself."""
        return self.id

    def fingerprint(self) -> str:
        """Hash the size and the first and last MiB of the file; a file that cannot be read says so."""
        return file_fingerprint(self.path)


@dataclass(frozen=True, slots=True)
class VideoSource(_FileSource):
    """A video file."""

    kind: Kind = "video"

    def header(self) -> tuple[int, float]:
        """Read the number of frames and the rate from the header."""
        info = probe(self.path)
        return info.frames, info.fps

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Decode the file from start to end."""
        return decode(self.path, size_px)


@dataclass(frozen=True, slots=True)
class ImageSource(_FileSource):
    """A picture file: a clip of one frame."""

    kind: Kind = "images"

    def header(self) -> tuple[int, float]:
        """Return one frame, and that it has no rate."""
        return 1, 0.0

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Decode the picture."""
        yield decode_image(self.path, size_px)


@dataclass(frozen=True)
class EpisodeSource:
    """What one camera saw in one episode of a store."""

    store: EpisodeStore
    store_id: str
    index: int
    camera: str
    source: str
    kind: Kind = "video"

    @property
    def id(self) -> str:
        """Return store/episode/camera."""
        return f"{self.group}/{self.camera}"

    @property
    def group(self) -> str:
        """Return store/episode: its cameras show the same moments."""
        return f"{self.store_id}/episode_{self.index:06d}"

    def fingerprint(self) -> str:
        """Hash the stored frames."""
        start, stop = self.store.bounds(self.index)
        return hashlib.sha256(self.store.read(IMAGE_PREFIX + self.camera, start, stop).data).hexdigest()

    def header(self) -> tuple[int, float]:
        """Return the length of the episode and the control rate."""
        start, stop = self.store.bounds(self.index)
        return stop - start, self.store.fps

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Read the frames; those of the wanted size already are yielded as they were stored."""
        start, stop = self.store.bounds(self.index)
        for first in range(start, stop, _BLOCK_FRAMES):
            for frame in self.store.read(IMAGE_PREFIX + self.camera, first, min(first + _BLOCK_FRAMES, stop)):
                yield frame if frame.shape == (size_px, size_px, 3) else resize_square(frame, size_px)


@dataclass(frozen=True)
class ClosedFolder:
    """A folder that may not be listed: it has no frames, but a reason, which is recorded with the other ones."""

    id: str
    path: Path
    source: str
    reason: str
    kind: Kind = "video"

    @property
    def group(self) -> str:
        """Return the folder itself."""
        return self.id

    def fingerprint(self) -> str:
        """Return the reason."""
        return self.reason

    def header(self) -> tuple[int, float]:
        """Raise BadVideo with the reason."""
        raise BadVideo(f"is a folder that cannot be read ({self.reason})")

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Raise BadVideo with the reason."""
        raise BadVideo(f"is a folder that cannot be read ({self.reason})")


def file_fingerprint(path: Path) -> str:
    """Hash the size and the first and last MiB of a file; a file that cannot be read says so."""
    try:
        refuse_special(path)
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    except (OSError, BadVideo) as error:  # decoding will fail too, with a reason that is kept
        return f"unreadable ({getattr(error, 'strerror', None) or error})"
    return digest.hexdigest()
