"""Does a bundle give back the policy that was put in, alone in its folder, and refuse one that was touched?"""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from policies.bundle import bundle_hash, load_policy
from policies.heads.gmm import GMMConfig
from policies.policy_card import demonstrated_by, model_card
from policies.train import train_bundle
from tests.policies.small import make_small

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demos, toto):
    """A bundle, moved away from where it was made."""
    folder = tmp_path_factory.mktemp("trained")
    bundle = train_bundle(make_small(demos, toto, folder), folder / "run")
    shutil.move(bundle, folder / "elsewhere")
    return folder / "elsewhere"


@pytest.fixture
def bundle(trained, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "bundle")


def observation(store, row, size=None):
    stop = row + (size or 1)
    batch = {
        "proprio": store.read("observation.state", row, stop),
        "pixels": {camera: store.read(f"observation.images.{camera}", row, stop) for camera in store.cameras},
    }
    if size:
        return batch
    return {"proprio": batch["proprio"][0], "pixels": {key: value[0] for key, value in batch["pixels"].items()}}


def test_a_loaded_policy_acts_as_the_trained_one(demos, toto, store, tmp_path, monkeypatch):
    import policies.train as train

    kept = {}
    monkeypatch.setattr(
        train, "save_bundle", lambda folder, content: kept.update(content=content) or real(folder, content)
    )
    from policies.bundle import save_bundle as real

    bundle = train_bundle(make_small(demos, toto, tmp_path), tmp_path / "run")
    content = kept["content"]
    from policies.policy import Policy

    before = Policy(
        encoder=content.encoder,
        head=content.trained.head,
        proprio=content.trained.proprio,
        actions=content.trained.actions,
        execution=content.execution,
        task=content.task,
        cameras=content.cameras,
    )
    after = load_policy(bundle)
    for row in range(6):
        np.testing.assert_array_equal(before.act(observation(store, row)), after.act(observation(store, row)))


def test_a_batch_row_acts_as_if_alone_and_resets_alone(trained, store):
    batch, alone = load_policy(trained), load_policy(trained)
    first = [batch.act(observation(store, row, size=3)) for row in range(4)]
    batch.reset(rows=np.array([False, True, False]))
    later = batch.act(observation(store, 4, size=3))
    for row in range(4):
        np.testing.assert_allclose(first[row][1], alone.act(observation(store, row + 1)), atol=1e-5)
    continued = alone.act(observation(store, 5))
    alone.reset()
    restarted = alone.act(observation(store, 5))
    np.testing.assert_allclose(later[1], restarted, atol=1e-5)
    assert np.abs(continued - restarted).max() > 1e-4, "the past does not matter: the test shows nothing"
    assert later.shape == (3, 7) and later.dtype == np.float32


def test_what_a_policy_draws_follows_from_the_seed_of_its_row(demos, toto, store, tmp_path):
    config = make_small(demos, toto, tmp_path)
    head = replace(config.bc.head, name="gmm", chunk_steps=3, gmm=GMMConfig(low_noise_eval=False))
    bundle = train_bundle(replace(config, bc=replace(config.bc, steps=10, head=head)), tmp_path / "run")

    def drawn(first, count, seeds):
        """Let `count` rows see what the store shows from `first` on, for five steps."""
        policy = load_policy(bundle)
        policy.reset(batch=count, seeds=seeds)
        one = [policy.act(observation(store, first + step, size=count)) for step in range(5)]
        policy.reset(rows=np.ones(count, dtype=bool), seeds=[seed + 1 for seed in seeds])
        return np.stack([*one, policy.act(observation(store, first, size=count))])

    together = drawn(0, 3, [7, 8, 9])
    np.testing.assert_allclose(drawn(1, 1, [8])[:, 0], together[:, 1], atol=1e-5)
    other = drawn(1, 1, [9])[:, 0]
    assert np.abs(other[0] - together[0, 1]).max() > 1e-3
    np.testing.assert_array_equal(drawn(0, 3, [7, 8, 9]), together)
    policy = load_policy(bundle)
    policy.reset(seeds=[8])  # before anything was seen
    np.testing.assert_allclose(policy.act(observation(store, 1, size=1))[0], together[0, 1], atol=1e-5)


def test_actions_stay_inside_the_box(trained, store):
    policy = load_policy(trained)
    policy._actions.offset[:] = 30.0
    np.testing.assert_array_equal(policy.act(observation(store, 0)), np.ones(7))
    assert policy.control_rate_hz == 20


def test_what_the_robot_gets_wrong_is_an_error(trained, store):
    policy = load_policy(trained)
    good = observation(store, 0)
    bad = {**good, "proprio": good["proprio"].copy()}
    bad["proprio"][3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in the observation: q4_scaled"):
        policy.act(bad)
    with pytest.raises(ValueError, match=r"no camera 'wrist'; it has front"):
        policy.act({**good, "pixels": {"front": good["pixels"]["front"]}})
    with pytest.raises(
        ValueError, match=r"expected camera 'front' as uint8 \(B, 32, 32, 3\), got uint8 \(1, 16, 16, 3\)"
    ):
        policy.act({**good, "pixels": {key: image[::2, ::2] for key, image in good["pixels"].items()}})
    with pytest.raises(ValueError, match=r"expected \(..., 27\) values"):
        policy.act({**good, "proprio": good["proprio"][:20]})
    with pytest.raises(ValueError, match="expected a batch of 1 observations, got 2"):
        policy.act(observation(store, 0, size=2))
    # A refused observation leaves the policy usable.
    assert np.isfinite(policy.act(good)).all()


def test_a_policy_that_answers_nan_is_stopped(trained, store):
    policy = load_policy(trained)
    policy._head.out.bias.data[:] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity in the (policy's action|observation)"):
        policy.act(observation(store, 0))


@pytest.mark.parametrize(
    "name", ["policy.json", "head/model.safetensors", "encoder/config.json", "encoder/tokenizer/model.safetensors"]
)
def test_missing_or_changed_files_are_refused(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(ValueError, match=f"{name} has changed"):
        load_policy(bundle)
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_policy(bundle)


def test_a_foreign_file_or_folder_is_refused(bundle, tmp_path):
    (bundle / "head" / "extra.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"extra.bin does not belong"):
        load_policy(bundle)
    with pytest.raises(ValueError, match=r"no policy bundle at .*train-policy"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"did you mean .*bundle"):
        load_policy(bundle.parent)


def test_a_missing_statistic_is_an_error_even_with_right_hashes(bundle):
    from policies.bundle import _hash_files

    description = json.loads((bundle / "policy.json").read_text())
    for part in ("names", "offset", "scale"):
        description["normalizers"]["proprio"][part].pop()
    (bundle / "policy.json").write_text(json.dumps(description))
    (bundle / "hashes.json").write_text(json.dumps(_hash_files(bundle)))
    with pytest.raises(ValueError, match="no normaliser statistic for hand_axis_y_z"):
        load_policy(bundle)


def test_another_encoder_is_an_error_even_with_right_hashes(bundle):
    from policies.bundle import _hash_files

    description = json.loads((bundle / "policy.json").read_text())
    description["encoder"]["fingerprint"] = "f" * 64
    (bundle / "policy.json").write_text(json.dumps(description))
    (bundle / "hashes.json").write_text(json.dumps(_hash_files(bundle)))
    with pytest.raises(ValueError, match=r"expected encoder f{16}, its folder gives [0-9a-f]{16}; use the version"):
        load_policy(bundle)


def test_nothing_is_pickled_and_the_card_tells_the_units(trained):
    kinds = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors", ".md"}
    card = (trained / "MODEL_CARD.md").read_text()
    for told in ("| dx | 0.0", "| m |", "not evaluated yet", "on 3 demonstrations ("):
        assert told in card, told
    assert "by the scripted expert in simulation" in card and bundle_hash(trained) in card
    description = json.loads((trained / "policy.json").read_text())
    for value in (description["training"]["demonstrations_hash"], description["encoder"]["fingerprint"]):
        assert f"`{value}`" in card
    assert card.startswith("---\nlicense: unknown\n") and "## Licence\n\nNot stated." in card
    del description["training"]["demonstrated_by"]  # a bundle from before
    assert "frames); the last weights" in model_card(description, "h", None)


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"collect": {}}, "the scripted expert in simulation"),
        ({"record_demos": {"operator": "scripted", "robot": "emulator"}}, "the scripted expert on the emulated arm"),
        (
            {"record_demos": {"operator": "spacemouse", "robot": "fr3", "policy": "b"}},
            r"a person with the spacemouse on a real arm \(fr3\), correcting a policy",
        ),
        ({"record_demos": {"operator": "guiding", "robot": "fr3"}}, r"a person guiding the arm on a real arm \(fr3\)"),
        ({"lerobot": {"name": "pusht"}}, r"a LeRobot data set \(pusht\)"),
        ({}, "somebody unknown"),
    ],
)
def test_the_card_names_who_demonstrated(provenance, said):
    assert re.match(said, demonstrated_by(provenance))


def test_the_hash_tells_policies_apart(trained, demos, toto, tmp_path):
    same = train_bundle(make_small(demos, toto, tmp_path), tmp_path / "same")
    other = train_bundle(replace(make_small(demos, toto, tmp_path), seed=1), tmp_path / "other")
    assert bundle_hash(same) == bundle_hash(trained) != bundle_hash(other)
