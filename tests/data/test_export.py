"""Does `export-video` show every exported episode and camera, as videos and on one sheet?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toto_robot.data.episodes import EpisodeStore, FeatureSpec
from toto_robot.data.export import ExportVideoConfig, export_video
from toto_robot.data.video import decode, probe


def colourful_store(path: Path, count: int = 3) -> EpisodeStore:
    """Make episodes whose front camera shows a grey that tells the episode, whose wrist camera is red."""
    features = {
        "observation.images.front": FeatureSpec("uint8", (16, 16, 3)),
        "observation.images.wrist": FeatureSpec("uint8", (8, 8, 3)),
    }
    store = EpisodeStore.create(path, features=features, fps=20.0, env={"env_id": "x"})
    for index in range(count):
        front = np.full((6, 16, 16, 3), 40 + 60 * index, np.uint8)
        front[-1] = 255  # the last moment is white
        wrist = np.tile(np.array([200, 0, 0], np.uint8), (6, 8, 8, 1))
        episode = {"observation.images.front": front, "observation.images.wrist": wrist}
        store.append(episode, {"seed": 7 + index, "success": index != 1})
    store.close()
    return store


def test_videos_and_sheet(tmp_path: Path) -> None:
    colourful_store(tmp_path / "run" / "episodes")
    config = ExportVideoConfig(data=str(tmp_path / "run"), min_side_px=60, sheet_moments=4)
    assert export_video(config, tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out" / "videos").iterdir())
    assert names == [f"episode_00000{index}_{camera}.mp4" for index in range(3) for camera in ("front", "wrist")]
    info = probe(tmp_path / "out" / "videos" / "episode_000001_front.mp4")
    assert (info.width, info.height, info.fps, info.frames) == (64, 64, 20.0, 6)
    shown = list(decode(info.path, 16))
    assert abs(int(shown[0].mean()) - 100) < 4 and shown[5].mean() > 250
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    assert sheet.shape == (3 * (14 + 16 + 8), 4 * 16, 3)
    for row in range(3):
        top = row * 38 + 14
        assert (sheet[top : top + 16, :48] == 40 + 60 * row).all() and (sheet[top : top + 16, 48:] == 255).all()
        assert (sheet[top + 16 : top + 24, :32] == [200, 0, 0]).all()
        assert (sheet[top - 14 : top] < 128).any(), "the line of text is missing"


def test_a_part_of_it(tmp_path: Path) -> None:
    colourful_store(tmp_path / "episodes")
    config = ExportVideoConfig(data=str(tmp_path / "episodes"), episodes=2, cameras=("wrist",))
    assert export_video(config, tmp_path / "out") == 0
    kept = tmp_path / "out" / "videos" / "episode_000000_wrist.mp4"
    before = kept.stat().st_mtime_ns
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 2
    export_video(config, tmp_path / "out")
    assert kept.stat().st_mtime_ns == before, "an export that was interrupted goes on"


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    colourful_store(tmp_path / "episodes", count=0)
    with pytest.raises(ValueError, match="holds no episodes yet"):
        export_video(ExportVideoConfig(data=str(tmp_path / "episodes")), tmp_path / "out")
    with pytest.raises(ValueError, match=r"no camera \['top'\]; it has front, wrist"):
        export_video(ExportVideoConfig(data=str(tmp_path / "episodes"), cameras=("top",)), tmp_path / "out")
    with pytest.raises(ValueError, match="which does not exist"):
        export_video(ExportVideoConfig(data=str(tmp_path / "nothing")), tmp_path / "out")
    colourful_store(tmp_path / "more")
    with pytest.raises(ValueError, match="holds 2 episode stores; name one of"):
        export_video(ExportVideoConfig(data=str(tmp_path)), tmp_path / "out")
    with pytest.raises(ValueError, match="at least 1"):
        ExportVideoConfig(data="x", episodes=0)
