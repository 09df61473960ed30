"""Does a comparison train the same grid for every encoder, continue, share its work, and refuse what misleads?"""

import shutil
from dataclasses import replace

import pytest
import torch

from policies import evaluate as evaluation
from policies import train as training
from policies.compare import compare
from policies.compare_layers import choose_layers, costed
from policies.compare_plan import CompareConfig, cells, condition, demonstrations, parse_entry
from policies.curve import read_curve
from policies.dagger import DAggerConfig
from policies.encoder import EncoderConfig
from policies.evaluate import EvaluationConfig
from policies.failure import TrainingFailed
from policies.probe import open_layers
from policies.relabel import FEATURE_PREFIX
from policies.train import TrainPolicyConfig
from tests.policies.small import make_small
from toto_robot.data.episodes import EpisodeStore
from toto_robot.models.hub import from_pretrained, save_pretrained
from toto_robot.run_folder import lock_folder, read_json, write_json

ENTRY = "toto={toto}@precision=fp32"


@pytest.fixture
def config(demos, toto, toto_folder, tmp_path):
    small = make_small(demos, toto, tmp_path)
    train = TrainPolicyConfig(
        cache=small.cache, bc=small.bc, evaluation=EvaluationConfig(episodes=2, workers=1, envs_per_worker=2, videos=0)
    )
    return CompareConfig(
        demos=str(demos), encoders=(f"small:{ENTRY.format(toto=toto_folder)}", "none"), demonstrations=(2, 3), seeds=1,
        tests=("plain", "lights+colors"), train=train,
    )  # fmt: skip


@pytest.mark.render
def test_a_grid_is_trained_tested_reported_and_repeats_for_nothing(config, tmp_path, monkeypatch, capsys):
    started, real = [], evaluation.Processes
    monkeypatch.setattr(evaluation, "Processes", lambda *arguments: started.append(1) or real(*arguments))
    run = tmp_path / "run"
    assert compare(config, run) == 0
    assert started == [1]  # all policies share the simulation processes
    result = read_json(run / "comparison.json")
    told = {(r["encoder"], r["demonstrations"], r["test"], r["episodes"]) for r in result["runs"]}
    assert told == {(e, n, t, 2) for e in ("small", "none") for n in (2, 3) for t in config.tests}
    cell = run / "cells" / "franka_pick" / "small" / "2-0"
    assert read_json(cell / "bundle" / "evaluation.json") == read_json(cell / "evaluation.json")
    assert read_json(cell / "tests" / "lights+colors" / "evaluation.json")["randomization"] == {
        "lights": 1.0, "colors": 1.0,
    }  # fmt: skip
    assert result["encoders"]["small"]["gflops_per_frame"] > 0 == result["encoders"]["none"]["parameters"]
    assert result["encoders"]["small"]["total_parameters"] > result["encoders"]["small"]["parameters"]
    assert result["encoders"]["none"]["head_parameters"] > result["encoders"]["none"]["total_parameters"] == 0
    assert result["design"]["shared"]["bc"]["steps"] == 30
    assert "One policy seed says nothing" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size > 10_000
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()] == ["toto"]

    def refuse(*arguments, **keywords):
        raise AssertionError("a finished comparison works again")

    for name in ("policies.train.train_head", "policies.evaluate.Processes", "policies.compare.encoder_cost"):
        monkeypatch.setattr(name, refuse)
    assert compare(config, run) == 0
    assert {k: v for k, v in read_json(run / "comparison.json").items() if k != "date"} == {
        k: v for k, v in result.items() if k != "date"
    }
    monkeypatch.setattr("policies.compare.encoder_costs", lambda *arguments: result["encoders"])
    published = replace(config, earlier=(str(run / "comparison.json"),))
    assert compare(published, tmp_path / "other") == 0
    again = read_json(tmp_path / "other" / "comparison.json")
    for key in ("design", "encoders", "cells", "pairs", "curves", "layers", "runs"):
        assert again[key] == result[key], key
    assert [(source["file"], source["policies"]) for source in again["sources"]] == [("comparison.json", 4)]
    assert not (tmp_path / "other" / "cells").exists()
    assert "Taken from earlier comparisons" in (tmp_path / "other" / "report.html").read_text()


@pytest.mark.render
def test_an_encoder_that_was_trained_again_is_not_mixed_with_itself(config, toto_folder, tmp_path):
    """Weights of another seed at the same path: finished policies are neither counted nor gone on from."""
    again = shutil.copytree(toto_folder, tmp_path / "encoder")
    entry = f"small:{ENTRY.format(toto=again)}"
    config = replace(config, encoders=(entry,), demonstrations=(2,), tests=("plain",))
    run = tmp_path / "run"
    assert compare(config, run) == 0
    (record,) = read_json(run / "comparison.json")["runs"]
    assert len(record["demonstrations_hash"]) == 64 and len(record["commits"]) == 1
    assert read_json(run / "comparison.json")["stores"]["franka_pick"]["collect"]["env"] == "toto_robot/FrankaPick-v0"
    model = from_pretrained(again)
    save_pretrained(type(model)(model.config, generator=torch.Generator().manual_seed(7)), again)
    with pytest.raises(
        ValueError, match=r"2-0 holds a policy of another encoder \(its weights, layer or precision\): "
    ):
        compare(replace(config, seeds=2), run)


@pytest.mark.render
def test_policies_that_another_process_has_are_left_to_it(config, tmp_path, monkeypatch, capsys):
    config = replace(config, encoders=("none",), demonstrations=(2,), seeds=2, tests=("plain",))
    first, second = cells(config)
    refused = []

    def take(folder):
        """The other process has the first policy until this one has asked once."""
        if folder.match(f"*/{first.name}") and not refused:
            refused.append(folder)
            raise ValueError("another process is writing")
        return lock_folder(folder)

    monkeypatch.setattr("policies.compare.lock_folder", take)
    monkeypatch.setattr("policies.compare._POLL_S", 0.0)
    assert compare(config, tmp_path / "run") == 0
    assert len(refused) == 1
    said = capsys.readouterr().out
    assert said.index(f"] {second.name}: plain") < said.index(f"] {first.name}: plain")
    assert len(read_json(tmp_path / "run" / "comparison.json")["runs"]) == 2


@pytest.mark.render
def test_dagger_begins_with_the_demonstrations_of_its_cell_and_leaves_what_is_small(config, tmp_path, monkeypatch):
    dagger = DAggerConfig(rounds=2, episodes=1, steps=3, curve_episodes=1, workers=1, envs_per_worker=1)
    config = replace(
        config, policy="dagger", encoders=config.encoders[:1], demonstrations=(1, 2), tests=("plain",),
        train=replace(config.train, dagger=dagger, evaluation=replace(config.train.evaluation, episodes=1)),
    )  # fmt: skip
    read, real = [], EpisodeStore.read

    def noted(store, key, start, stop):
        if key.startswith(FEATURE_PREFIX):
            read.append((store.path, key, start, stop))
        return real(store, key, start, stop)

    monkeypatch.setattr(EpisodeStore, "read", noted)
    run = tmp_path / "run"
    assert compare(config, run) == 0
    steps = []
    for count in (1, 2):
        cell = run / "cells" / "franka_pick" / "small" / f"{count}-0"
        assert read_json(cell / "bundle" / "policy.json")["training"]["demonstrations"] == count
        store = EpisodeStore.open(cell / "episodes")
        assert {"action", "simulator.state", "observation.state"} <= set(store.features) and store.cameras == ()
        assert not [path for path in (cell / "episodes" / "data").iterdir() if "features" in path.name]
        assert store.episode(1)["action"].shape == (store.meta["length"][1], 7)
        for key in ("front", "wrist"):  # every frame of every round once
            parts = [(a, b) for path, k, a, b in read if path == store.path and k == FEATURE_PREFIX + key]
            assert parts == [(0, store.ends[0]), (store.ends[0], store.ends[1])]
        steps.append(read_curve(cell)[-1].env_steps)
    result = read_json(run / "comparison.json")
    found = [(curve["demonstrations"], curve["x"][-1]) for curve in result["curves"]]
    assert found == [(1, steps[0]), (2, steps[1])]
    monkeypatch.setattr("policies.dagger.DAgger.learn", None)  # it is done: nothing is trained again
    assert compare(config, run) == 0


@pytest.mark.render
def test_a_policy_that_breaks_down_is_dead_and_the_others_go_on(config, tmp_path, monkeypatch, capsys):
    config = replace(config, encoders=("none",), demonstrations=(2,), seeds=3, tests=("plain",))
    asked, real = [], training.train_head

    def broken(bc, data, seed, *more):
        """Seed 0 answers with NaN, which its worker process finds; the loss of seed 1 is not finite."""
        asked.append(seed)
        if seed == 1:
            raise TrainingFailed("the cloning loss is nan at step 7")
        trained = real(bc, data, seed, *more)
        if seed == 0:
            torch.nn.init.constant_(next(trained.head.out.parameters()), torch.nan)
        return trained

    monkeypatch.setattr("policies.train.train_head", broken)
    run = tmp_path / "run"
    for _ in range(2):  # the second time nothing is tried again
        assert compare(config, run) == 0
    assert asked == [0, 1, 2]
    result = read_json(run / "comparison.json")
    told = [(record["seed"], record["starts"]["success"], record.get("failed", "")) for record in result["runs"]]
    assert told[0][:2] == (0, "00") and "NaN or infinity in the policy's action" in told[0][2]
    assert told[1] == (1, "00", "the cloning loss is nan at step 7") and told[2][2] == ""
    (cell,) = result["cells"]
    assert (cell["policies"], cell["failed"]) == (3, 2) and cell["dead"] >= 2
    report = (run / "report.html").read_text()
    assert "No policy came of none on franka_pick, 2 demonstrations, seed 1: the cloning loss is nan" in report
    assert "failed, counted as no success" in capsys.readouterr().out
    other = replace(config, train=replace(config.train, bc=replace(config.train.bc, steps=31)))
    with pytest.raises(ValueError, match=r"other settings \(bc.steps: 30 -> 31\)"):
        compare(other, run)

    def refuse(*arguments):
        raise ValueError("a setting is wrong")

    monkeypatch.setattr("policies.train.train_head", refuse)
    with pytest.raises(ValueError, match="a setting is wrong"):
        compare(replace(config, demonstrations=(1,)), run)
    assert not (run / "cells" / "franka_pick" / "none" / "1-0" / "failed.json").exists()


def test_a_layer_that_is_left_open_is_chosen_once_a_task_from_the_fewest_demonstrations(config, tmp_path, monkeypatch):
    auto = config.encoders[0] + "@layer=auto"
    config = replace(config, encoders=(auto, "none"), envs=("franka_pick", "kuka_pick"))
    stores = dict.fromkeys(config.tasks, demonstrations(config, "franka_pick"))
    asked = []

    def choose(encoder, store, cameras, episodes, folder):
        chosen = len(asked)
        asked.append((folder.relative_to(tmp_path).as_posix(), episodes))
        of = {"encoder": open_layers(encoder).fingerprint, "episodes": episodes}
        write_json(folder / "layers.json", {"of": of, "chosen": chosen})
        return replace(encoder, layer=str(chosen))

    monkeypatch.setattr("policies.compare_layers.choose_layer", choose)
    for _ in range(2):
        chosen = choose_layers(config, tmp_path, stores, ())
        config = replace(config, demonstrations=(*config.demonstrations, 5))  # grown: the choice stays
    with pytest.raises(
        ValueError, match=r"layer of small on franka_pick was chosen from 2 .*policies of 1 would profit"
    ):
        choose_layers(replace(config, demonstrations=(1, 2)), tmp_path, stores, ())
    assert asked == [("layers/franka_pick/small", 2), ("layers/kuka_pick/small", 2)]
    assert {key: encoder.layer for key, encoder in chosen.items()} == {
        ("franka_pick", "small"): "0", ("kuka_pick", "small"): "1",
    }  # fmt: skip
    rows = [(entry.label, entry.config.layer) for entry in costed(config, chosen)]
    assert rows == [("small", "0"), ("small on kuka_pick", "1"), ("none", None)]
    assert choose_layers(config, tmp_path / "new", stores, ("small",)) == {}
    with pytest.raises(ValueError, match=r"policy=ppo has none: ask `toto_robot probe encoders=\[toto\]`"):
        replace(config, policy="ppo")


def test_the_grid_has_every_encoder_at_the_first_seeds_and_the_largest_store_first():
    config = CompareConfig(encoders=("toto", "mae"), demonstrations=(20, 50), seeds=2, layers=("0", "last"))
    found = [(c.seed, c.entry.label, c.demonstrations) for c in cells(config)]
    assert found[:4] == [(0, "toto", 50), (0, "toto", 20), (0, "mae", 50), (0, "mae", 20)]
    assert found[4:8] == [(0, f"{name}@layer={layer}", 50) for name in ("toto", "mae") for layer in ("0", "last")]
    assert [seed for seed, _, _ in found] == [0] * 8 + [1] * 8
    assert len({c.name for c in cells(config)}) == 16


def test_entries_name_an_encoder_its_weights_and_its_options():
    assert parse_entry("short:toto=out/x@context_frames=2@layer=3") == parse_entry(
        "short:toto=out/x@layer=3@context_frames=2"
    )
    entry = parse_entry("short:toto=out/x@context_frames=2@layer=3")
    assert entry.label == "short"
    assert entry.config == EncoderConfig(name="toto", path="out/x", context_frames=2, layer="3")
    assert parse_entry("mae@layer=2").label == "mae layer=2"
    assert parse_entry("x:mae=/a:b@c/d@layer=1").config == EncoderConfig(name="mae", path="/a:b@c/d", layer="1")
    config = CompareConfig(encoders=("toto=mine", "random_toto", "random_vit", "mae", "none"))
    assert [e.config.path for e in config.entries] == ["mine", "mine", "mae-small-sim", "mae-small-sim", None]


def test_what_learns_while_it_acts_sees_what_demonstrations_show():
    looks = {"randomize": ("lights",), "randomize_strength": 0.5}
    for policy in ("bc", "dagger", "ppo"):
        config = CompareConfig(policy=policy, **looks)
        train = cells(config)[0].train_config(config, None)
        told = {name: getattr(train, name).randomize for name in ("dagger", "ppo")}
        assert told == {name: ("lights",) if name == policy else () for name in told}
    assert (train.ppo.randomize_strength, train.dagger.randomize_strength) == (0.5, 1.0)


def test_axes_of_a_condition_are_those_of_its_name():
    config = CompareConfig(tests=("cameras+lights",), test_strength=0.5)
    found = condition(config, "cameras+lights")
    assert found.randomize == ("cameras", "lights") and found.randomize_strength == 0.5
    assert condition(config, "plain") == config.train.evaluation


def test_a_store_is_found_by_its_task(demos, tmp_path):
    (tmp_path / "franka_pick").symlink_to(demos)
    for given in (tmp_path, demos):
        assert (demonstrations(CompareConfig(demos=str(given)), "franka_pick") / "zarr.json").exists()
    with pytest.raises(ValueError, match="toto_robot collect env=kuka_pick"):
        demonstrations(CompareConfig(demos=str(tmp_path)), "kuka_pick")


def test_a_learner_without_demonstrations_is_trained_once_a_seed():
    config = CompareConfig(encoders=("none",), policy="ppo", seeds=2, demonstrations=(20, 50))
    assert len(cells(config)) == 2 and demonstrations(config, "franka_pick") is None
    assert cells(config)[0].train_config(config, None).policy == "ppo"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoders": ("toto", "toto")}, "two encoders have one label"),
        ({"encoders": ("tito",)}, "expected encoder.name"),
        ({"encoders": ("toto@depth=3",)}, "expected <encoder>@key=value with a key of layer"),
        ({"encoders": ("toto@context_frames=x",)}, "expected a whole number, got 'x'"),
        ({"reference": "mvp"}, "reference=mvp is none of the encoders toto, mae"),
        ({"targets": (80.0,)}, "success rates in"),
        ({"seeds": 0}, "seeds and demonstrations of 1 or more"),
        ({"train": TrainPolicyConfig(seed=3)}, "train.seed is decided by the comparison"),
        (
            {"policy": "dagger", "train": TrainPolicyConfig(dagger=DAggerConfig(initial_demonstrations=7))},
            "train.dagger.initial_demonstrations is decided by the comparison",
        ),
        ({"randomize": ("lights",), "demos": "x"}, "collected here"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**values)
