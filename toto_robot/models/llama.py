"""How does a LLaMA folder of transformers become a Toto? (`hub.export_llama` is the way there.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toto_robot import weights
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.run_folder import read_json

OWN_ENTRY = "toto"  # of a LLaMA's config.json: keeps what LLaMA has no name for
_INDEX = "model.safetensors.index.json"  # of weights in several files


def own_entry(config: TotoConfig) -> dict[str, Any]:
    """Return what an exported LLaMA remembers of ours; not muP, whose factors the exported weights contain."""
    return {key: value for key, value in asdict(config).items() if not key.startswith("mup_")}


def import_llama(
    folder: Path | str, *, tokens_per_frame: int | None = None, frames: int | None = None, image_px: int | None = None
) -> Toto:
    """Load a folder that LlamaForCausalLM.save_pretrained wrote (config.json, safetensors) as the same function.

    A folder that `export_llama` made needs nothing else. For another LLaMA say how its sequences are to be read: ids
    0..3 are the special ones, the rest visual; weights become float32. Grouped key and value heads are repeated for
    their queries: the same logits, more weights. Raises ValueError for what Toto has no place for: scaled or partial
    rotary positions, tied embeddings, biases, another activation, quantised or pickled weights, too few positions.
    """
    folder = Path(folder)
    source = folder / weights.CONFIG_FILE
    theirs = weights.read_config(folder, "llama")
    _check_llama(theirs, source)
    layout = {"tokens_per_frame": tokens_per_frame, "frames": frames, "image_px": image_px}
    config = _own_config(theirs, layout, source) if OWN_ENTRY in theirs else _foreign_config(theirs, layout, source)
    stored = _llama_weights(folder)
    _repeat_grouped_heads(stored, theirs)
    model = Toto(config)
    weights.check_fit(_expected(config), stored, str(folder))
    model.load_state_dict(_fused(stored, config.layers))
    return model.eval()


def _check_llama(theirs: Mapping[str, Any], source: Path) -> None:
    """Raise ValueError at the first setting that makes it another function than Toto."""
    # transformers 5 writes rope_parameters, before it was rope_theta and rope_scaling
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    heads = theirs["num_attention_heads"]
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // heads
    partial = rope.get("partial_rotary_factor", theirs.get("partial_rotary_factor")) or 1.0
    wrong = [
        (kind != "default", f"rope_type {kind!r}", "rotary positions without scaling"),
        (partial != 1.0, f"partial_rotary_factor {partial}", "rotary positions on the whole head"),
        (theirs.get("tie_word_embeddings", False), "tie_word_embeddings", "a head with weights of its own"),
        (theirs.get("hidden_act", "silu") != "silu", f"hidden_act {theirs.get('hidden_act')!r}", "silu (SwiGLU)"),
        (theirs.get("attention_bias", False), "attention_bias", "projections without bias"),
        (theirs.get("mlp_bias", False), "mlp_bias", "projections without bias"),
        (head_dim * heads != theirs["hidden_size"], f"head_dim {head_dim}", f"hidden_size / {heads} heads"),
        ("quantization_config" in theirs, "quantised weights", "float weights; dequantise and save them first"),
    ]
    for is_wrong, what, expected in wrong:
        if is_wrong:
            raise ValueError(f"{source} cannot become a Toto: it has {what}, Toto has {expected}")


def _own_config(theirs: Mapping[str, Any], layout: Mapping[str, int | None], source: Path) -> TotoConfig:
    """Return the configuration that `export_llama` kept; ValueError where the sizes beside it were changed."""
    try:
        config = TotoConfig(**theirs[OWN_ENTRY])
    except TypeError as error:
        raise ValueError(f"{source}, entry {OWN_ENTRY!r}: {error} (of another version?)") from error
    if changed := [name for name, value in layout.items() if value not in (None, getattr(config, name))]:
        raise ValueError(f"{source} itself says {changed[0]} {getattr(config, changed[0])}; leave {changed[0]} out")
    sizes = {**_llama_sizes(theirs), "vocab_size": theirs["vocab_size"]}
    for name, value in sizes.items():
        if getattr(config, name) != value:
            own = getattr(config, name)
            raise ValueError(f"{source} contradicts itself: {name} is {value}, and {own} in {OWN_ENTRY!r}")
    return config


def _foreign_config(theirs: Mapping[str, Any], layout: Mapping[str, int | None], source: Path) -> TotoConfig:
    """Return a configuration for a LLaMA that knows nothing of frames."""
    if missing := [name for name, value in layout.items() if value is None]:
        raise ValueError(f"{source} does not say how video is laid out; give import_llama {', '.join(missing)}")
    given = {name: value for name, value in layout.items() if value is not None}
    needed, there = 1 + given["frames"] * given["tokens_per_frame"], theirs.get("max_position_embeddings")
    if there is not None and needed > there:
        raise ValueError(f"{source} was made for {there} positions, {given} needs {needed}: give fewer frames")
    first = TotoConfig.first_visual_id
    if theirs["vocab_size"] <= first:
        raise ValueError(f"{source} has {theirs['vocab_size']} ids, of which {first} are special: none is left")
    return TotoConfig(
        name="llama", visual_vocab=theirs["vocab_size"] - first, context_frames=given["frames"],
        **given, **_llama_sizes(theirs),
    )  # fmt: skip


def _llama_sizes(theirs: Mapping[str, Any]) -> dict[str, Any]:
    rope = theirs.get("rope_parameters") or theirs
    return {
        "width": theirs["hidden_size"], "layers": theirs["num_hidden_layers"], "heads": theirs["num_attention_heads"],
        "ffn_width": theirs["intermediate_size"], "norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "rope_base": float(rope.get("rope_theta", 10_000.0)),
    }  # fmt: skip


def _llama_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors in float32, from one file or from those that the index names."""
    index = folder / _INDEX
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [weights.WEIGHTS_FILE]
    for name in names:
        if not (folder / name).is_file():
            pickled = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
            advice = f"; {pickled} is pickled, which is not read: save it as safetensors" if pickled else ""
            raise ValueError(f"{folder / name} is missing: the folder holds no safetensors weights{advice}")
    stored = {key: tensor.float() for name in names for key, tensor in load_file(folder / name).items()}
    # Old files keep the rotary frequencies, which follow from the configuration.
    return {key: tensor for key, tensor in stored.items() if not key.endswith("rotary_emb.inv_freq")}


def _repeat_grouped_heads(stored: dict[str, Tensor], theirs: Mapping[str, Any]) -> None:
    """Give every query head a key and value head of its own, in place; ValueError where they do not divide."""
    heads, shared = theirs["num_attention_heads"], theirs.get("num_key_value_heads") or theirs["num_attention_heads"]
    if heads % shared:
        raise ValueError(f"{heads} attention heads cannot share {shared} key and value heads")
    for name, tensor in stored.items():
        if heads != shared and name.endswith(("k_proj.weight", "v_proj.weight")):
            grouped = tensor.unflatten(0, (shared, -1))  # (H_kv, K, D)
            stored[name] = grouped.repeat_interleave(heads // shared, dim=0).flatten(0, 1)


def _expected(config: TotoConfig) -> dict[str, Tensor]:
    """Return tensors without memory, of the names and shapes that a LLaMA of these sizes has."""
    D, V, F = config.width, config.vocab_size, config.ffn_width
    shapes = {"model.embed_tokens": (V, D), "model.norm": (D,), "lm_head": (V, D)}
    for index in range(config.layers):
        name = f"model.layers.{index}."
        shapes |= {f"{name}{norm}": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{name}self_attn.{part}_proj": (D, D) for part in "qkvo"}
        shapes |= {f"{name}mlp.gate_proj": (F, D), f"{name}mlp.up_proj": (F, D), f"{name}mlp.down_proj": (D, F)}
    return {f"{name}.weight": torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _fused(stored: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the weights under our names: `hub.llama_state` backwards."""
    state = {"embed.weight": stored["model.embed_tokens.weight"], "norm.weight": stored["model.norm.weight"]}
    state["head.weight"] = stored["lm_head.weight"]
    for index in range(layers):
        ours, name = f"blocks.{index}.", f"model.layers.{index}."
        qkv = [stored[f"{name}self_attn.{part}_proj.weight"] for part in "qkv"]
        gate_up = [stored[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        state |= {
            ours + "attention_norm.weight": stored[name + "input_layernorm.weight"],
            ours + "attention.qkv.weight": torch.cat(qkv),
            ours + "attention.out.weight": stored[name + "self_attn.o_proj.weight"],
            ours + "ffn_norm.weight": stored[name + "post_attention_layernorm.weight"],
            ours + "ffn.gate_up.weight": torch.cat(gate_up),
            ours + "ffn.down.weight": stored[name + "mlp.down_proj.weight"],
        }
    return state
