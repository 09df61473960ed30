"""Does the whole command train on a mixture, sampled by its weights and measured by source?"""

import numpy as np
import pytest
from PIL import Image

from tests.pretrain.toy_videos import write_plain
from toto_robot.data.frames import FrameStore
from toto_robot.pretrain.clips import divide, weights_of
from toto_robot.pretrain.command import pretrain
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.tokenizer import TrainTokenizerConfig
from toto_robot.run_folder import read_json, read_metrics

SHORT = {
    "steps": 2, "batch_size": 4, "val_samples": 8, "tokenizer_steps": 6, "val_fraction": 0.3, "window_frames": 4,
    "pictures_every": 0,
}  # fmt: skip


def write_photos(folder, count=40):
    """Write `count` small pictures that differ."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return the folder of one short run on videos and pictures."""
    folder = tmp_path_factory.mktemp("mixed")
    data = (str(write_plain(folder / "clips", 3, 24)), str(write_photos(folder / "photos")))
    pretrain(PretrainConfig(data=data, weights=(1, 3), strides=(1,), **SHORT), folder / "run")
    return folder


def test_every_source_is_measured(mixed):
    found = read_json(mixed / "run" / "per_position.json")
    assert found["sources"].keys() == {"clips", "photos"}
    for one in (found, *found["sources"].values()):
        assert (len(one["per_position"]), len(one["per_frame"])) == (256, 4)
    summary = read_json(mixed / "run" / "summary.json")
    losses = summary["val_loss_by_source"]
    assert summary["val_loss"] == pytest.approx(0.25 * losses["clips"] + 0.75 * losses["photos"], abs=1e-3)
    lines = [line for line in read_metrics(mixed / "run") if "val/loss/clips" in line]
    assert lines and all(line["val/loss/photos"] > 0 for line in lines)
    assert (mixed / "run" / "continuation.png").exists()


def test_the_frames_know_their_source_and_the_card_names_all(mixed):
    records = FrameStore.open(mixed / "run" / "frames").records
    assert {(record["source"], record["kind"]) for record in records} == {("clips", "video"), ("photos", "images")}
    card = (mixed / "run" / "pretrained_model" / "README.md").read_text()
    assert "| data | data clips, data photos |" in card
    assert "43 clips, 112 frames, 0.00 hours" in card


def records_of(*names):
    return [{"source": name, "group": f"{name}{index}", "kind": "video"} for name in names for index in range(4)]


def division_of(*names):
    return divide([20 * (index + 1) for index in range(4 * len(names))], records_of(*names), 0, 0)


def test_weights_belong_to_the_paths_in_their_order(tmp_path):
    b, a = str(tmp_path / "b"), str(tmp_path / "a")
    assert weights_of(division_of("a", "b"), (b, a), (30, 70)) == {"b": 30, "a": 70}
    assert weights_of(division_of("a", "b"), None, (30, 70)) == {"a": 30, "b": 70}, "those of a store in its order"
    assert weights_of(division_of("a", "b"), None, None) is None
    assert weights_of(division_of("ego4d", "imagenet"), None, None) == {"ego4d": 10, "imagenet": 20}, "the paper's"
    with pytest.raises(ValueError, match=r"a weight for each of a, b, got \[1\]"):
        weights_of(division_of("a", "b"), None, (1,))
    with pytest.raises(ValueError, match=r"no clip of b can be used: rejected\.json"):
        weights_of(division_of("a"), (b, a), None)


@pytest.mark.parametrize("config", [PretrainConfig, TrainTokenizerConfig])
def test_settings_that_do_not_fit_are_refused(config):
    for settings, words in (
        ({"data": ("a", "b"), "weights": (1,)}, "a weight for each of the 2 in data"),
        ({"data": ("a", "b"), "limit_files": (1, 2, 3)}, "limit_files as one number or one for each"),
        ({"frames": "f", "limit_files": (1,)}, "limit_files as one number or one for each"),
        ({"data": ("a", "b"), "limit_frames": 100}, "limit several with limit_files"),
        ({"data": ()}, "at least one path"),
        ({"data": "videos"}, "a tuple of at least one path, got 'videos'"),
    ):
        with pytest.raises(ValueError, match=words):
            config(**settings)
    assert config(data=("a", "b"), weights=(1, 2), limit_files=(5,)).deciding()["weights"] == [1, 2]
