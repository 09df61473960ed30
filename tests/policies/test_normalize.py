"""Does normalisation invert, and does it refuse what would fail silently?"""

import json

import numpy as np
import pytest

from policies.normalize import CLIP, Normalizer

NAMES = ("x", "y", "rest")


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    moving = generator.normal([1.0, -50.0], [0.1, 20.0], size=(200, 2))
    return np.concatenate([moving, np.full((200, 1), 7.0)], axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", ["mean_std", "min_max", "none"])
def test_restore_inverts_normalize(values, kind):
    normalizer = Normalizer.fit(values, NAMES, kind=kind)
    inside = values if kind != "none" else np.clip(values, -CLIP, CLIP)
    np.testing.assert_allclose(normalizer.restore(normalizer.normalize(inside)), inside, rtol=1e-5, atol=1e-5)


def test_mean_std_gives_unit_scale_and_keeps_a_resting_dimension_at_zero(values):
    normal = Normalizer.fit(values, NAMES).normalize(values)
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std(axis=0), [1, 1, 0], atol=1e-4)


def test_values_far_out_are_clipped_unless_they_are_left_as_they_are(values):
    far = 1e4 * np.ones((1, values.shape[1]), np.float32)
    names = [str(index) for index in range(values.shape[1])]
    assert np.abs(Normalizer.fit(values, names).normalize(far)).max() == 10
    np.testing.assert_array_equal(Normalizer.fit(values, names, kind="none").normalize(far), far)


def test_min_max_reaches_minus_one_and_one(values):
    normal = Normalizer.fit(values, NAMES, kind="min_max").normalize(values)
    np.testing.assert_allclose(normal[:, :2].min(axis=0), -1, atol=1e-4)
    np.testing.assert_allclose(normal[:, :2].max(axis=0), 1, atol=1e-4)


def test_the_floor_keeps_a_still_axis_small(values):
    assert Normalizer.fit(values, NAMES, floor=0.5).scale[2] == 0.5


def test_json_keeps_every_bit(values):
    normalizer = Normalizer.fit(values, NAMES)
    again = Normalizer.from_dict(json.loads(json.dumps(normalizer.as_dict())))
    assert np.array_equal(again.offset, normalizer.offset) and np.array_equal(again.scale, normalizer.scale)
    assert again.offset.dtype == np.float32


def test_nan_is_named(values):
    values[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in the demonstrations: y "):
        Normalizer.fit(values, NAMES)
    good = Normalizer.fit(np.nan_to_num(values), NAMES)
    with pytest.raises(ValueError, match="NaN or infinity in the observation: y "):
        good.normalize(values[3])


def test_a_missing_statistic_is_an_error(values):
    normalizer = Normalizer.fit(values, NAMES)
    normalizer.require(NAMES)
    with pytest.raises(ValueError, match="no normaliser statistic for z"):
        normalizer.require(("x", "y", "z"))
    with pytest.raises(ValueError, match="in this order"):
        normalizer.require(("y", "x", "rest"))
    stored = normalizer.as_dict()
    stored["scale"].pop()
    with pytest.raises(ValueError, match="expected 3 offsets"):
        Normalizer.from_dict(stored)
    del stored["scale"]
    with pytest.raises(ValueError, match="no 'scale'"):
        Normalizer.from_dict(stored)


def test_another_width_is_refused(values):
    with pytest.raises(ValueError, match=r"expected \(..., 3\) values"):
        Normalizer.fit(values, NAMES).normalize(values[:, :2])
