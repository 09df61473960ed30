"""Does every mistake a user makes get one clear line, and leave nothing half-written?"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from toto_robot import cli
from toto_robot.data.episodes import AUTOMATIC, EpisodeStore, FeatureSpec
from toto_robot.models import hub
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import Toto

TASK = {"env_id": "toto_robot/FrankaPick-v0"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str) -> str:
    """Run the console, expect exit code 1 and one line on stderr, and return it."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("toto_robot: error")]
    assert stopped.value.code == 1
    assert len(lines) == 1
    return lines[0]


def demonstrations(path: Path, *, env_id: str = TASK["env_id"], cameras: tuple[str, ...] = ("front", "wrist")) -> Path:
    """Write a store of two short episodes."""
    features = {
        "observation.state": FeatureSpec("float32", (3,)),
        "action": FeatureSpec("float32", (2,)),
        **{f"observation.images.{camera}": FeatureSpec("uint8", (64, 64, 3)) for camera in cameras},
    }
    env = {"env_id": env_id, "proprio_names": ["a", "b", "c"], "action_names": ["x", "y"], "cameras": list(cameras)}
    store = EpisodeStore.create(path, features=features, fps=20.0, env=env)
    for seed in range(2):
        episode = {key: np.zeros((5, *spec.shape), spec.dtype) for key, spec in features.items()}
        store.append(episode, {"seed": seed, "success": True})
    return path


def test_missing_encoder_names_the_command_that_makes_it(capsys):
    line = refused(capsys, "train-policy", "encoder.path=outputs/pretrain/toto/pretrained_model", "run=run")
    assert "make it with `toto_robot pretrain`, or set encoder.path" in line


def test_encoder_of_another_kind(capsys, tmp_path):
    from toto_robot.models.mae import build_mae

    hub.save_pretrained(build_mae(mae_preset("nano"), seed=0), tmp_path / "mae")
    line = refused(capsys, "train-policy", "encoder=toto", "encoder.path=mae", "run=run")
    assert "mae" in line and "toto" in line


def test_checkpoint_of_another_size_names_the_tensor_and_both_shapes(capsys, tmp_path):
    hub.save_pretrained(Toto(preset("nano")), tmp_path / "toto")
    config = json.loads((tmp_path / "toto" / "config.json").read_text())
    config["width"] = 512
    (tmp_path / "toto" / "config.json").write_text(json.dumps(config))
    line = refused(capsys, "train-policy", "encoder=toto", "encoder.path=toto", "run=run")
    assert "256" in line and "512" in line


def test_demonstrations_of_another_environment(capsys, tmp_path):
    demonstrations(tmp_path / "demos", env_id="somebody/Else-v3")
    line = refused(capsys, "train-policy", "encoder=none", "demos=demos", "demonstrations=2", "run=run")
    assert "somebody/Else-v3" in line and "toto_robot/FrankaPick-v0" in line


def test_missing_camera_and_too_few_demonstrations(capsys, tmp_path):
    demonstrations(tmp_path / "demos", cameras=("front",))
    line = refused(capsys, "train-policy", "encoder=random_vit", "demos=demos", "demonstrations=2", "run=run")
    assert "wrist" in line and "front" in line
    line = refused(capsys, "train-policy", "encoder=none", "demos=demos", "demonstrations=3", "run=other")
    assert "3" in line and "2" in line


def content(store: EpisodeStore, index: int) -> dict[str, np.ndarray]:
    """Return an episode without the keys that the store fills in itself."""
    return {key: np.array(value) for key, value in store.episode(index).items() if key not in AUTOMATIC}


def test_nan_is_refused_when_it_is_recorded(tmp_path):
    path = demonstrations(tmp_path / "demos")
    with EpisodeStore.open(path) as store:
        episode = content(store, 0)
        episode["action"][3, 1] = np.nan
        with pytest.raises(ValueError, match=r"action.*3"):
            store.append(episode, {"seed": 2, "success": True})
    assert len(EpisodeStore.open(path)) == 2


def test_nan_in_demonstrations_that_others_wrote_is_refused(capsys, tmp_path):
    path = demonstrations(tmp_path / "demos")
    zarr.open_group(path, mode="r+")["data/action"][3, 1] = np.nan
    line = refused(capsys, "train-policy", "encoder=none", "demos=demos", "demonstrations=2", "run=run")
    assert "action" in line and "nan" in line.lower()


def test_a_folder_without_videos_and_one_that_is_not_there(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, "pretrain", "data=empty", "run=run")
    assert "nowhere" in refused(capsys, "pretrain", "data=nowhere", "run=other")


def test_full_disk_is_one_line_and_the_store_stays_whole(capsys, tmp_path, monkeypatch):
    import errno

    from toto_robot.data import flat_store

    path = demonstrations(tmp_path / "demos")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = EpisodeStore.open(path)
    episode = content(store, 0)
    with monkeypatch.context() as patched:
        patched.setattr(flat_store.os, "replace", full)
        with pytest.raises(OSError, match=r"(?i)space"):
            store.append(episode, {"seed": 2, "success": True})
    store.close()
    assert len(EpisodeStore.open(path)) == 2

    monkeypatch.setattr("toto_robot.run_folder.os.replace", full)
    line = refused(capsys, "doctor", "run=run")
    assert "space" in line.lower()
    assert not Path("run").exists() or not list(Path("run").iterdir())


def test_no_gl_names_the_packages(tmp_path):
    """A fresh process with a GL library that cannot load: the environment says what to install."""
    import os
    import subprocess
    import sys

    code = (
        "import ctypes.util\n"
        "ctypes.util.find_library = lambda name: None\n"
        "import ctypes; real = ctypes.CDLL\n"
        "def missing(name, *a, **k):\n"
        "    if name and any(part in str(name) for part in ('EGL', 'OSMesa', 'libGL')):\n"
        "        raise OSError(f'{name}: cannot open shared object file')\n"
        "    return real(name, *a, **k)\n"
        "ctypes.CDLL = missing\n"
        "import gymnasium\n"
        "env = gymnasium.make('toto_robot/FrankaPick-v0', obs_mode='pixels')\n"
        "env.reset(seed=0)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode != 0
    assert "apt-get install" in done.stderr and "libegl1" in done.stderr


def test_nothing_is_left_behind_by_a_refused_command(capsys, tmp_path):
    demonstrations(tmp_path / "demos", env_id="somebody/Else-v3")
    refused(capsys, "train-policy", "encoder=none", "demos=demos", "demonstrations=2", "run=run")
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left <= {"config.yaml", "provenance.json", ".lock"}
    shutil.rmtree(tmp_path / "run")
