"""Does `data check` find and name what is wrong with a token store, and does `data info` say what is in it?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from toto_robot.data.check import Options, check
from toto_robot.data.commands import InfoConfig, info
from toto_robot.data.compress import compress_store
from toto_robot.data.finding import Finding
from toto_robot.data.token_shards import create_store, seal_store, write_shard
from toto_robot.data.tokens import TOKENS, TokenSpec, TokenStore

SPEC = TokenSpec(grid=(2, 2), vocab=8, image_px=16, tokenizer="abc", precision="fp32")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two shards of two clips of 6 frames: a, b | c, d."""
    path = tmp_path / "tokens"
    create_store(path, SPEC, json.dumps({"settings": SPEC.attributes(), "units": [["a", "b"], ["c", "d"]]}), {})
    rng = np.random.default_rng(0)
    for unit, names in enumerate(("ab", "cd")):
        clips = [(rng.integers(0, 8, (6, 4)), {"name": name, "group": name, "fps": 30.0}) for name in names]
        write_shard(path, unit, SPEC, clips, [{"source": f"bad_{unit}", "reason": "is broken"}], {})
    seal_store(path, SPEC, 2)
    return path


def findings(path: Path) -> list[Finding]:
    return list(check(path, Options(progress=False)))


def token_file(store: Path, unit: int) -> Path:
    (file,) = (store / "units" / f"{unit:06d}" / TOKENS).glob("c.*")
    return file


def flip(file: Path, row: int, by: int, first_row_at: int = 20) -> None:
    """Change a byte of token (row, 1); rows lie behind the index of 20 bytes, 8 bytes each."""
    content = bytearray(file.read_bytes())
    content[first_row_at + 8 * row + 2] ^= by
    file.write_bytes(content)


def test_a_whole_store(store: Path) -> None:
    assert findings(store) == []


def test_a_flipped_byte_is_found_and_named(store: Path) -> None:
    """Codes are below 8, so this one stays a valid code."""
    before = TokenStore.open(store).tokens[:]
    flip(token_file(store, 1), 9, by=1)
    after = TokenStore.open(store).tokens[:]
    assert np.argwhere(before != after).tolist() == [[21, 1]] and after.max() < 8, "a byte was flipped, silently"
    (found,) = findings(store)
    assert (found.severity, found.episode, found.key) == ("error", 3, "tokens")
    assert "expected tokens of d with the SHA-256" in found.what and "delete units/000001 and run" in found.what


def test_a_code_that_does_not_exist(store: Path) -> None:
    flip(token_file(store, 1), 2, by=64)
    checksum, vocab = findings(store)
    assert "SHA-256" in checksum.what and checksum.episode == vocab.episode == 2
    assert vocab.step == 2 and "expected tokens below 8, got" in vocab.what


def test_a_damaged_index_a_missing_and_a_short_file(store: Path) -> None:
    flip(token_file(store, 0), 0, by=255, first_row_at=0)
    token_file(store, 1).unlink()
    first, second = findings(store)
    assert "fails its checksum" in first.what and first.key == "units/000000"
    assert "is missing" in second.what and (second.key, second.episode) == ("units/000001", 2)
    with pytest.raises(ValueError, match="is missing"):
        TokenStore.open(store).window(12, 2)


def test_a_missing_shard_and_records_that_do_not_add_up(store: Path) -> None:
    shutil.rmtree(store / "units" / "000000")
    (found,) = findings(store)
    assert "does not exist" in found.what
    lines = (store / "records.jsonl").read_text()
    (store / "records.jsonl").write_text(lines.replace('"frames": 6', '"frames": 7', 1))
    (found,) = findings(store)
    assert "do not add up" in found.what


def test_shards_of_two_jobs(store: Path, tmp_path: Path) -> None:
    """As after copying the wrong folder over."""
    other = TokenSpec(grid=(2, 2), vocab=8, image_px=16, tokenizer="xyz", precision="fp32")
    create_store(tmp_path / "other", other, json.dumps({"settings": other.attributes(), "units": [[], ["c", "d"]]}), {})
    clips = [(np.ones((6, 4), int), {"name": name, "group": name, "fps": 30.0}) for name in "cd"]
    write_shard(tmp_path / "other", 1, other, clips, [], {})
    shutil.rmtree(store / "units" / "000001")
    (tmp_path / "other" / "units" / "000001").rename(store / "units" / "000001")
    origin, records = findings(store)
    assert origin.key == "tokenizer" and "expected abc as in the root, got xyz in units/000001" in origin.what
    assert "expected the 2 records of the store, got others" in records.what


def test_a_folder_that_is_no_store(store: Path) -> None:
    (store / "zarr.json").write_text("{")
    (found,) = findings(store)
    assert found.severity == "error" and str(store) in found.what


def test_info(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info(InfoConfig(path=str(store), json=True), tmp_path / "run") == 0
    about = json.loads(capsys.readouterr().out)
    assert {key: about[key] for key in ("clips", "frames", "tokens", "shards", "left_out", "vocab", "tokenizer")} == {
        "clips": 4, "frames": 24, "tokens": 96, "shards": 2, "left_out": 2, "vocab": 8, "tokenizer": "abc",
    }  # fmt: skip
    assert about["fps"] == {"min": 30.0, "max": 30.0} and about["hours"] == pytest.approx(24 / 30 / 3600, abs=1e-4)


def test_tokens_are_not_compressed(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a store of episodes or frames .* there is a store of tokens"):
        compress_store(store, tmp_path / "small")
