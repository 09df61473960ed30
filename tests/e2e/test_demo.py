"""Does the whole chain run, at toy size, from nothing to a report, and is a second call free?"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOY = (
    "video_episodes=4",
    "tokenizer_steps=12",
    "toto_steps=6",
    "mae_steps=6",
    "demonstrations=[4]",
    "encoders=[toto,none]",
    "episodes=1",
    "envs_per_worker=1",
    "bc.steps=10",
    "run=demo",
)


def demo(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toto_robot", "demo", *TOY, *more], capture_output=True, text=True, cwd=folder
    )


@pytest.mark.e2e
@pytest.mark.render
def test_the_chain_runs_from_nothing_to_a_report(tmp_path):
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary["encoders"]) == {"toto", "none"}
    for row in summary["encoders"].values():
        assert row["episodes"] == 1
        low, high = row["wilson95"]
        assert 0 <= low <= row["rate"] <= high <= 1
    report = (tmp_path / "demo" / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 6  # self-contained: pictures are inside
    assert "was not made" not in report
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", report)  # a picture's letters may spell anything
    assert "http" not in words.replace("http://www.w3.org", "")

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    assert made
    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "done before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made  # nothing was trained or written again
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["encoders"] == summary["encoders"]

    refused = demo(tmp_path, "toto_steps=7")
    assert refused.returncode == 1
    assert "toto_steps" in refused.stderr
