"""Are the paper's data sets found as they lie on disk, and do they go through to tokens with their names and kinds?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from make_video import make_video
from pictures import make_picture

from toto_robot.data.recipes import RECIPES, paper_weights
from toto_robot.data.sources import find_sources
from toto_robot.data.tokenize import TokenizeConfig, job_sources, tokenize
from toto_robot.data.tokens import TokenStore
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae

# What each download leaves: files that train, and beside them what must not be taken.
LAYOUTS = {
    "imagenet": (
        ["train/n01440764/n01440764_10026.JPEG", "train/n01440764/n01440764_10027.JPEG", "train/n02007558/n1.JPEG"],
        ["val/n01440764/ILSVRC2012_val_00000293.JPEG", "LOC_train_solution.csv", "train/readme.txt"],
    ),
    "imagenet of Kaggle": (
        ["ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG"],
        ["ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", "ILSVRC/Annotations/x.xml"],
    ),
    "imagenet of 21000": (["n00004475/n00004475_6590.JPEG", "n00005787/n00005787_13.JPEG"], ["words.txt"]),
    "kinetics600": (
        ["train/abseiling/0347ZoDXyP0_000095_000105.mp4", "train/zumba/x y_000001_000011.mp4"],
        ["val/abseiling/1_0_10.mp4", "annotations/train.csv"],
    ),
    "kinetics600 of CVDF": (["train/0347ZoDXyP0_000095_000105.mp4"], ["val/1_0_10.mp4", "train/part_0.txt"]),
    "ego4d": (["v2/full_scale/0a1b.mp4", "v2/full_scale/0a1c.mp4"], ["v2/annotations/manifest.csv", "ego4d.json"]),
    "ego4d of 540 px": (["v2/video_540ss/0a1b.mp4"], ["v2/full_scale/0a1b.mp4", "v2/clips/c.mp4"]),
    "ego4d of clips": (["v2/clips/c.mp4"], ["v2/clips/manifest.csv"]),
    "howto100m": (["videos/-0a.mp4", "videos/b.webm", "videos/c.mkv"], ["HowTo100M_v1.csv", "videos/d.mp4.part"]),
}


def lay_out(folder: Path, name: str) -> Path:
    """Make the files of a layout: real ones where they train, empty ones beside."""
    train, beside = LAYOUTS[name]
    for file in train:
        if name.startswith("imagenet"):
            make_picture(folder / file)
        else:
            codec = "libvpx-vp9" if file.endswith(".webm") else "libx264"
            make_video(folder / file, 20, 64, 48, codec=codec)
    for file in beside:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_training_files_are_found(tmp_path: Path, name: str) -> None:
    recipe = name.split(" ")[0]
    folder = tmp_path / "as it lies on disk"
    train, beside = LAYOUTS[name]
    for file in (*train, *beside):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    found = find_sources(f"{recipe}:{folder}")
    assert [source.id for source in found] == [f"{recipe}/{file}" for file in sorted(train)]
    assert {(source.source, source.kind) for source in found} == {(recipe, RECIPES[recipe].kind)}


def test_all_four_become_tokens_in_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    sizes = DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=16, decoder_init=8)
    save_dvae(DVAE(sizes, generator=torch.Generator().manual_seed(0)), tmp_path / "tokenizer")
    for recipe in RECIPES:
        data = lay_out(tmp_path / recipe, recipe)
        (data / LAYOUTS[recipe][0][0]).write_bytes(b"")  # and a broken file
    data = tuple(f"{recipe}:{tmp_path / recipe}" for recipe in RECIPES)
    config = TokenizeConfig(data=data, tokenizer=str(tmp_path / "tokenizer"), image_px=16)
    assert tokenize(config, tmp_path / "run") == 0
    store = TokenStore.open(tmp_path / "run" / "tokens")
    assert Counter((record["source"], record["kind"], record["frames"]) for record in store.records) == {
        ("imagenet", "images", 1): 2, ("kinetics600", "video", 20): 1, ("ego4d", "video", 20): 1,
        ("howto100m", "video", 20): 2,
    }  # fmt: skip
    told = capsys.readouterr().out
    assert all(f"{recipe}/{LAYOUTS[recipe][0][0]}" in told for recipe in RECIPES), "broken files are named"
    few = TokenizeConfig(data=data, tokenizer=config.tokenizer, image_px=16, limit_files=(1, 2, 2, 2))
    assert [source.source for source in job_sources(few)] == [
        "imagenet", "kinetics600", "kinetics600", "ego4d", "ego4d", "howto100m", "howto100m",
    ]  # fmt: skip


def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "k600").mkdir()
    with pytest.raises(
        ValueError, match=r"k600 is not kinetics600 .*expected \.mp4 or .* files in train/\*/ or train/; found nothing$"
    ):
        find_sources(f"kinetics600:{tmp_path / 'k600'}")
    lay_out(tmp_path / "wrong", "kinetics600")
    with pytest.raises(ValueError, match=r"\.jpeg.* files in train/n\[0-9\]\*/ .*; found annotations/, train/, val/$"):
        find_sources(f"imagenet:{tmp_path / 'wrong'}")
    for index in range(9):
        (tmp_path / "many" / f"{index}").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"found 0/, 1/, 2/, 3/, 4/, 5/ and 3 more$"):
        find_sources(f"howto100m:{tmp_path / 'many'}")
    with pytest.raises(ValueError, match=r"no recipe 'imagnet'; recipes are imagenet, kinetics600, ego4d, howto100m"):
        find_sources(f"imagnet:{tmp_path}")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_sources("ego4d:nowhere")


def test_a_folder_may_have_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "take:2" / "v.mp4", 3)
    monkeypatch.chdir(tmp_path)
    assert [source.id for source in find_sources("take:2")] == ["take:2/v.mp4"]


def test_the_papers_mixture() -> None:
    assert paper_weights(list(RECIPES)) == {"imagenet": 20, "kinetics600": 10, "ego4d": 10, "howto100m": 60}
    assert paper_weights(["ego4d", "imagenet"]) == {"ego4d": 10, "imagenet": 20}
    assert paper_weights(["imagenet", "my_videos"]) is None
    assert paper_weights(["imagenet"]) is None
