"""Does a student learn its teacher's codes, cheaper, behind the teacher's own decoder?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tokenizers.test_vq import batch
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, load_dvae, save_dvae
from toto_robot.tokenizers.student import make_student, student_config, student_loss

SIZES = DVAEConfig(name="teacher", hidden=16, blocks_per_group=2, vocab=12, decoder_init=8)


@torch.no_grad()
def teacher() -> DVAE:
    """Return a random teacher whose codes vary over `frames`."""
    model = DVAE(SIZES, generator=torch.Generator().manual_seed(3)).eval()
    logits = model.encoder(0.8 * batch(0) + 0.1)
    output = model.encoder.blocks.output.conv
    output.bias -= logits.mean(dim=(0, 2, 3))
    return model


def frames(step: int) -> torch.Tensor:
    return (batch(step) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_a_student_learns_the_codes_and_publishes_like_any_other(tmp_path: Path) -> None:
    master = teacher()
    student = make_student(master, student_config(SIZES), generator=torch.Generator().manual_seed(0))
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in trainable) == sum(p.numel() for p in student.encoder.parameters())
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    reports = []
    for step in range(60):
        reports.append(student_loss(student, master, frames(step), soft=0.0))
        optimizer.zero_grad()
        reports[-1]["loss"].backward()
        optimizer.step()
    codes, wanted = student.encode(frames(900)), master.encode(frames(900))
    _, counts = wanted.unique(return_counts=True)
    assert (codes == wanted).float().mean() > counts.max() / wanted.numel() + 0.1  # more than the commonest code
    assert reports[-1]["loss"] < 0.7 * reports[0]["loss"]
    assert torch.equal(student.decode(wanted), master.decode(wanted))
    save_dvae(student, tmp_path)
    loaded = load_dvae(tmp_path)
    assert loaded.config == student_config(SIZES) and torch.equal(loaded.encode(frames(900)), codes)


def test_soft_targets_are_the_teachers_probabilities() -> None:
    master = teacher()
    student = make_student(master, student_config(SIZES), generator=torch.Generator().manual_seed(0))
    reports = {soft: student_loss(student, master, frames(0), soft) for soft in (0.0, 0.25, 1.0)}
    mapped = 0.8 * frames(0).permute(0, 3, 1, 2).float() / 255 + 0.1
    with torch.no_grad():
        log_student, teachers = student.encoder(mapped).log_softmax(1), master.encoder(mapped).softmax(1)
    assert reports[1.0]["loss"].item() == pytest.approx(-(teachers * log_student).sum(1).mean().item(), rel=1e-4)
    mixed = 0.75 * reports[0.0]["loss"] + 0.25 * reports[1.0]["loss"]
    assert reports[0.25]["loss"].item() == pytest.approx(mixed.item(), rel=1e-5)


def test_sizes_of_a_student() -> None:
    published = DVAEConfig(name="dvae", hidden=256, blocks_per_group=2, vocab=8192, decoder_init=128)
    small = student_config(published)
    assert (small.hidden, small.blocks_per_group, small.decoder_sizes) == (64, 1, (256, 2))
    assert (small.vocab, small.decoder_init, small.encoder) == (8192, 128, "dalle")
    again = student_config(small, 32)  # a student may teach: the decoder is still the first one's
    assert (again.hidden, again.decoder_sizes) == (32, (256, 2))
    with pytest.raises(ValueError, match="narrower than its teacher's 256, got width=256"):
        student_config(published, 256)
