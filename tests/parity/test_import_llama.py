"""Does a LLaMA folder that transformers wrote become a Toto with the same logits, and are others refused?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.small import CONFIG, codes, make
from toto_robot.models.hub import export_llama, from_pretrained, import_llama, save_pretrained
from toto_robot.models.mup import with_mup

SIZES = {
    "vocab_size": 24, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 33, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
VIDEO = {"tokens_per_frame": 4, "frames": 8, "image_px": 16}


def write(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """Write a random LLaMA whose attention is far from uniform, as transformers does."""
    options = {key: changes.pop(key) for key in ("max_shard_size",) if key in changes}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(folder, **options)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},  # grouped heads
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}},
        {"max_shard_size": "20KB"},  # several files and their index
    ],
)
def test_a_foreign_llama_gives_the_same_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = write(tmp_path, **changes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in changes)
    ours = import_llama(tmp_path, **VIDEO)
    assert ours.config.visual_vocab == 20 and not ours.training
    ids = ours.pack(codes(3, 8))[0]
    expected = theirs(ids).logits
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_there_and_back_is_the_same_model(tmp_path: Path) -> None:
    model = make(replace(CONFIG, context_frames=5, rope_base=20_000.0))
    exported = export_llama(model)
    exported.save_pretrained(tmp_path)
    again = import_llama(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    # transformers itself reads the folder, our entry in its configuration included
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    ids = model.pack(codes(2, 5))[0]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    save_pretrained(again, tmp_path / "ours")
    assert from_pretrained(tmp_path / "ours").config == model.config  # type: ignore[comparison-overlap]


@torch.no_grad()
def test_a_mup_model_comes_back_as_the_same_function_without_mup(tmp_path: Path) -> None:
    base = replace(CONFIG, context_frames=8)
    model = make(with_mup(base, replace(base, width=16, heads=2)))
    export_llama(model).save_pretrained(tmp_path)
    again = import_llama(tmp_path)
    assert again.config == base != model.config
    ids = model.pack(codes(2, 8))[0]
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(again.head.weight * again.norm.weight, model.head.weight * model.norm.weight)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    theirs = write(tmp_path / "full").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "half")
    ours = import_llama(tmp_path / "half", **VIDEO)
    assert ours.head.weight.dtype == torch.float32
    assert torch.equal(ours.head.weight, theirs.lm_head.weight.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings, Toto has a head with weights of its own"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', Toto has silu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"head_dim": 16}, "head_dim 16"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"model_type": "mistral"}, "'llama'.*'mistral'"),
        ({"max_position_embeddings": 32}, "for 32 positions.*needs 33: give fewer frames"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"intermediate_size": 48}, r"gate_proj\.weight is \(40, 32\) in the file, \(48, 32\)"),
        ({"num_hidden_layers": 2}, r"holds model\.layers\.2"),
        ({"vocab_size": 3}, "3 ids, of which 4 are special"),
    ],
)
def test_what_toto_has_no_place_for_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        import_llama(tmp_path, **VIDEO)


def test_layouts_that_are_missing_or_contradict_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match="give import_llama tokens_per_frame, image_px"):
        import_llama(tmp_path, frames=8)
    with pytest.raises(ValueError, match="expected toto or mae; import_llama reads it"):
        from_pretrained(tmp_path)
    export_llama(make()).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="itself says tokens_per_frame 4; leave tokens_per_frame out"):
        import_llama(tmp_path / "ours", tokens_per_frame=16)
    path = tmp_path / "ours" / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "rms_norm_eps": 1e-3}))
    with pytest.raises(ValueError, match=r"contradicts itself: norm_eps is 0\.001, and 1e-05 in 'toto'"):
        import_llama(tmp_path / "ours")
    path.write_text(json.dumps({**good, "toto": {"name": "x"}}))
    with pytest.raises(ValueError, match=r"entry 'toto'.*missing"):
        import_llama(tmp_path / "ours")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no safetensors weights; pytorch_model\.bin is pickled"):
        import_llama(tmp_path, **VIDEO)
