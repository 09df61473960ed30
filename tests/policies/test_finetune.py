"""Do the weights that should learn move, the others not, and does the finished encoder see what the trained one saw?"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.bundle import load_policy
from policies.encoder import EncoderConfig, open_encoder
from policies.finetune import Eyes, prepare
from policies.train import train_bundle
from toto_robot.models.hub import save_pretrained
from toto_robot.models.mae import MAEConfig, build_mae

MAE = MAEConfig(
    name="test", image_px=32, patch_px=8, width=32, layers=3, heads=2, ffn_width=48, decoder_width=16,
    decoder_layers=1, decoder_heads=2, decoder_ffn_width=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, toto):
    folder = tmp_path_factory.mktemp("mae") / "pretrained_model"
    save_pretrained(build_mae(MAE, seed=0), folder)
    return {
        "toto": replace(toto, context_frames=1, layer="last"),
        "mae": EncoderConfig(name="mae", path=str(folder), layer="last", precision="fp32"),
    }


def images(count=5):
    return np.random.default_rng(0).integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)


def train_a_little(eyes, shown):
    optimizer = torch.optim.SGD([p for p in eyes.parameters() if p.requires_grad], lr=1.0)
    weights = torch.randn(eyes(shown).shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        (eyes(shown) * weights).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["toto", "mae"])
@pytest.mark.parametrize("mode", ["full", "last_k", "lora"])
def test_the_finished_encoder_sees_what_the_trained_one_saw(encoders, name, mode):
    encoder = open_encoder(encoders[name])
    eyes = Eyes(encoder, mode, blocks=1, rank=2, seed=0)
    shown = torch.from_numpy(prepare(encoder, images()))
    before = encoder.encode(images())
    torch.testing.assert_close(eyes(shown).detach(), before, rtol=1e-4, atol=1e-4)
    train_a_little(eyes, shown)
    after = eyes(shown).detach()
    assert (after - before).abs().max() > 0.01
    finished = eyes.finished()
    torch.testing.assert_close(finished.encode(images()), after, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.encode(images()), before)  # the one that was given stays
    assert finished.fingerprint != encoder.fingerprint and finished.settings() == encoder.settings()


@pytest.mark.parametrize("mode", ["full", "last_k", "lora"])
def test_copies_of_what_learns_are_finished_too(encoders, mode):
    """A training keeps a running average and the best of it: copies, finished one after the other."""
    eyes = Eyes(open_encoder(encoders["toto"]), mode, blocks=1, rank=2, seed=0)
    average = copy.deepcopy(eyes)
    best = copy.deepcopy(average)
    shown = torch.from_numpy(prepare(eyes.encoder, images()))
    train_a_little(average, shown)
    for each in (average, best, eyes):
        expected = each(shown).detach()
        torch.testing.assert_close(each.finished().encode(images()), expected, rtol=1e-4, atol=1e-4)


def test_a_control_that_has_learned_keeps_its_name(encoders):
    for name, like in (("random_vit", "mae"), ("random_toto", "toto")):
        encoder = open_encoder(replace(encoders[like], name=name))
        assert Eyes(encoder, "last_k", blocks=1, rank=2, seed=0).finished().name == name


@pytest.mark.parametrize("name", ["toto", "mae"])
def test_only_the_weights_that_were_asked_for_learn(encoders, name):
    encoder = open_encoder(encoders[name])
    blocks = "blocks" if name == "toto" else "vit.layers"
    last = 1 if name == "toto" else 2

    def learning(mode, **settings):
        eyes = Eyes(encoder, mode, **{"blocks": 1, "rank": 2, "seed": 0, **settings})
        return {name for name, parameter in eyes.model.named_parameters() if parameter.requires_grad}

    kept = learning("last_k")
    assert kept and all(name.startswith(f"{blocks}.{last}.") for name in kept)
    assert len(learning("last_k", blocks=2)) == 2 * len(kept)
    full = learning("full")
    assert kept < full and any("embed" in name for name in full)
    assert not any("decoder" in name or name.startswith(("head", "norm")) for name in full)
    low_rank = learning("lora")
    assert low_rank and all(name.endswith(("0.up", "0.down")) for name in low_rank)


def test_what_cannot_be_trained_is_said(encoders, toto):
    with pytest.raises(ValueError, match="sees one frame at a time, the encoder looks back on 4"):
        Eyes(open_encoder(toto), "full", blocks=1, rank=2, seed=0)
    with pytest.raises(ValueError, match=r"finetune_layers in 1\.\.2 .*got 5"):
        Eyes(open_encoder(encoders["toto"]), "last_k", blocks=5, rank=2, seed=0)
    with pytest.raises(ValueError, match="trains Toto and MAE encoders, got none"):
        Eyes(open_encoder(EncoderConfig(name="none")), "full", blocks=1, rank=2, seed=0)
    with pytest.raises(ValueError, match="layer=0 runs none"):
        Eyes(open_encoder(replace(encoders["toto"], layer="0")), "full", blocks=1, rank=2, seed=0)


@pytest.mark.render
@pytest.mark.parametrize("mode", ["last_k", "lora"])
def test_a_bundle_holds_the_encoder_that_has_learned_and_a_stop_changes_nothing(
    small, encoders, mode, tmp_path, monkeypatch
):
    bc = replace(small.bc, finetune=mode, finetune_layers=1, steps=20, batch_size=8, select="last", encoder_lr=1e-3)
    config = replace(small, encoder=encoders["toto"], bc=replace(bc, image_augmentations=1))
    straight = load_policy(train_bundle(config, tmp_path / "straight"))
    assert straight._encoder.fingerprint != open_encoder(encoders["toto"]).fingerprint

    import policies.bc as module

    real = module._step

    def stop(*arguments):
        if arguments[-1] == 14:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_bundle(config, tmp_path / "stopped")
    continued = load_policy(train_bundle(config, tmp_path / "stopped"))
    assert continued._encoder.fingerprint == straight._encoder.fingerprint
    for name, tensor in straight._head.state_dict().items():
        assert torch.equal(continued._head.state_dict()[name], tensor), name
