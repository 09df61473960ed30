"""Is Toto the LLaMA of transformers, in value and in gradient?"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from tests.models.small import CONFIG, codes, make
from toto_robot.models.hub import export_llama, llama_state
from toto_robot.models.streaming import open_stream


def test_logits_features_and_gradients_equal_llama() -> None:
    config = replace(CONFIG, context_frames=8)
    ours = make(config)
    theirs = export_llama(ours)
    inputs, targets = config.pack(codes(3, 8))
    output = ours(inputs, layers=range(config.layers + 1))
    reference = theirs(inputs, output_hidden_states=True)
    torch.testing.assert_close(output.logits, reference.logits, atol=1e-4, rtol=1e-4)
    for layer in range(config.layers):  # their last entry is after the final norm
        torch.testing.assert_close(output.features[layer], reference.hidden_states[layer], atol=1e-4, rtol=1e-4)
    for logits in (output.logits, reference.logits):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    assert export_llama(ours).config.max_position_embeddings == 1 + 8 * config.tokens_per_frame
    with torch.no_grad():  # put our gradients in a model's place, so that the exporter splits the fused ones
        for parameter in ours.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    gradients = llama_state(ours)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4 * scale, rtol=1e-4, msg=name)


@torch.no_grad()
def test_clip_streams_give_the_features_of_llama_on_the_clip() -> None:
    """What a user of the exported model gets: `reset` cuts clips of 8 frames, `recompute` slides one."""
    model = make(replace(CONFIG, context_frames=8))
    theirs, video = export_llama(model), codes(2, 13)
    for policy, clip in (("reset", video[:, 8:]), ("recompute", video[:, 5:]), ("staggered", video[:, 4:12])):
        stream = open_stream(policy, model, 2, layers=(2, 3))
        for t in range(12 if policy == "staggered" else 13):
            features = stream.step(video[:, t] + CONFIG.first_visual_id)
        hidden = theirs(model.pack(clip)[0], output_hidden_states=True).hidden_states
        for layer in (2, 3):
            expected = hidden[layer][:, -CONFIG.tokens_per_frame :]
            torch.testing.assert_close(features[layer], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generation_of_llama_with_its_own_cache_draws_the_same_codes() -> None:
    from toto_robot.models.generate import generate

    config = replace(CONFIG, context_frames=8)
    ours, video = make(config), codes(1, 2)
    made = generate(ours, video, 3, temperature=0)
    theirs = export_llama(ours).generate(
        config.pack(video)[0], max_new_tokens=12, do_sample=False,
        suppress_tokens=list(range(config.first_visual_id)),
    )  # fmt: skip
    assert torch.equal(made.flatten(1) + config.first_visual_id, theirs[:, 1:])
