"""Do two workers on a Ray cluster make the same store as one process?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from crash import all_files
from make_video import cut_off, make_video

from toto_robot.data.tokenize import TokenizeConfig, tokenize
from toto_robot.data.tokens import TokenStore
from toto_robot.run_folder import read_json
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae

pytest.importorskip("ray", reason="needs Ray: pip install 'toto-robot[ray]'")
import ray.data


def test_two_ray_workers_make_the_bytes_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(5):
        make_video(tmp_path / "v" / f"{number}.mp4", 12, 32, 32)
    cut_off(make_video(tmp_path / "w.mp4", 30, noise=20), tmp_path / "v" / "cut.mp4", 0.6)
    save_dvae(DVAE(DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=32, decoder_init=8)), tmp_path / "dvae")
    config = TokenizeConfig(
        data=(str(tmp_path / "v"),), tokenizer=str(tmp_path / "dvae"), image_px=16, min_frames=4, unit_frames=12,
        device="cpu", decoders=1,
    )  # fmt: skip
    ray.data.DataContext.get_current().wait_for_min_actors_s = 300  # else the first one up may do it all
    assert tokenize(replace(config, engine="ray", workers=2), tmp_path / "ray") == 0
    assert "5 clips, 60 frames, 240 tokens" in capsys.readouterr().out
    store = TokenStore.open(tmp_path / "ray" / "tokens")
    assert [one["source"] for one in store.skipped] == ["v/cut.mp4"]
    made_by = [read_json(folder / "provenance.json") for folder in sorted((store.path / "units").glob("0*"))]
    assert [one["engine"] for one in made_by] == ["ray"] * len(store.shards)
    assert len({one["worker"] for one in made_by}) == 2, "both workers did something"
    assert tokenize(config, tmp_path / "one") == 0
    ours, theirs = ({name: content for name, content in all_files(tmp_path / where / "tokens").items()
                     if Path(name).name != "provenance.json"} for where in ("ray", "one"))  # fmt: skip
    assert ours == theirs
    assert tokenize(replace(config, engine="ray"), tmp_path / "ray") == 0, "again, with nothing to do"
