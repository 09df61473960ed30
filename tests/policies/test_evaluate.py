"""Is an evaluation a function of bundle and seeds: on any number of processes, interrupted, refusing what misleads?"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from policies.bundle import bundle_hash, load_policy
from policies.environment import make_environment
from policies.evaluate import EvaluationConfig, Evaluator, read_outcomes, summary_line
from policies.evaluate_command import EvaluateConfig, evaluate
from policies.latency import read_latency
from policies.rollout import Job, environment_settings, roll_out, worker
from policies.train import train_bundle
from policies.videos import write_outcomes, write_rollout
from tests.policies.small import make_small
from toto_robot.data.video import probe
from toto_robot.run_folder import read_json

pytestmark = pytest.mark.render
CONFIG = EvaluationConfig(episodes=3, workers=1, envs_per_worker=2, videos=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, demos, toto):
    folder = tmp_path_factory.mktemp("evaluated")
    return train_bundle(make_small(demos, toto, folder), folder / "run")


def outcome(record):
    """Everything but where and how fast an episode ran."""
    keys = ("seed", "success", "steps", "ended", "reward")
    return {key: round(record[key], 3) if key == "reward" else record[key] for key in keys}


def outcomes(run_dir):
    records = [json.loads(line) for line in (run_dir / "episodes.jsonl").read_text().splitlines()]
    return sorted(map(outcome, records), key=lambda record: record["seed"])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, bundle):
    """One evaluation by the command, on two processes, with videos."""
    run_dir = tmp_path_factory.mktemp("run")
    config = EvaluateConfig(policy=(str(bundle),), episodes=3, workers=2, envs_per_worker=2, videos=1)
    assert evaluate(config, run_dir) == 0
    return run_dir


def test_evaluation_json_says_what_scripts_rely_on(evaluated):
    result = read_json(evaluated / "evaluation.json")
    assert result["env"] == "toto_robot/FrankaPick-v0" and result["preset"] == "real"
    assert result["seeds"] == [1_000_000, 1_000_002] and result["episodes"] == 3
    assert result["rate"] == result["successes"] / 3 and len(result["wilson95"]) == 2
    assert result["encoder"]["name"] == "toto" and len(result["hashes"]["policy"]) == 64
    assert sum(row["episodes"] for row in result["by_environment"]) == 3
    assert {row["worker"] for row in result["by_environment"]} == {0, 1}
    assert sum(result["ended"].values()) == 3
    assert all(result["ms_per_step"][part] > 0 for part in ("sim", "encode", "head"))
    gained = result["return"]
    assert gained["q25"] <= gained["median"] <= gained["q75"] and result["latency_s"] == {}
    line = summary_line({**result, "successes": 0, "steps_to_success": {}})
    assert "0/3 = 0% [0%, 56%]" in line and "no success" in line


def test_failures_are_on_video_with_cameras_side_by_side(evaluated):
    successes = read_json(evaluated / "evaluation.json")["successes"]
    videos = list((evaluated / "videos").glob("*.mp4"))
    assert len(videos) == (successes > 0) + (successes < 3)
    assert (probe(videos[0]).width, probe(videos[0]).height) == (512, 256)
    assert (evaluated / "rollouts.png").exists()


def test_a_success_and_a_failure_are_seen_side_by_side(tmp_path):
    lengths = {True: 3, False: 8}
    for success, steps in lengths.items():
        frames = [{c: np.full((32, 32, 3), 20 * i, np.uint8) for c in ("front", "wrist")} for i in range(steps)]
        write_rollout(tmp_path, int(success), success, frames)
    write_outcomes(tmp_path / "both.mp4", tmp_path / "success_1.mp4", tmp_path / "failure_0.mp4")
    found = probe(tmp_path / "both.mp4")
    assert (found.width, found.height) == (1024, 264) and found.duration_s == pytest.approx(8 / 20, abs=0.06)


def test_an_interrupted_evaluation_continues_on_other_processes(bundle, evaluated, tmp_path):
    """A kill in the middle of the second line: the first result is kept, the others are run again, in one process."""
    lines = (evaluated / "episodes.jsonl").read_text().splitlines()
    (tmp_path / "episodes.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
    with Evaluator(CONFIG) as evaluator:
        result = evaluator.evaluate(bundle, tmp_path)
        assert (tmp_path / "episodes.jsonl").read_text().splitlines()[0] == lines[0]
        assert outcomes(tmp_path) == outcomes(evaluated)
        assert evaluator.evaluate(bundle, tmp_path) == result
    assert result["successes"] == read_json(evaluated / "evaluation.json")["successes"]


def test_the_lockstep_is_what_one_environment_alone_does(bundle):
    """The same seed by hand: reset, act, step, until success or the horizon."""
    policy = load_policy(bundle)
    settings = environment_settings(policy)
    job = Job(bundle=str(bundle), seeds=(1_000_000, 1_000_001, 1_000_002), slots=2, worker=0)
    environments = [make_environment(**settings) for _ in range(2)]
    results = {result.seed: result for result in roll_out(policy, environments, job)}
    assert sorted(results) == list(job.seeds)
    alone = load_policy(bundle)
    environment = make_environment(**settings)
    observation, _ = environment.reset(seed=1_000_002)
    reward, steps, ended = 0.0, 0, False
    while not ended:
        observation, r, terminated, truncated, info = environment.step(alone.act(observation))
        reward, steps = reward + float(r), steps + 1
        ended = terminated or truncated or info["success"]
    assert results[1_000_002].steps == steps
    assert results[1_000_002].reward == pytest.approx(reward, rel=1e-2)


class Expert:
    """Acts as the scripted expert does, through the interface of a policy: the rollout must find the success."""

    def __init__(self, environments, task):
        self.task, self.cameras, self._environments = task, (), environments
        self.time = type("Time", (), {"encode_s": 0.0, "head_s": 0.0})()

    def reset(self, rows=None, batch=None, seeds=None):
        pass

    def act(self, observation):
        return np.stack([e.unwrapped.expert(seed=0).act().clean for e in self._environments])


def test_an_episode_ends_with_success(bundle):
    policy = load_policy(bundle)
    environments = [make_environment(**environment_settings(policy)) for _ in range(2)]
    job = Job(bundle="", seeds=(1_000_000, 1_000_001, 1_000_002), slots=2, worker=5)
    results = list(roll_out(Expert(environments, policy.task), environments, job))
    assert [result.success for result in results] == [True] * 3
    assert all(result.ended == "success" and 20 < result.steps < 120 and result.worker == 5 for result in results)
    assert {result.slot for result in results} == {0, 1}


def test_demonstrated_seeds_are_refused(bundle, tmp_path):
    with (
        pytest.raises(ValueError, match=r"overlap the demonstrations' \(0 to 2\).*first_seed=3"),
        Evaluator(replace(CONFIG, first_seed=2)) as evaluator,
    ):
        evaluator.evaluate(bundle, tmp_path)


def test_results_of_another_policy_are_not_mixed_in(bundle, tmp_path):
    (tmp_path / "episodes.jsonl").write_text(
        json.dumps({"seed": 1_000_000, "success": True, "policy": "f" * 64}) + "\n"
    )
    with pytest.raises(ValueError, match="results of another policy"), Evaluator(CONFIG) as evaluator:
        evaluator.evaluate(bundle, tmp_path)


def test_episodes_of_other_conditions_are_not_mixed_in(bundle, evaluated, tmp_path):
    shutil.copy(evaluated / "episodes.jsonl", tmp_path)
    late = replace(CONFIG, latency_s="0.1")
    with Evaluator(late) as evaluator:
        with pytest.raises(ValueError, match=r"holds episodes of the plain task, asked for was actions 0\.1 s late"):
            evaluator.evaluate(bundle, tmp_path)
        result = evaluator.evaluate(bundle, tmp_path / "late", replace(late, episodes=1))
        assert result["conditions"] == "actions 0.1 s late" and "under actions 0.1 s late" in summary_line(result)
        with pytest.raises(ValueError, match=r"actions 0\.1 s late, asked for was the plain task"):
            evaluator.evaluate(bundle, tmp_path / "late", CONFIG)


def test_conditions_tell_measured_delays_apart(tmp_path):
    told = []
    for samples in ([0.05, 0.1, 0.2], [0.05, 0.1, 0.3], [0.05, 0.1, 0.2]):
        (tmp_path / "delays.json").write_text(json.dumps(samples))  # the same file, measured again
        config = EvaluationConfig(
            latency_s=str(tmp_path / "delays.json"), randomize=("lights",), randomize_strength=0.5
        )
        told.append(config.conditions)
    assert told[0] == told[2] != told[1] and told[0].startswith("lights 0.5, actions 0.1 s late (median of 3, ")
    assert (
        EvaluationConfig().conditions == "" and EvaluationConfig(randomize=("all",)).conditions == "every axis varied"
    )


def test_results_are_read_while_another_process_writes_them(bundle, evaluated, tmp_path):
    whole = (evaluated / "episodes.jsonl").read_text()
    (tmp_path / "episodes.jsonl").write_text(whole[:-9])  # the last line is on its way to the disk
    assert len(read_outcomes(tmp_path, bundle_hash(bundle), EvaluationConfig())) == 2
    assert (tmp_path / "episodes.jsonl").read_text() == whole[:-9]


def changed(bundle, folder, before, after):
    """A copy of a bundle with other text in its description."""
    from policies.bundle import _hash_files

    shutil.copytree(bundle, folder)
    text = (folder / "policy.json").read_text()
    assert before in text
    (folder / "policy.json").write_text(text.replace(before, after))
    (folder / "hashes.json").write_text(json.dumps(_hash_files(folder)))
    return folder


def test_another_scene_is_refused_also_after_the_right_one(bundle, tmp_path):
    scene = read_json(bundle / "policy.json")["task"]["scene_hash"]
    other = changed(bundle, tmp_path / "bundle", scene, "0123456789abcdef")
    jobs = [Job(bundle=str(each), seeds=(1,), slots=1, worker=0) for each in (bundle, other)]
    results = worker(iter(jobs))
    assert next(results).seed == 1
    with pytest.raises(ValueError, match="expected scene_hash '0123456789abcdef'"):
        next(results)


def test_policies_of_different_tasks_are_not_compared(bundle, tmp_path):
    other = changed(bundle, tmp_path / "other", '"preset": "real"', '"preset": "pixmc"')
    with pytest.raises(ValueError, match=r"need one task: .* has preset 'real', .*other 'pixmc'"):
        evaluate(EvaluateConfig(policy=(str(bundle), str(other)), episodes=1, videos=0), tmp_path)


@pytest.mark.parametrize("values", [{"episodes": 0}, {"envs_per_worker": 0}, {"first_seed": -1}, {"videos": -1}])
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        EvaluationConfig(**values)


def test_randomised_evaluation_runs_the_same_policy_in_other_looks(bundle, evaluated, tmp_path):
    config = EvaluateConfig(policy=(str(bundle),), episodes=3, workers=1, videos=0, randomize=("all",))
    assert evaluate(config, tmp_path) == 0
    result = read_json(tmp_path / "evaluation.json")
    assert result["randomization"] == "all" and result["episodes"] == 3
    assert read_json(evaluated / "evaluation.json")["randomization"] is None
    with pytest.raises(ValueError, match=r"randomize_strength in 0\.\.3"):
        evaluate(replace(config, randomize_strength=7.0), tmp_path / "other")


def test_a_sweep_compares_every_axis_with_the_plain_task_on_the_same_starts(bundle, evaluated, tmp_path):
    shutil.copy(evaluated / "episodes.jsonl", tmp_path)  # the plain episodes are done
    config = EvaluateConfig(
        policy=(str(bundle),), episodes=3, workers=1, videos=0, sweep=("latency",), sweep_strengths=(0.5,)
    )
    assert evaluate(config, tmp_path) == 0
    plain, late = read_json(tmp_path / "robustness.json")
    assert (plain["axis"], late["axis"], late["strength"]) == ("plain", "latency", 0.5)
    assert plain["difference"][0] == 0 and len(late["wilson95"]) == 2
    assert read_json(tmp_path / "sweep" / "latency-0.5" / "evaluation.json")["randomization"] == {"latency": 0.5}
    assert (tmp_path / "robustness.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="one axis at a time"):
        replace(config, randomize=("lights",))


def test_several_policies_run_on_the_same_starts_and_are_compared(bundle, evaluated, tmp_path, capsys):
    other = shutil.copytree(bundle, tmp_path / "other")
    for name in ("0-run", "1-other"):
        (tmp_path / name).mkdir()
        shutil.copy(evaluated / "episodes.jsonl", tmp_path / name)
    assert evaluate(EvaluateConfig(policy=(str(bundle), str(other)), episodes=3, videos=0), tmp_path) == 0
    (pair,) = read_json(tmp_path / "paired.json")
    assert pair["both"] + pair["neither"] == 3 and pair["difference"][0] == 0 and pair["mcnemar_p"] == 1
    assert "no difference is shown" in capsys.readouterr().out


def test_the_latency_of_a_deployment_is_that_from_picture_to_command(tmp_path):
    deployed = {"env": "x", "policy_ms": {"p10_ms": 4.0, "p50_ms": 5.0, "p99_ms": 9.0}}
    (tmp_path / "deploy.json").write_text(json.dumps(deployed))
    assert np.median(read_latency(str(tmp_path))) == pytest.approx(0.005)  # without figures of the control process
    control = {"period_ms": {"p50": 1.0}, "capture_to_command_ms": {"n": 80, "p50": 41.0, "p99": 77.0, "max": 90.0}}
    (tmp_path / "control.json").write_text(json.dumps(control))
    for given in (tmp_path, tmp_path / "deploy.json", tmp_path / "control.json"):
        delays = read_latency(str(given))
        assert np.median(delays) == pytest.approx(0.041) and max(delays) == pytest.approx(0.077, rel=0.05)
    (tmp_path / "control.json").write_text(json.dumps({"capture_to_command_ms": {"n": 0}}))
    assert np.median(read_latency(str(tmp_path))) == pytest.approx(0.005)
    with pytest.raises(ValueError, match=r"no command followed a picture; give deploy\.json"):
        read_latency(str(tmp_path / "control.json"))


def test_the_measured_latency_of_a_robot_is_read(tmp_path):
    assert read_latency("0.08") == (0.08,)
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"p50_ms": 40, "p99_ms": 120, "n": 900}))
    delays = read_latency(str(path))
    assert np.median(delays) == pytest.approx(0.04, rel=1e-6) and max(delays) == pytest.approx(0.12, rel=0.05)
    path.write_text(json.dumps([0.01, 0.03]))
    assert EvaluationConfig(latency_s=str(path)).environment == {"latency_s": (0.01, 0.03)}
    path.write_text(json.dumps({"samples_ms": [10, 30]}))
    assert read_latency(str(path)) == pytest.approx((0.01, 0.03))
    path.write_text(json.dumps({"mean": 3}))
    with pytest.raises(ValueError, match="expected a list, samples_s, or p50_s and p99_s"):
        read_latency(str(path))
    path.write_text(json.dumps({"p50": 40, "p99": 120}))
    with pytest.raises(ValueError, match="a unit is needed"):
        read_latency(str(path))
    for wrong in ("80", "latency.txt", "nan"):
        with pytest.raises(ValueError, match=r"latenc"):
            read_latency(wrong)
