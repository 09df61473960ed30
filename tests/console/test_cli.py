"""Does the console compose, refuse and exit as documented?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toto_robot import cli


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toto_robot", *arguments], capture_output=True, text=True, cwd=cwd)


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_loads_composes_and_explains_every_key(name, capsys):
    assert exit_code(name, "--help") == 0
    shown = capsys.readouterr().out
    _, schema = cli._load(name)
    comments = cli._comments(schema)
    for key, _ in cli._flatten(cli._defaults(name)):
        assert f"  {key}=" in shown
        assert comments.get(key), f"{name}: key {key} has no comment in its dataclass"


def test_examples_in_the_table_compose():
    for name, command in cli.COMMANDS.items():
        _, schema = cli._load(name)
        for example in command.examples:
            words = example.removeprefix(name).split()
            words = cli._named(name, schema, [word for word in words if not word.startswith(("-", "run="))])
            if "--multirun" not in example:
                cli._compose(name, schema, words)
            cli._check_overrides(name, schema, words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pretrian"], 2, "did you mean 'pretrain'"),
        (["pretrain", "stepps=3"], 2, "did you mean 'steps'"),
        (["pretrain", "steps=many"], 2, "could not be converted to Integer"),
        (["pretrain", "steps"], 2, "expected key=value"),
        (["pretrain", "--multirum"], 2, "did you mean '--multirun'"),
        (["train-policy", "encoder=tottoo"], 2, "random_toto"),
        (["train-policy", "bc.stepz=1"], 2, "did you mean 'bc.steps'"),
        (["evaluate", "policy=nowhere"], 1, "nowhere"),
        (["deploy", "--dry-rum", "policy=nowhere"], 2, "did you mean '--dry-run'"),
        (["train-policy", "--dry-run"], 2, "unknown option '--dry-run'"),
    ],
)
def test_bad_input_gets_one_line_and_its_exit_code(arguments, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(*arguments) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


@pytest.mark.parametrize("words", [["--dry-run", "policy=a"], ["policy=a", "--dry-run"], ["policy=a", "dry_run=true"]])
def test_a_command_has_options_of_its_own(words, capsys):
    assert exit_code("deploy", *words, "--config") == 0
    assert "dry_run: true" in capsys.readouterr().out
    assert exit_code("deploy", "policy=a", "--config") == 0
    assert "dry_run: false" in capsys.readouterr().out


def test_lists_need_no_brackets():
    def composed(*words: str):
        return cli._compose("pretrain", cli._load("pretrain")[1], words)

    assert composed("data=videos").data == ("videos",)
    assert composed("data='my videos, and more'").data == ("my videos, and more",)
    mixed = composed("data=imagenet:/x,ego4d:/y/z", "weights=20,10.5", "strides=4", "limit_files=7")
    assert mixed.data == ("imagenet:/x", "ego4d:/y/z")
    assert (mixed.weights, mixed.strides, mixed.limit_files) == ((20.0, 10.5), (4,), (7,))
    assert composed("data=[a,b]", "strides=[1,2]").data == ("a", "b")
    assert composed("data=null").data is None
    with pytest.raises(cli.UsageError, match="four"):
        composed("strides=four")


def test_same_run_folder_refuses_other_settings(tmp_path, capsys):
    folder = f"run={tmp_path / 'run'}"
    _, schema = cli._load("collect")
    cli._open_run("collect", schema, ["episodes=3"], tmp_path / "run")
    assert exit_code("collect", "episodes=3", "image_size=32", folder) == 1
    error = capsys.readouterr().err
    assert "image_size" in error and "run=<folder>" in error


def test_a_run_of_a_version_that_did_not_know_a_key_goes_on_with_its_default(tmp_path):
    _, schema = cli._load("collect")
    folder = tmp_path / "run"
    cli._open_run("collect", schema, ["episodes=3"], folder)
    recorded = folder / "config.yaml"
    lines = recorded.read_text().splitlines()
    recorded.write_text("".join(f"{line}\n" for line in lines if not line.startswith("keep_failures")))
    with pytest.raises(ValueError, match="keep_failures: False -> True"):
        cli._open_run("collect", schema, ["episodes=3", "keep_failures=true"], folder)
    cli._open_run("collect", schema, ["episodes=3"], folder)
    assert recorded.read_text().splitlines() == lines


def test_the_same_command_line_has_the_same_run_folder():
    first = cli.default_run_dir("pretrain", ["steps=3", "model=tiny"])
    assert first == cli.default_run_dir("pretrain", ["model=tiny", "steps=3"])
    assert first != cli.default_run_dir("pretrain", ["model=tiny", "steps=4"])


def test_doctor_runs_and_a_sweep_makes_one_folder_a_job(tmp_path):
    done = run("doctor", "--multirun", "minimum_free_gib=0.1,0.2", "run=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for job, value in (("0", 0.1), ("1", 0.2)):
        assert f"minimum_free_gib: {value}" in (tmp_path / "sweep" / job / "config.yaml").read_text()
        findings = json.loads((tmp_path / "sweep" / job / "doctor.json").read_text())
        assert {finding["name"] for finding in findings} >= {"torch", "mujoco", "rendering", "disk"}


def test_no_gl_library_is_named_with_its_package(tmp_path, monkeypatch):
    from toto_robot import doctor

    monkeypatch.setattr(doctor, "_RENDER_PROBE", "raise OSError('cannot load libEGL.so.1')")
    findings = doctor._rendering(30.0)
    assert not findings[-1].ok
    assert "libegl1" in findings[-1].mend


@pytest.mark.parametrize(("threads", "expected"), [("1", 1), (None, len(os.sched_getaffinity(0)))])
def test_all_cores_unless_a_user_shares_them_out(threads, expected):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    code = "from toto_robot import cli; cli._set_threads(); import torch; print(torch.get_num_threads())"
    shared = environment if threads is None else {**environment, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=shared)
    assert int(done.stdout) == expected


def test_interruption_exits_130(monkeypatch, capsys):
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert exit_code("doctor") == 130
    assert "continues" in capsys.readouterr().err


def test_entries_with_an_equals_sign_need_no_quotes():
    """Hydra keeps = for itself: `encoders=[toto=<folder>@layer=3,mae]` would be refused as it stands."""
    import dataclasses

    from toto_robot.cli import _bracketed

    schema = dataclasses.make_dataclass("Schema", [("encoders", tuple[str, ...]), ("name", str)])
    words = ["encoders=[toto=out/x@layer=3, mae]", "encoders=toto=out/x,mae", "encoders=['a=b',c]", "name=[a=b]"]
    assert _bracketed(schema, words) == [
        "encoders=['toto=out/x@layer=3',mae]", "encoders=['toto=out/x',mae]", "encoders=['a=b',c]", "name=[a=b]",
    ]  # fmt: skip
