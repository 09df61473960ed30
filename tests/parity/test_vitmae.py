"""Are the baseline's features those of transformers' own forward?"""

from __future__ import annotations

import pytest
import torch

from tests.models.small import MAE
from toto_robot.models.mae import build_mae, mae_features, normalise_pixels
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import Toto


@torch.no_grad()
def test_features_of_every_layer_equal_an_unmasked_forward_in_raster_order() -> None:
    model = build_mae(MAE, seed=1).eval()
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = build_mae(MAE, seed=1).eval()
    theirs.config.mask_ratio = 0.0
    noise = torch.arange(4.0).expand(3, -1)  # patches are kept in the order of the noise
    reference = theirs.vit(pixels, noise=noise, output_hidden_states=True)
    features = mae_features(model, pixels, range(MAE.layers + 1))
    for layer in range(MAE.layers):
        expected = reference.hidden_states[layer][:, 1:]
        torch.testing.assert_close(features[layer], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(mae_features(model, pixels, [layer])[layer], features[layer])  # a pass that stops early
    torch.testing.assert_close(features[MAE.layers], reference.last_hidden_state[:, 1:], atol=1e-5, rtol=1e-5)
    assert model.config.mask_ratio == MAE.mask_ratio  # still fit for pretraining
    with pytest.raises(ValueError, match=r"0\.\.2"):
        mae_features(model, pixels, [1, 3])


@torch.no_grad()
def test_a_patch_stands_where_it_lies_in_the_picture() -> None:
    model, images = build_mae(MAE).eval(), torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    brighter = images.clone()
    brighter[:, 8:, :8] = 255  # bottom left: patch 2 of 4 in raster order
    a, b = (mae_features(model, normalise_pixels(x), [0])[0] for x in (images, brighter))
    assert ((a - b).abs().amax(dim=(0, 2)) > 1e-6).tolist() == [False, False, True, False]


def test_pixels_are_normalised_as_the_image_processor_does() -> None:
    from transformers.image_transforms import normalize

    from toto_robot.models.mae import IMAGENET_MEAN, IMAGENET_STD

    images = torch.randint(256, (2, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for ours, image in zip(normalise_pixels(images), images, strict=True):
        expected = normalize(image.permute(2, 0, 1).numpy() / 255, IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(ours, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)


def test_nano_sizes_match() -> None:
    ours = sum(p.numel() for p in Toto(preset("nano"), device="meta").blocks.parameters())
    theirs = sum(p.numel() for p in build_mae(mae_preset("nano")).vit.layers.parameters())
    assert theirs / ours == pytest.approx(1.0, abs=0.01)
    assert mae_preset("nano").tokens_per_frame == preset("nano").tokens_per_frame
    assert mae_preset("nano").width == preset("nano").width


def test_a_fresh_model_has_the_published_positions() -> None:
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    model = build_mae(mae_preset("nano"))
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        width = table.shape[-1]
        theirs = build_2d_sinusoidal_position_embedding(8, 8, width, cls_token=True)
        published = torch.cat([theirs[:, width // 2 :], theirs[:, : width // 2]], dim=1)  # MAE's code swaps the axes
        torch.testing.assert_close(table[0], published, atol=1e-6, rtol=0)
        assert table.std() > 0.1
        assert not table.requires_grad
