"""Do the options of `pretrain` come out as the loop's and the model's settings, and are wrong ones refused by name?"""

from __future__ import annotations

from typing import Any

import pytest

from toto_robot.models.presets import preset
from toto_robot.models.toto import TotoConfig
from toto_robot.pretrain.config import PretrainConfig


def test_nothing_said_is_what_it_was() -> None:
    config = PretrainConfig()
    assert config.sizes() == preset("nano")
    loop = config.loop()
    assert (loop.accumulate, loop.ema_decay, loop.wsd_decay) == (1, None, None)
    assert config.computed_at_once() == config.recipe().batch_size == 4


def test_the_papers_batch_in_tokens_is_reached_by_accumulation() -> None:
    config = PretrainConfig(model="base", batch_tokens=2**20, micro_batch=8)
    assert config.recipe().batch_size == 256
    assert (config.computed_at_once(), config.loop().accumulate) == (8, 32)
    high = PretrainConfig(
        model="large", batch_tokens=2**20, micro_batch=4, image_px=256, window_frames=4, start="run", tokenizer="dvae"
    )
    assert (high.recipe().batch_size, high.loop().accumulate) == (256, 64)


def test_mup_takes_the_learning_rate_of_its_base_and_the_rest_of_the_model() -> None:
    plain, mup = PretrainConfig(model="base"), PretrainConfig(model="base", mup_base="small")
    assert mup.loop().lr == PretrainConfig(model="small").loop().lr != plain.loop().lr
    assert mup.loop().steps == plain.loop().steps
    sizes = mup.sizes()
    assert isinstance(sizes, TotoConfig)
    assert (sizes.mup_base_width, sizes.mup_base_head_dim) == (512, 64)
    assert PretrainConfig(model="base", mup_base="small", lr=0.5).loop().lr == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "micro_batch": 4}, "expected micro_batch to divide batch_size 6, got 4"),
        ({"micro_batch": 0}, "expected micro_batch to divide batch_size 4, got 0"),
        ({"batch_tokens": 5000}, "multiple of the 1024 of a window, such as 4096, got 5000"),
        ({"batch_tokens": 4096, "batch_size": 4}, "give batch_size or batch_tokens, not both"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"start": "run"}, "start=run needs the tokenizer of its codes: tokenizer=run/tokenizer"),
        ({"mup_base": "huge"}, "no Toto preset 'huge'"),
        ({"ema_decay": 1.0}, "expected ema_decay between 0 and 1"),
        ({"model": "mae_nano", "rope_base": 5e4, "start": "run"}, "start, rope_base change a Toto; mae_nano"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)
