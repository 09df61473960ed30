"""Does the whole of train-policy run, repeat for nothing, share its cache, and tell a user what is wrong?"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from policies import train as training
from policies.bundle import load_policy
from policies.collect import CollectConfig, collect_episodes
from policies.encoder import EncoderConfig
from policies.policy_report import next_commands
from policies.train import check_settings, open_demonstrations, train_bundle, train_policy
from tests.policies.small import IMAGE_SIZE
from toto_robot import cli, packaged
from toto_robot.data.episodes import ORACLE_KEY, EpisodeStore, FeatureSpec
from toto_robot.models.hub import from_pretrained, save_pretrained
from toto_robot.run_folder import read_json, read_metrics

pytestmark = pytest.mark.render


def test_a_run_leaves_a_policy_and_its_rate_and_repeats_for_nothing(small, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert train_policy(small, run) == 0
    said = capsys.readouterr().out
    for name in (
        "bundle/hashes.json",
        "evaluation.json",
        "loss.png",
        "rollouts.png",
        "report.html",
        "metrics.jsonl",
        "checkpoints/last",
    ):
        assert (run / name).exists(), name
    assert read_json(run / "evaluation.json")["successes"] == 0  # 30 steps of training: the report must be honest
    report = (run / "report.html").read_text()
    for told in ("It never succeeded in 3 held-out episodes", "56.1%", "seeds 1000000 to 1000002", "evaluate policy="):
        assert told in report, told
    assert report.count("data:image/png;base64,") == 2 and "src=" not in report.replace('src="data:', "")
    assert "0/3 = 0% [0%, 56%]" in said
    assert read_json(run / "bundle" / "evaluation.json") == read_json(run / "evaluation.json")
    assert "of 3 held-out episodes" in (run / "bundle" / "MODEL_CARD.md").read_text()
    before = {path: os.stat(path).st_mtime_ns for path in run.rglob("*.safetensors")}

    def refuse(*arguments, **keywords):
        raise AssertionError("a finished run works again")

    for name in ("open_encoder", "shown_to_head", "train_head"):
        monkeypatch.setattr(f"policies.train.{name}", refuse)
    monkeypatch.setattr("policies.evaluate.Processes", refuse)
    assert train_policy(small, run) == 0
    assert capsys.readouterr().out == said
    assert {path: os.stat(path).st_mtime_ns for path in run.rglob("*.safetensors")} == before


def test_a_folder_that_another_training_writes_to_is_refused(small, tmp_path):
    ours = "import sys, time; from pathlib import Path; from toto_robot.run_folder import lock_folder"
    hold = f"{ours}; held = lock_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        try:
            with pytest.raises(ValueError, match="another process is writing to"):
                train_policy(small, tmp_path)
        finally:
            other.kill()


def test_other_settings_do_not_continue_a_run(small, tmp_path):
    train_bundle(small, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a policy of other settings \(seed: 0 -> 1\)"):
        train_bundle(replace(small, seed=1), tmp_path / "run")


def test_a_run_that_was_killed_does_not_go_on_under_other_settings(small, tmp_path, monkeypatch):
    run, real = tmp_path / "run", training.train_head
    monkeypatch.setattr("policies.train.train_head", lambda *arguments: 1 / 0)  # killed as it begins
    with pytest.raises(ZeroDivisionError):
        train_bundle(small, run)
    monkeypatch.setattr("policies.train.train_head", real)
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1; bc.learning_rate: 0.001 -> 0.002\)"):
        train_bundle(replace(small, seed=1, bc=replace(small.bc, learning_rate=0.002)), run)
    (run / "settings.json").unlink()  # what an earlier version has begun goes on
    bundle = train_bundle(small, run)
    recorded = read_json(bundle / "policy.json")["training"]["settings"]
    begun = read_json(run / "settings.json")
    assert len(begun.pop("made_of")["commits"]) == 1 and begun == recorded
    del recorded["bc"]["token_dropout"]  # a bundle of a version that did not know the key, which had its default then
    check_settings(recorded, small, run)
    with pytest.raises(ValueError, match=r"bc.token_dropout: 0.0 -> 0.1"):
        check_settings(recorded, replace(small, bc=replace(small.bc, token_dropout=0.1)), run)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("what", ["encoder", "demonstrations"])
def test_what_lay_at_the_paths_must_still_be_there(small, demos, toto_folder, tmp_path, monkeypatch, what, finished):
    """An encoder trained again or a store collected anew has the same settings, and is something else."""
    encoder, store = shutil.copytree(toto_folder, tmp_path / "encoder"), shutil.copytree(demos, tmp_path / "demos")
    small = replace(small, demos=str(store), encoder=replace(small.encoder, path=str(encoder)), demonstrations=2)
    run = tmp_path / "run"
    if finished:
        train_bundle(small, run)
        train_bundle(small, run)  # it counts as done
    else:
        with monkeypatch.context() as patched:
            patched.setattr("policies.train.save_bundle", None)  # killed before the end
            with pytest.raises(TypeError):
                train_bundle(small, run)
    if what == "encoder":
        model = from_pretrained(encoder)
        save_pretrained(type(model)(model.config, generator=torch.Generator().manual_seed(5)), encoder)
        said = r"another encoder \(its weights, layer or precision\)"
    else:
        shutil.rmtree(store)
        collect_episodes(CollectConfig(episodes=2, image_size=IMAGE_SIZE, workers=1, seed=50), store)
        said = "other demonstrations"
    with pytest.raises(ValueError, match=rf"holds a policy of {said}: \w+ -> \w+"):
        train_bundle(small, run)


def test_a_finished_policy_needs_neither_its_encoder_nor_its_demonstrations(small, toto_folder, tmp_path):
    encoder = shutil.copytree(toto_folder, tmp_path / "encoder")
    small = replace(small, encoder=replace(small.encoder, path=str(encoder)), demonstrations=2)
    bundle = train_bundle(small, tmp_path / "run")
    shutil.rmtree(encoder)
    assert train_bundle(replace(small, demos=str(tmp_path / "gone")), tmp_path / "run") == bundle


@pytest.mark.parametrize("learner", ["bc", "dagger"])
def test_a_layer_that_is_left_open_is_chosen_before_the_encoder_is_used(small, tmp_path, monkeypatch, learner):
    def begun(*arguments, **keywords):
        raise KeyboardInterrupt

    asked, opened, real = [], [], training.open_encoder
    monkeypatch.setattr("policies.train.open_encoder", lambda config: opened.append(config.layer) or real(config))
    monkeypatch.setattr(
        "policies.train.choose_layer",
        lambda encoder, store, cameras, count, folder: asked.append(count) or replace(encoder, layer="0"),
    )
    monkeypatch.setattr("policies.train.shown_to_head", begun)
    monkeypatch.setattr("policies.train.cached_features", begun)
    config = replace(small, policy=learner, encoder=replace(small.encoder, layer="auto"))
    config = replace(config, dagger=replace(config.dagger, initial_demonstrations=2))
    with pytest.raises(KeyboardInterrupt):
        train_bundle(config, tmp_path)
    assert opened == [None, "0"] and asked == [3 if learner == "bc" else 2]
    if learner == "dagger":
        with pytest.raises(ValueError, match=r"chosen from dagger.initial_demonstrations"):
            train_bundle(replace(config, dagger=replace(config.dagger, initial_demonstrations=0)), tmp_path / "none")
    with pytest.raises(ValueError, match=r"policy=ppo has none: ask `toto_robot probe"):
        replace(config, policy="ppo")


def test_the_commands_that_come_next_exist_and_compose(small, tmp_path):
    bundle = train_bundle(replace(small, encoder=EncoderConfig(name="none")), tmp_path / "run")
    lines = next_commands(bundle, read_json(bundle / "policy.json"))
    description = read_json(bundle / "policy.json")
    told = [line.split()[1] for line in lines]
    assert told == ["evaluate", "compare", "train-policy", "deploy"]
    assert lines[0].startswith("toto_robot evaluate policy=") and lines[-1].split()[2] == f"policy={bundle}"

    def next_of(**changed):
        return next_commands(bundle, {**description, **{key: {**description[key], **changed[key]} for key in changed}})

    for other in ({"env_id": "toto_robot/KukaPick-v0"}, {"preset": "pixmc"}):
        assert [line.split()[1] for line in next_of(task=other)] == told[:3]
    assert "deploy" not in [line.split()[1] for line in next_of(encoder={"name": "state"})]
    (acting,) = (line for line in next_of(training={"learner": "ppo", "env_steps": 30_000}) if "compare" in line)
    assert "policy=ppo" in acting and "train.ppo.env_steps=30000" in acting and "demonstrations" not in acting
    (corrected,) = (line for line in next_of(training={"learner": "dagger"}) if "compare" in line)
    assert "policy=dagger" in corrected and "demonstrations=[3]" in corrected
    for line in [*lines, acting, corrected]:
        name, *words = line.split("#")[0].split()[1:]
        _, schema = cli._load(name)
        config = cli._compose(name, schema, [word for word in words if not word.startswith("run=")])
        assert getattr(config, "env", "robosuite").split("/")[0] in ("toto_robot", "robosuite")


def test_one_demonstration_is_enough_to_train_and_counts_as_one(small, tmp_path):
    """Nothing is held out then: there is no validation loss, and the policy is a real one."""
    config = replace(small, encoder=EncoderConfig(name="none"), demonstrations=1)
    bundle = train_bundle(config, tmp_path / "run")
    facts = read_json(bundle / "policy.json")["training"]
    assert (facts["demonstrations"], facts["validation_demonstrations"]) == (1, 0)
    assert all("val/loss" not in line for line in read_metrics(tmp_path / "run"))
    proprio = np.zeros(len(load_policy(bundle).task["proprio_names"]), np.float32)
    assert load_policy(bundle).act({"proprio": proprio}).shape == (7,)


@pytest.mark.parametrize("name", ["toto", "mae", "random_toto"])
def test_an_encoder_without_a_path_is_the_packaged_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a fresh machine: no outputs/
    folder = EncoderConfig(name=name).folder
    assert folder == packaged.FOLDER / ("mae-small-sim" if name == "mae" else "toto-small-sim")
    assert (folder / "config.json").exists() and (folder / "model.safetensors").exists()


def test_a_sweep_trains_a_policy_a_job(demos, tmp_path):
    """Jobs are subprocesses' work on a cluster: nothing but the command line says what they do."""
    words = [
        "seed=0,1", "encoder=none", f"demos={demos}", "demonstrations=2", "bc.steps=2", "evaluation.episodes=1",
        "evaluation.workers=1", "evaluation.videos=0", "evaluate_other=false", f"cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "toto_robot", "train-policy", "--multirun", *words, f"run={tmp_path / 'sweep'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        training = read_json(tmp_path / "sweep" / str(seed) / "bundle" / "policy.json")["training"]
        assert training["seed"] == seed and training["demonstrations"] == 2
        assert read_json(tmp_path / "sweep" / str(seed) / "evaluation.json")["episodes"] == 1


def test_a_missing_encoder_says_which_command_makes_it(small, tmp_path):
    with pytest.raises(
        ValueError, match=r"no mae encoder at .*pretrained_model; make it with `toto_robot pretrain model=mae_nano"
    ):
        train_bundle(
            replace(small, encoder=EncoderConfig(name="mae", path=str(tmp_path / "pretrained_model"))), tmp_path
        )
    with pytest.raises(ValueError, match=r"expected encoder.name toto, mae"):
        EncoderConfig(name="tito")


def test_demonstrations_must_fit_the_task(small, demos, tmp_path):
    with pytest.raises(ValueError, match="holds demonstrations of 'toto_robot/FrankaPick-v0', the policy is for"):
        open_demonstrations(replace(small, env="franka_cabinet"))
    with pytest.raises(ValueError, match=r"no camera side; it has front, wrist"):
        open_demonstrations(replace(small, cameras=("front", "side")))
    with pytest.raises(ValueError, match=r"asked for 9 demonstrations, .* holds 3; use demonstrations=3"):
        open_demonstrations(replace(small, demonstrations=9))
    with pytest.raises(ValueError, match=r"toto_robot collect"):
        open_demonstrations(replace(small, demos=str(tmp_path / "nothing")))


def test_nan_in_a_foreign_store_is_named(small, store, tmp_path, monkeypatch):
    """The store refuses NaN when it is written; a file that was damaged or made elsewhere may hold it all the same."""
    features = {key: FeatureSpec(spec.dtype, spec.shape, spec.names) for key, spec in store.features.items()}
    for key in ("timestamp", "frame_index", "episode_index"):
        features.pop(key)
    copy = EpisodeStore.create(tmp_path / "copy", features=features, fps=20, env=store.env)
    for index in range(3):
        episode = {key: value for key, value in store.episode(index).items() if key in features}
        copy.append(episode, {"seed": index})
    copy.close()
    state = next((tmp_path / "copy" / "data" / "observation.state").glob("c*"), None)
    assert state is not None
    clean = store.read("observation.state", 0, store.steps)
    raw = bytearray(state.read_bytes())
    at = raw.find(clean[5].tobytes())
    assert at > 0
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    state.write_bytes(bytes(raw))
    config = replace(small, demos=str(tmp_path / "copy"))
    with pytest.raises(ValueError, match=r"NaN or infinity in observation.state of the demonstrations: q1_scaled"):
        train_bundle(config, tmp_path / "run")


def test_the_oracle_is_told_the_state_that_was_collected(small, tmp_path):
    config = replace(small, encoder=EncoderConfig(name="state"), evaluation=replace(small.evaluation, videos=0))
    assert train_policy(config, tmp_path / "run") == 0
    policy = load_policy(tmp_path / "run" / "bundle")
    assert policy.oracle and policy.cameras == ()
    store = EpisodeStore.open(small.demos)
    seen = {"proprio": store.read("observation.state", 0, 1)[0], "state": store.read(ORACLE_KEY, 0, 1)[0]}
    near = policy.act(seen)
    policy.reset()
    far = policy.act({**seen, "state": seen["state"] + 0.1})
    assert np.abs(near - far).max() > 1e-4
    with pytest.raises(ValueError, match=r"observation\['state'\]"):
        policy.act({"proprio": seen["proprio"]})
    without = {key: spec for key, spec in store.features.items() if key != ORACLE_KEY}
    bare = EpisodeStore.create(tmp_path / "bare", features=without, fps=store.fps, env=store.env)
    bare.append({key: store.episode(0)[key] for key in without}, {"seed": 0})
    bare.close()
    with pytest.raises(ValueError, match=r"environment_state.*collect the demonstrations again"):
        train_bundle(replace(config, demos=str(tmp_path / "bare"), demonstrations=1), tmp_path / "other")
