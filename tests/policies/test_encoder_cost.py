"""Does a frame cost what the sizes of the encoder say?"""

import pytest

from policies.encoder_cost import encoder_cost
from toto_robot.encoders.load import load_encoder


def test_a_longer_context_costs_its_attention_and_nothing_else() -> None:
    costs = [encoder_cost(load_encoder("toto", path="toto-small-sim", context_frames=n)) for n in (1, 5)]
    P, D, layers = 64, 256, 3
    extra = layers * 2 * 2 * P * (4 * P) * D  # scores and sums over four more frames
    gained = 1e9 * (costs[1]["gflops_per_frame"] - costs[0]["gflops_per_frame"])
    assert gained == pytest.approx(extra, rel=0.01)
    assert costs[0]["processor_ms_per_frame"] > 0 and costs[0]["ms_per_frame"][0] <= costs[0]["ms_per_frame"][2]


def test_no_vision_costs_nothing() -> None:
    cost = encoder_cost(load_encoder("none"))
    assert cost["gflops_per_frame"] == cost["parameters"] == cost["processor_ms_per_frame"] == 0
