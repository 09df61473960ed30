"""Does a variant change an episode as one, differently from the next, and never in the cache of the plain one?"""

from dataclasses import replace

import numpy as np
import pytest

from policies.augment import ImageChange
from policies.bc import BCConfig
from policies.encoder import open_encoder
from policies.features import cached_features
from policies.shown import image_change, shown_to_head

CHANGE = ImageChange(variant=1, shift_px=3, brightness=0.2, contrast=0.2)


def pictures(frames=4, side=16):
    return np.random.default_rng(0).integers(0, 256, size=(frames, side, side, 3), dtype=np.uint8)


def test_a_shift_moves_the_whole_episode_alike():
    images = pictures()
    shifted = [replace(CHANGE, brightness=0, contrast=0)(images, "front", episode) for episode in range(60)]
    places = set()
    for moved in shifted:
        found = [
            (rows, columns)
            for rows in range(-3, 4)
            for columns in range(-3, 4)
            if np.array_equal(moved[:, 3 + rows : 13 + rows, 3 + columns : 13 + columns], images[:, 3:13, 3:13])
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 20 and {3, -3} <= {rows for rows, _ in places}


def test_light_changes_within_its_limits_and_keeps_the_order_of_greys():
    images = np.full((2, 4, 4, 3), 100, dtype=np.uint8)
    images[:, 2:] = 150
    change = replace(CHANGE, shift_px=0)
    seen = np.stack([change(images, "front", episode) for episode in range(50)]).astype(float)
    assert (seen[:, 0] == seen[:, 1]).all()  # all frames of an episode alike
    dark, bright = seen[:, 0, 0, 0, 0], seen[:, 0, 2, 0, 0]
    assert (bright > dark).all() and len(set(dark)) > 10
    grey, distance = (dark + bright) / 2, bright - dark
    assert grey.min() >= 99 and grey.max() <= 151 and np.ptp(grey) > 20  # 125 by 0.8 to 1.2
    assert distance.min() >= 50 * 0.64 - 1 and distance.max() <= 50 * 1.44 + 1


def test_what_is_drawn_follows_from_variant_episode_and_camera():
    images = pictures()
    first = CHANGE(images, "front", 3)
    np.testing.assert_array_equal(first, CHANGE(images, "front", 3))
    for other in (
        CHANGE(images, "front", 4),
        CHANGE(images, "wrist", 3),
        replace(CHANGE, variant=2)(images, "front", 3),
    ):
        assert not np.array_equal(first, other)


@pytest.mark.render
def test_variants_have_their_own_cache_and_the_plain_one_stays(store, toto, tmp_path):
    encoder = open_encoder(toto)
    config = BCConfig(image_augmentations=2)
    plain = cached_features(tmp_path, encoder, store, ("front",), 2)["front"].copy()
    shown = shown_to_head(config, encoder, store, ("front",), 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and len(shown) == 3
    np.testing.assert_array_equal(shown[0]["front"], plain)
    assert not np.array_equal(shown[1]["front"], plain) and not np.array_equal(shown[1]["front"], shown[2]["front"])
    # The features of a variant are those of its pictures.
    start, stop = store.bounds(1)
    images = image_change(config, 2)(store.read("observation.images.front", start, stop), "front", 1)
    expected = encoder.encode_clip(images[None])[0].numpy()
    np.testing.assert_allclose(shown[2]["front"][start:stop], expected, atol=2e-2)


@pytest.mark.render
def test_a_blind_policy_has_no_variants(store, tmp_path):
    from policies.encoder import EncoderConfig

    encoder = open_encoder(EncoderConfig(name="none"))
    assert shown_to_head(BCConfig(image_augmentations=2), encoder, store, (), 2, tmp_path) == [{}]
