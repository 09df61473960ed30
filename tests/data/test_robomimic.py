"""Is a robomimic export exact there and back, and is somebody else's file read as what it is?"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from recorded import ENV, FEATURES, assert_equal, make_episode, make_store

from toto_robot.data.convert import Options, convert
from toto_robot.data.episodes import EpisodeStore, FeatureSpec
from toto_robot.data.recording import StoreRecording, open_recording
from toto_robot.data.robomimic import RobomimicFile


def export(tmp_path: Path, options: Options | None = None, **store: object) -> tuple[StoreRecording, RobomimicFile]:
    source = StoreRecording(make_store(tmp_path / "store", **store))  # type: ignore[arg-type]
    convert(source, tmp_path / "demos.hdf5", "robomimic", options or Options(), progress=False)
    return source, RobomimicFile(tmp_path / "demos.hdf5")


def test_there_and_back_exactly(tmp_path: Path) -> None:
    source, exported = export(tmp_path)
    assert_equal(source, exported)
    convert(exported, tmp_path / "back", "toto", Options(), progress=False)
    back = open_recording(tmp_path / "back")
    assert_equal(source, back)
    assert back.store.content_hash() == source.store.content_hash()  # type: ignore[attr-defined]


def test_from_one_foreign_format_to_the_other(tmp_path: Path) -> None:
    source, exported = export(tmp_path)
    convert(exported, tmp_path / "lerobot", "lerobot", Options(lossless=True), progress=False)
    convert(open_recording(tmp_path / "lerobot"), tmp_path / "again.hdf5", "robomimic", Options(), progress=False)
    assert_equal(source, open_recording(tmp_path / "again.hdf5"))


def test_the_file_is_what_robomimic_reads(tmp_path: Path) -> None:
    """Names as in robomimic 0.3.0; scripts/check_peer_formats.py opens the same with its own dataset class."""
    source, _ = export(tmp_path)
    with h5py.File(tmp_path / "demos.hdf5") as file:
        assert sorted(file["data"]) == [f"demo_{index}" for index in range(4)]
        assert file["data"].attrs["total"] == sum(source.lengths)
        arguments = json.loads(file["data"].attrs["env_args"])
        assert (arguments["env_name"], arguments["type"]) == ("nowhere/BlockPush-v3", 2)
        for index, episode in enumerate(source.episode(index) for index in range(4)):
            demo = file[f"data/demo_{index}"]
            assert demo.attrs["num_samples"] == len(episode["action"]) and demo.attrs["task"] == "block push"
            assert demo.attrs["seed"] == 1000 + index and bool(demo.attrs["success"]) == (index % 2 == 0)
            for path, key in (("actions", "action"), ("rewards", "next.reward"), ("states", "simulator.state")):
                np.testing.assert_array_equal(demo[path][()], episode[key])
            assert demo["dones"][()].tolist() == [0] * (len(episode["action"]) - 1) + [1]
            images = episode["observation.images.front"]
            np.testing.assert_array_equal(demo["obs/front_image"][()], images)
            np.testing.assert_array_equal(demo["next_obs/front_image"][:-1], images[1:])
            np.testing.assert_array_equal(demo["next_obs/state"][-1], episode["observation.state"][-1])


def test_without_next_obs_the_file_is_smaller(tmp_path: Path) -> None:
    export(tmp_path)
    convert(
        open_recording(tmp_path / "store"), tmp_path / "half.hdf5", "robomimic", Options(next_obs=False), progress=False
    )
    with h5py.File(tmp_path / "half.hdf5") as file:
        assert "next_obs" not in file["data/demo_0"]
    assert (tmp_path / "half.hdf5").stat().st_size < 0.65 * (tmp_path / "demos.hdf5").stat().st_size
    assert_equal(open_recording(tmp_path / "demos.hdf5"), open_recording(tmp_path / "half.hdf5"))


def foreign_file(path: Path, *, rate: bool = True, flipped: bool = False) -> list[dict[str, np.ndarray]]:
    """Write a file as robomimic's extraction from robosuite does, with eleven demonstrations and two masks."""
    episodes = [make_episode(number) for number in range(11)]
    kwargs = {"control_freq": 20} if rate else {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            steps = len(episode["action"])
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>"
            demo["actions"] = episode["action"].astype(np.float64)
            demo["rewards"] = episode["next.reward"].astype(np.float64)
            demo["dones"] = (np.arange(steps) == steps - 1).astype(np.int64)
            demo["states"] = episode["simulator.state"]
            images = episode["observation.images.front"]
            demo["obs/agentview_image"] = images[:, ::-1] if flipped else images
            demo["obs/robot0_eef_pos"] = episode["observation.state"].astype(np.float64)
            demo["next_obs/robot0_eef_pos"] = episode["observation.state"].astype(np.float64)
        file["mask/train"] = np.asarray([f"demo_{number}" for number in (0, 2, 10)], dtype="S")
        file["mask/valid"] = np.asarray(["demo_1"], dtype="S")
    return episodes


def test_somebody_elses_file(tmp_path: Path) -> None:
    episodes = foreign_file(tmp_path / "lift.hdf5")
    foreign = open_recording(tmp_path / "lift.hdf5")
    assert foreign.fps == 20.0 and foreign.env["env_id"] == "Lift" and foreign.env["model_file"] == "<mujoco/>"
    assert "next_obs" in foreign.left_out
    assert foreign.features["observation.images.agentview"] == FeatureSpec("uint8", (32, 48, 3))
    assert foreign.features["next.done"].dtype == "bool"
    assert foreign.meta["mask.train"].tolist() == [number in (0, 2, 10) for number in range(11)]
    for number, episode in enumerate(episodes):  # demo_10 comes last, not after demo_1
        theirs = foreign.episode(number)
        np.testing.assert_array_equal(theirs["action"], episode["action"].astype(np.float64))
        np.testing.assert_array_equal(theirs["observation.images.agentview"], episode["observation.images.front"])
        np.testing.assert_array_equal(theirs["observation.robot0_eef_pos"], episode["observation.state"])
    convert(foreign, tmp_path / "mine", "toto", Options(), progress=False)
    convert(open_recording(tmp_path / "mine"), tmp_path / "again.hdf5", "robomimic", Options(), progress=False)
    with h5py.File(tmp_path / "lift.hdf5") as before, h5py.File(tmp_path / "again.hdf5") as after:
        assert json.loads(after["data"].attrs["env_args"]) == json.loads(before["data"].attrs["env_args"])
        assert after["data/demo_3"].attrs["model_file"] == "<mujoco/>"
        assert sorted(after["mask/train"][()]) == [b"demo_0", b"demo_10", b"demo_2"]
        for path in ("actions", "rewards", "dones", "states", "obs/agentview_image", "obs/robot0_eef_pos"):
            np.testing.assert_array_equal(before[f"data/demo_7/{path}"][()], after[f"data/demo_7/{path}"][()])


def test_pictures_are_turned_on_request(tmp_path: Path) -> None:
    episodes = foreign_file(tmp_path / "raw.hdf5", flipped=True)
    key = "observation.images.agentview"
    turned = open_recording(tmp_path / "raw.hdf5", flip_images=True).episode(4, [key])[key]
    np.testing.assert_array_equal(turned, episodes[4]["observation.images.front"])
    as_is = open_recording(tmp_path / "raw.hdf5").episode(4, [key])[key]
    np.testing.assert_array_equal(as_is[:, ::-1], turned)


def test_errors_name_the_place_and_the_remedy(tmp_path: Path) -> None:
    foreign_file(tmp_path / "silent.hdf5", rate=False)
    with pytest.raises(ValueError, match=r"does not say its control rate .* fps=<Hz>"):
        open_recording(tmp_path / "silent.hdf5")
    assert open_recording(tmp_path / "silent.hdf5", fps=30.0).fps == 30.0
    (tmp_path / "text.hdf5").write_text("no")
    with pytest.raises(ValueError, match=r"expected a robomimic file .* at .*text.hdf5"):
        open_recording(tmp_path / "text.hdf5")
    with h5py.File(tmp_path / "silent.hdf5", "a") as file:
        del file["data/demo_2/actions"], file["data/demo_3/actions"]
        file["data/demo_3/actions"] = np.zeros((2, 2))
    damaged = open_recording(tmp_path / "silent.hdf5", fps=30.0)
    with pytest.raises(ValueError, match=r"/data/demo_2/actions is missing; demo_0 has it"):
        damaged.episode(2)
    with pytest.raises(ValueError, match=r"/data/demo_3/actions: expected shape \(7, 2\), got \(2, 2\)"):
        damaged.episode(3)


def test_two_keys_do_not_share_a_place(tmp_path: Path) -> None:
    features = {"observation.images.front": FEATURES["observation.images.front"],
                "observation.front_image": FeatureSpec("float32", (1,))}  # fmt: skip
    store = EpisodeStore.create(tmp_path / "s", features=features, fps=20.0, env=ENV)
    episode = {key: np.zeros((2, *spec.shape), spec.dtype) for key, spec in features.items()}
    store.append(episode, {"seed": 1})
    with pytest.raises(ValueError, match=r"would both be 'obs/front_image'"):
        convert(StoreRecording(store), tmp_path / "a.hdf5", "robomimic", Options(), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["s"], "something was left behind"
