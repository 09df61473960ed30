"""Is what a run writes whole after a kill, and does a resumed log read as one run?"""

import subprocess
import sys

import pytest

from toto_robot.pretrain.stages import Stages
from toto_robot.run_folder import MetricLog, atomic_path, read_json, read_metrics, write_text


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_resumed_log_drops_what_comes_after_the_resumed_step(tmp_path):
    with MetricLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 10})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with MetricLog(tmp_path, resume_step=2) as log:
        log.write(3, {"loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 9.0)]


def test_broken_json_names_the_file(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json"):
        read_json(path)


def test_a_folder_that_another_process_works_in_is_refused_until_that_one_ends(tmp_path):
    holder = "import sys; from pathlib import Path; from toto_robot.run_folder import lock_folder\n"
    holder += "held = lock_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process is writing to"):
            Stages(tmp_path, {})
        other.kill()
        other.wait()
        Stages(tmp_path, {})
    assert read_json(tmp_path / "stages.json") == {"settings": {}, "stages": {}}
