"""Do the objectives compute what they are named after, and do their models learn?"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.pretrain.toy import CPU, SIZES, frame_store, loop_settings, tokenizer_objective, toto_objective
from toto_robot.data.token_shards import write_store
from toto_robot.data.tokens import TokenSpec
from toto_robot.encoders.load import load_encoder
from toto_robot.models.hub import export_llama, from_pretrained
from toto_robot.models.mae import MAEConfig, build_mae
from toto_robot.models.toto import Toto
from toto_robot.pretrain.baselines import unigram_nats
from toto_robot.pretrain.clips import divide
from toto_robot.pretrain.loop import train
from toto_robot.pretrain.objectives import MAEObjective, TotoObjective, _patches, _to_images, batches_of
from toto_robot.run_folder import read_metrics
from toto_robot.tokenizers.dvae import load_dvae

MAE_SIZES = MAEConfig(
    name="toy", image_px=16, patch_px=4, width=16, layers=2, heads=2, ffn_width=32, decoder_width=16, decoder_layers=1,
    decoder_heads=2, decoder_ffn_width=32,
)  # fmt: skip


def mae_objective(folder, batch_size=6, seed=3) -> MAEObjective:
    frames = frame_store(folder / "frames")
    division = divide(frames.clip_ends, frames.records, 0.25, 0)
    training, held_out = division.samplers(1, (1,), seed)
    return MAEObjective(
        build_mae(MAE_SIZES, seed=1), frames, training=training, held_out=held_out, batch_size=batch_size, seed=seed,
        validation_batches=2,
    )  # fmt: skip


def test_toto_loss_is_llamas_next_token_cross_entropy(tmp_path):
    objective = toto_objective(tmp_path)
    batch = objective.batch(5)
    assert batch.shape == (8, 1 + 4 * 4)
    assert batch.dtype == torch.int64
    assert batch[:, 0].tolist() == [SIZES.start_video_id] * 8
    loss, _ = objective.loss(batch, 5)
    ids = torch.cat([batch, torch.full((8, 1), SIZES.end_id)], dim=1)
    with torch.no_grad():
        theirs = export_llama(objective.model)(ids, labels=ids).loss  # shifts the labels itself
    torch.testing.assert_close(loss, theirs)
    assert loss.item() == pytest.approx(math.log(SIZES.vocab_size), abs=0.15)  # at the start all ids are alike


def mixed_objective(folder) -> TotoObjective:
    """Return the small Toto on videos that count upwards and on pictures whose tokens are all 5."""
    clips = []
    for clip in range(8):
        codes = (np.arange(30)[:, None] + 3 * np.arange(4) + clip) % 16
        clips.append((codes, {"name": f"v{clip}", "group": f"v{clip}", "source": "videos", "kind": "video"}))
    for clip in range(20):
        about = {"name": f"p{clip}", "group": f"p{clip}", "source": "photos", "kind": "images"}
        clips.append((np.full((1, 4), 5), about))
    spec = TokenSpec(grid=(2, 2), vocab=16, image_px=16, tokenizer="toy", precision="fp32")
    store = write_store(folder / "mixed", clips, spec)
    division = divide(store.clip_ends, store.records, 0.25, 0, SIZES.frames)
    training, held_out = division.samplers(SIZES.frames, (1, 2), 0, {"videos": 3, "photos": 1})
    return TotoObjective(
        Toto(SIZES, generator=torch.Generator().manual_seed(0)), store, training=training, held_out=held_out,
        batch_size=8, tokenizer_dir=folder / "tokenizer",
    )  # fmt: skip


def test_pictures_and_videos_share_a_batch_each_behind_its_start_id(tmp_path):
    objective = mixed_objective(tmp_path)
    for step in range(3):
        batch = objective.batch(step)
        pictures = (batch[:, 1:] == 5 + SIZES.first_visual_id).all(1)
        assert pictures.sum() == 2
        assert torch.equal(batch[:, 0] == SIZES.start_image_id, pictures)
        assert torch.equal(batch[:, 0] == SIZES.start_video_id, ~pictures)
    named = objective.name_batch(0)
    assert named.count("pictures p") == 2
    assert named.count(" from frame ") == 6


def test_losses_of_sources_are_those_of_each_alone_and_add_up_by_weight(tmp_path):
    objective = mixed_objective(tmp_path)
    objective.model.eval()
    measured = objective.measure(4)
    for name, one in measured.sources.items():
        alone = objective._held_out.alone(name)
        ids = torch.cat([objective._ids(alone, index) for index in range(2)])
        with torch.no_grad():
            logits = objective.model(ids).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        assert one.windows == 16
        np.testing.assert_allclose(one.per_position, losses.mean(0).numpy(), rtol=1e-5)
    videos, photos = measured.sources["videos"], measured.sources["photos"]
    assert measured.loss == pytest.approx(0.75 * videos.loss + 0.25 * photos.loss)
    assert (videos.copy_accuracy, photos.copy_accuracy, measured.copy_accuracy) == (0.0, 1.0, 0.25)
    assert objective.validate().keys() == {"loss", "accuracy", "loss/videos", "loss/photos"}


def test_toto_batches_are_a_function_of_the_step_and_never_held_out(tmp_path):
    one, other = toto_objective(tmp_path), toto_objective(tmp_path)
    assert torch.equal(one.batch(7), other.batch(7))
    assert not torch.equal(one.batch(7), one.batch(8))


def test_toto_learns_to_count(tmp_path):
    objective = toto_objective(tmp_path)
    trained = train(objective, loop_settings(120, lr=1e-2), tmp_path / "run", device=CPU, dtype=torch.float32)
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert losses[0] > 2.5
    assert losses[-1] < 0.7
    # A window's first frame and its stride have to be guessed, what follows is certain.
    measured = objective.measure(4)
    assert trained.validation["loss"] < 1.0
    assert np.mean(measured.per_position[:4]) > 2 * np.mean(measured.per_position[8:])
    assert measured.accuracy > 0.7
    assert measured.copy_accuracy == 0.0  # every token changes in every frame
    assert unigram_nats(objective._tokens.tokens[:], 16) > 2 * measured.loss


def test_toto_measures_by_position(tmp_path):
    objective = toto_objective(tmp_path)
    measured = objective.measure(2)
    assert len(measured.per_position) == 16
    assert measured.windows == 16
    codes = torch.cat([objective._codes(objective._held_out, index) for index in range(2)])
    inputs, targets = SIZES.pack(codes)
    with torch.no_grad():
        losses = F.cross_entropy(objective.model(inputs).logits.transpose(1, 2), targets, reduction="none")[:, :-1]
    np.testing.assert_allclose(measured.per_position, losses.mean(0).numpy(), rtol=1e-5)
    assert measured.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert objective.validate()["loss"] == pytest.approx(measured.loss, rel=1e-6)


def test_toto_publishes_what_an_encoder_loads(tmp_path):
    objective = toto_objective(tmp_path)
    objective.publish(tmp_path / "published", objective.model.state_dict())
    model = from_pretrained(tmp_path / "published")
    assert isinstance(model, Toto)
    assert torch.equal(model.head.weight, objective.model.head.weight)
    encoder = load_encoder(tmp_path / "published", precision="fp32")
    assert encoder.encode(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 4, 32)


def test_unigram_nats():
    assert unigram_nats(np.array([3, 3, 3, 3]), 8) == pytest.approx(0.0)
    assert unigram_nats(np.arange(8), 8) == pytest.approx(math.log(8))
    assert unigram_nats(np.array([0, 0, 0, 1]), 2) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_mae_training_equals_a_plain_loop_over_transformers_own_model(tmp_path):
    """The loop, the schedule and the objective add nothing to ViTMAE and torch's AdamW."""
    from transformers import ViTMAEForPreTraining

    objective = mae_objective(tmp_path)
    plain = ViTMAEForPreTraining(objective.model.config)
    plain.load_state_dict(objective.model.state_dict())
    settings = loop_settings(6, warmup_steps=2)
    train(objective, settings, tmp_path / "run", device=CPU, dtype=torch.float32)

    matrices = [p for p in plain.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1.0, betas=(0.9, 0.95)
    )
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    fresh = mae_objective(tmp_path)
    losses = []
    for step, factor in enumerate([0.5, 1.0, *cosine]):
        frames = fresh.batch(step)
        pixels = ((frames.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        loss = plain(pixels, noise=fresh.noise(len(frames), step)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    logged = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    np.testing.assert_allclose(logged, losses, rtol=1e-5)
    for (name, ours), theirs in zip(objective.model.named_parameters(), plain.parameters(), strict=True):
        if "k_proj.bias" not in name:  # softmax ignores it: its gradient is rounding noise, which Adam blows up
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_mae_masks_depend_on_seed_and_step_only(tmp_path):
    objective = mae_objective(tmp_path)
    assert torch.equal(objective.noise(4, 4), objective.noise(4, 4))
    assert not torch.equal(objective.noise(4, 4), objective.noise(4, 5))
    other_seed = mae_objective(tmp_path, seed=4)
    assert not torch.equal(objective.noise(4, 4), other_seed.noise(4, 4))
    assert objective.validate() == objective.validate()


def test_mae_learns(tmp_path):
    objective = mae_objective(tmp_path, batch_size=16)
    before = objective.measure(2)
    trained = train(objective, loop_settings(150, lr=5e-3), tmp_path / "run", device=CPU, dtype=torch.float32)
    assert trained.validation["loss"] < 0.8 * before
    assert type(from_pretrained(tmp_path / "run" / "pretrained_model")).__name__ == "ViTMAEForPreTraining"


def test_mae_pictures_keep_what_is_visible(tmp_path):
    objective = mae_objective(tmp_path)
    frames = objective.batch(0)
    truth = frames.numpy()
    masked, painted = objective.inpaint(frames)
    assert masked.shape == painted.shape == truth.shape
    visible = np.array((masked == truth).all(-1))
    assert 0.2 < visible.mean() < 0.35  # a quarter, and hidden pixels that are grey by chance
    assert (painted == truth)[visible].mean() > 0.95
    np.testing.assert_array_equal(_to_images(_patches(frames.float() / 255, 4), 4), truth)


def test_mae_patches_lie_as_transformers_has_them(tmp_path):
    objective = mae_objective(tmp_path)
    images = torch.rand(2, 16, 16, 3)
    theirs = objective.model.patchify(images.permute(0, 3, 1, 2))
    torch.testing.assert_close(_patches(images, 4), theirs)


def test_tokenizer_learns_and_publishes_the_tokenizer_it_trained(tmp_path):
    objective = tokenizer_objective(tmp_path, plain_steps=20)
    before = objective.validate()["psnr_db"]
    trained = train(objective, loop_settings(150, lr=1e-2), tmp_path / "run", device=CPU, dtype=torch.float32)
    assert trained.validation["psnr_db"] > before + 3
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert lines[19]["train/codes_used"] == 0  # the codebook starts at step 20
    assert lines[20]["train/codes_used"] > 1
    published = load_dvae(tmp_path / "run" / "pretrained_model")
    frames = objective.batch(3)
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    same = published.encode(frames) == objective.model.eval().encode(pixels)
    assert same.float().mean() > 0.99  # ties at the boundary of two codes


def test_batches_of():
    assert batches_of(128, None, 4) == 32
    assert batches_of(3, None, 4) == 1
