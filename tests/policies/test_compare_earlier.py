"""Does a comparison take what a published one has measured, and refuse what was measured otherwise?"""

from dataclasses import replace

import numpy as np
import pytest

from policies.bc import BCConfig
from policies.compare_analysis import analyse
from policies.compare_earlier import read_earlier
from policies.compare_plan import Cell, CompareConfig, cells, design
from policies.compare_record import Run, as_record, check_same_demonstrations, from_record, write_compact
from policies.evaluate import EvaluationConfig
from policies.train import TrainPolicyConfig
from toto_robot.run_folder import read_json

FIRST = 1_000_000


def make_config(episodes=6, **more):
    evaluation = EvaluationConfig(episodes=episodes)
    return CompareConfig(
        **{
            "encoders": ("toto", "none"), "demonstrations": (20,), "seeds": 2,
            "train": TrainPolicyConfig(evaluation=evaluation), **more,
        }
    )  # fmt: skip


def make_runs(config, **more):
    random = np.random.default_rng(0)
    episodes = config.train.evaluation.episodes
    return [
        Run(
            env=cell.env, encoder=cell.entry.label, demonstrations=cell.demonstrations, seed=cell.seed, test=test,
            records=[{"success": bool(random.random() < 0.6), "steps": int(random.integers(99)),
                      "reward": random.random() * 100} for _ in range(episodes)],
            first_seed=config.train.evaluation.first_seed, scene="s" * 64, **more,
        )
        for cell in cells(config) for test in config.tests
    ]  # fmt: skip


def publish(path, config, runs):
    encoders = [entry.label for entry in config.entries]
    analysed = analyse(runs, encoders=encoders, reference=encoders[0], targets=(0.5,))
    result = {
        "design": design(config), "machine": {"processor": "p", "cores": 2}, "commit": "abc", "date": "2026-01-02",
        "encoders": {label: {"fingerprint": f"of {label}"} for label in encoders}, **analysed,
    }  # fmt: skip
    write_compact(path, result)
    return result


def test_a_record_keeps_every_start_and_the_file_is_short(tmp_path):
    config = make_config(episodes=50)
    runs = make_runs(config, curve=((10, 0.1), (20, 1 / 3)), env_steps=20, failed="why", layer="3", parent="toto")
    assert [from_record(as_record(run)) for run in runs] == runs
    publish(tmp_path / "c.json", config, runs)
    assert [from_record(record) for record in read_json(tmp_path / "c.json")["runs"]] == runs
    text = (tmp_path / "c.json").read_text()
    assert len(text.splitlines()) < 400 and '"curve": {' in text


def test_published_policies_are_used_as_if_they_were_run_here(tmp_path):
    config = make_config()
    runs = make_runs(config)
    result = publish(tmp_path / "c.json", config, runs)
    grown = make_config(seeds=3, encoders=("toto", "none", "mae"), earlier=(str(tmp_path / "c.json"),))
    earlier = read_earlier(grown)
    assert list(earlier.runs.values()) == runs
    assert earlier.sources == (
        {"file": "c.json", "commit": "abc", "date": "2026-01-02", "machine": {"processor": "p", "cores": 2},
         "policies": 4},
    )  # fmt: skip
    left = [(cell.entry.label, cell.seed) for cell in cells(grown) if not earlier.has(cell, grown)]
    assert left == [("mae", 0), ("mae", 1), ("toto", 2), ("none", 2), ("mae", 2)]
    again = analyse(list(earlier.runs.values()), encoders=["toto", "none"], reference="toto", targets=(0.5,))
    assert again["pairs"] == result["pairs"] and again["cells"] == result["cells"]
    assert earlier.whole(make_config(earlier=grown.earlier)) == result["encoders"] and earlier.whole(grown) == {}
    tasks = ("franka_pick", "kuka_pick")
    earlier.check_encoders({"toto": {"fingerprint": "of toto"}, "mae": {"fingerprint": "new"}}, tasks)
    with pytest.raises(ValueError, match=r"encoders.toto.fingerprint differs \(of toto -> other, franka_pick\)"):
        earlier.check_encoders({"toto": {"fingerprint": "other"}}, tasks)
    on_one = {"toto": {"fingerprint": "of toto"}, "toto on kuka_pick": {"fingerprint": "another layer"}}
    with pytest.raises(ValueError, match=r"\(of toto -> another layer, kuka_pick\)"):
        earlier.check_encoders(on_one, tasks)
    earlier.check_scenes([("franka_pick", "s" * 64), ("kuka_pick", "t" * 64)])
    with pytest.raises(ValueError, match="the scene of franka_pick differs"):
        earlier.check_scenes([("franka_pick", "t" * 64)])


def test_demonstrations_that_were_made_otherwise_are_refused(tmp_path):
    config = make_config()
    result = publish(tmp_path / "c.json", config, make_runs(config))
    collected = {"collect": {"noise": [0.1], "seed": 0}}
    write_compact(tmp_path / "c.json", {**result, "stores": {"franka_pick": collected, "kuka_pick": {"content": "f"}}})
    earlier = read_earlier(make_config(earlier=(str(tmp_path / "c.json"),)))
    assert earlier.stores == {"franka_pick": collected}  # of tasks whose policies are taken
    earlier.check_stores({"franka_pick": collected, "franka_cabinet": {"content": "f"}})
    with pytest.raises(ValueError, match=r"franka_pick were made otherwise \(collect.noise: \[0.1\] -> \[0.2\]\)"):
        earlier.check_stores({"franka_pick": {"collect": {"noise": [0.2], "seed": 0}}})
    with pytest.raises(ValueError, match=r"made otherwise \(content: None -> f\)"):
        earlier.check_stores({"franka_pick": {"content": "f"}})


def test_policies_of_other_demonstrations_are_not_counted_together():
    config = make_config()
    runs = make_runs(config, demonstrations_hash="a" * 64, commits=("abc", "def"))
    check_same_demonstrations(runs)
    check_same_demonstrations([*runs, replace(runs[0], demonstrations=50, demonstrations_hash="b" * 64)])
    with pytest.raises(ValueError, match=r"different 20 demonstrations: toto, seed 0: aaaaaaaaaaaa; none, seed 1: bbb"):
        check_same_demonstrations([*runs[:-1], replace(runs[-1], demonstrations_hash="b" * 64)])
    assert [from_record(as_record(run)) for run in runs] == runs


def test_more_starts_are_cut_and_fewer_are_not_enough(tmp_path):
    runs = make_runs(make_config())
    publish(tmp_path / "c.json", make_config(), runs)
    fewer = make_config(episodes=4, earlier=(str(tmp_path / "c.json"),))
    found = read_earlier(fewer).runs
    assert [list(run.records) for run in found.values()] == [list(run.records[:4]) for run in runs]
    assert read_earlier(make_config(episodes=7, earlier=fewer.earlier)).runs == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": TrainPolicyConfig(bc=BCConfig(learning_rate=0.5))}, r"shared.bc.learning_rate: 0.001 -> 0.5"),
        ({"train": TrainPolicyConfig(preset="pixmc")}, r"shared.preset: real -> pixmc"),
        (
            {"train": TrainPolicyConfig(evaluation=EvaluationConfig(first_seed=7))},
            r"shared.evaluation.first_seed: 1000000 -> 7",
        ),
        ({"policy": "dagger"}, r"policy: bc -> dagger"),
        ({"randomize": ("lights",)}, r"demonstration_looks: \[\] -> \['lights'\]"),
        ({"tests": ("lights",), "test_strength": 0.5}, r"test_strength: 1.0 -> 0.5"),
    ],
)
def test_other_settings_are_refused_by_their_key(tmp_path, more, message):
    published = make_config(tests=("plain", "lights"))
    publish(tmp_path / "c.json", published, make_runs(published))
    with pytest.raises(ValueError, match=message):
        read_earlier(make_config(earlier=(str(tmp_path / "c.json"),), **more))


def test_what_changes_no_policy_may_differ_and_new_keys_had_their_default(tmp_path):
    config = make_config()
    publish(tmp_path / "c.json", config, make_runs(config))
    text = (tmp_path / "c.json").read_text()
    assert '"token_dropout": 0.0,' in text
    (tmp_path / "c.json").write_text(text.replace('"token_dropout": 0.0,', ""))
    train = replace(config.train, evaluation=replace(config.train.evaluation, workers=3, videos=5))
    assert len(read_earlier(make_config(train=train, earlier=(str(tmp_path / "c.json"),))).runs) == 4


def test_files_that_say_too_little_are_refused(tmp_path):
    config = make_config(earlier=(str(tmp_path / "c.json"),))
    with pytest.raises(ValueError, match="no file"):
        read_earlier(config)
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no comparison\.json"):
        read_earlier(config)
    result = publish(tmp_path / "c.json", make_config(), make_runs(make_config()))
    write_compact(tmp_path / "c.json", {**result, "runs": [{"env": "franka_pick"}]})
    with pytest.raises(ValueError, match="rates without their starts"):
        read_earlier(config)


def test_a_learner_without_demonstrations_is_found_whatever_their_number():
    cell = Cell("franka_pick", make_config().entries[0], 50, 0, demonstrated=False)
    assert cell.key("plain") == ("franka_pick", "toto", 0, 0, "plain")
