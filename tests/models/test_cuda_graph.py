"""Does a recorded step give what the step gives?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.encoders.small import PX, frames, save_toto
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.cuda_graph import CudaGraph


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("streaming", ["ring", "reset", "staggered"])
def test_a_recorded_stream_equals_the_plain_one(tmp_path: Path, streaming: str) -> None:
    encoder = load_encoder(save_toto(tmp_path), device="cuda", precision="fp32", layer="1+3", streaming=streaming)
    assert isinstance(encoder, TotoEncoder)
    plain, recorded = encoder.stream(3), encoder.stream(3, cuda_graph=True)
    clip = frames(3 * 12).reshape(3, 12, PX, PX, 3)
    resets = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.2
    kept = []
    for t in range(12):
        kept.append([stream.step(clip[:, t], resets[:, t]) for stream in (plain, recorded)])
    for expected, found in kept:  # only now: no step may have written over the result of another
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_graph_on_the_cpu_is_refused(tmp_path: Path) -> None:
    encoder = load_encoder(save_toto(tmp_path), precision="fp32")
    assert isinstance(encoder, TotoEncoder)
    with pytest.raises(ValueError, match=r"need inputs on a GPU, got cpu"):
        encoder.stream(2, cuda_graph=True)
    with pytest.raises(ValueError, match=r"got cpu, cpu"):
        CudaGraph(torch.add, torch.zeros(1), torch.zeros(1))
