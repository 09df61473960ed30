"""How are models saved, loaded and handed to other people's code?"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toto_robot import packaged, weights
from toto_robot.models.llama import OWN_ENTRY, own_entry
from toto_robot.models.llama import import_llama as import_llama  # the way back from export_llama
from toto_robot.models.mae import MAEConfig, build_mae, mae_config
from toto_robot.models.model_card import CARD_FILE, ModelCard
from toto_robot.models.mup import attention_scale
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.run_folder import write_text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def save_pretrained(model: nn.Module, folder: Path | str, card: ModelCard | None = None) -> None:
    """Write a Toto or MAE model to `folder` as config.json ("model_type": "toto" or "mae") and model.safetensors.

    With a card also README.md: what the model is, what it saw, how to load it.
    """
    description = describe(model)
    weights.write_model(Path(folder), description, model.state_dict())
    if card is not None:
        write_text(Path(folder) / CARD_FILE, card.text(description, parameter_count(model)))


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def from_pretrained(folder: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Load what `save_pretrained` wrote, or packaged weights by their name, in eval mode and float32.

    Raises ValueError when the folder is missing or holds something else, and names the first tensor of a wrong size.
    """
    folder = packaged.model_folder(folder)
    config = weights.read_config(folder)
    model_type = config.pop("model_type")
    model: nn.Module
    if model_type == "toto":
        model = Toto(_read(TotoConfig, config, folder))
    elif model_type == "mae":
        model = build_mae(_read(MAEConfig, config, folder))
    else:
        advice = "; import_llama reads it" if model_type == "llama" else ""
        raise ValueError(f"{folder} holds a model of type {model_type!r}; expected toto or mae{advice}")
    weights.read_weights(folder, model)
    return model.to(device).eval()


def fingerprint(model: nn.Module) -> str:
    """Return the hex SHA-256 of a model's configuration and weights."""
    return weights.fingerprint(describe(model), model.state_dict())


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what config.json says of a Toto or MAE model."""
    if isinstance(model, Toto):
        told = {key: value for key, value in asdict(model.config).items() if value is not None}  # None: muP is off
        return {"model_type": "toto", **told}
    # By name: importing transformers takes seconds. Of its bases too: a model divided over processes is of a subclass.
    if "ViTMAEForPreTraining" in {kind.__name__ for kind in type(model).__mro__}:
        return {"model_type": "mae", **asdict(mae_config(model))}  # type: ignore[arg-type]
    raise ValueError(f"expected a Toto or a ViTMAEForPreTraining, got {type(model).__name__}")


def export_llama(model: Toto) -> LlamaForCausalLM:
    """Return the same function as a transformers LlamaForCausalLM (float32); its `save_pretrained` writes a folder.

    Equal up to `context_frames` frames; beyond, ours windows and LLaMA does not. `max_position_embeddings` says where.
    The entry "toto" of its configuration keeps the rest of ours, so that `import_llama` brings the same model back.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.ffn_width,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
            max_position_embeddings=1 + config.context_frames * config.tokens_per_frame, rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base}, tie_word_embeddings=False,
            attention_bias=False, mlp_bias=False, bos_token_id=config.start_video_id, eos_token_id=config.end_id,
            pad_token_id=0, **{OWN_ENTRY: own_entry(config)},
        )
    )  # fmt: skip
    theirs.load_state_dict(llama_state(model))
    return theirs.eval()


def llama_state(model: Toto) -> dict[str, Tensor]:
    """Return the weights under the names of LlamaForCausalLM, fused projections split, muP's multipliers folded in."""
    final_norm = model.norm.weight * model.norm.multiplier
    state = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": final_norm}
    scale = attention_scale(model.config)
    query_scale = 1.0 if scale is None else scale * math.sqrt(model.config.width // model.config.heads)
    state["lm_head.weight"] = model.head.weight
    for index, block in enumerate(model.blocks):
        ours, name = dict(block.named_parameters()), f"model.layers.{index}."
        q, k, v = ours["attention.qkv.weight"].chunk(3)
        gate, up = ours["ffn.gate_up.weight"].chunk(2)
        state |= {
            name + "input_layernorm.weight": ours["attention_norm.weight"],
            name + "self_attn.q_proj.weight": q * query_scale,
            name + "self_attn.k_proj.weight": k,
            name + "self_attn.v_proj.weight": v,
            name + "self_attn.o_proj.weight": ours["attention.out.weight"],
            name + "post_attention_layernorm.weight": ours["ffn_norm.weight"],
            name + "mlp.gate_proj.weight": gate,
            name + "mlp.up_proj.weight": up,
            name + "mlp.down_proj.weight": ours["ffn.down.weight"],
        }
    return {name: tensor.detach() for name, tensor in state.items()}


def _read(kind: Any, values: dict[str, Any], folder: Path) -> Any:
    """Build a config dataclass from JSON; ValueError names what is missing or unknown."""
    known = {field.name for field in fields(kind)}
    if unknown := values.keys() - known:
        raise ValueError(f"{folder / weights.CONFIG_FILE} has unknown entries {sorted(unknown)} (of a newer version?)")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{folder / weights.CONFIG_FILE} is incomplete: {error}") from error
