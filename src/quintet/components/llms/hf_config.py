"""Published `config.json` of the four families ⇄ `Decoder.Config`.

Keys that are absent mean the family's defaults, as transformers has them: a LLaVA folder writes only what differs.
What our decoder would compute differently is refused, never ignored.
"""

from collections.abc import Mapping
from typing import Any

from quintet.components.llms.decoder import Decoder
from quintet.components.llms.rope import Rope
from quintet.errors import ConfigError, nearest

__all__ = ["from_hf", "to_hf"]

_LLAMA: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_QWEN2 = _LLAMA | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA
    | {
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128},
}
"""Read from the config classes of transformers 5.23."""


def from_hf(config: Mapping[str, Any]) -> Decoder.Config:
    """The decoder that a `config.json` describes.

    Raises:
        ConfigError: a family, activation, bias or rotary scaling that our decoder does not have.
    """
    family = config.get("model_type")
    if family not in _DEFAULTS:
        raise ConfigError(f"model_type {family!r} is not one of our decoder's{nearest(str(family), _DEFAULTS)}")
    found = _DEFAULTS[family] | {name: value for name, value in config.items() if value is not None}
    if "sliding_window" in config and config["sliding_window"] is None:
        found["sliding_window"] = None
    if found["hidden_act"] != "silu":
        raise ConfigError(f"hidden_act is {found['hidden_act']!r}; our decoder has silu; use HFCausal for others")
    for name in ("attention_bias", "mlp_bias"):
        if found.get(name):
            raise ConfigError(f"{name} is set; our decoder has no such biases; use HFCausal")
    return Decoder.Config(
        family=family,
        vocab=found["vocab_size"],
        dim=found["hidden_size"],
        depth=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        kv_heads=found.get("num_key_value_heads", found["num_attention_heads"]),
        ffn=found["intermediate_size"],
        head_dim=_head_dim(found),
        norm_eps=float(found["rms_norm_eps"]),
        rope=_rope(found),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tie_head=found["tie_word_embeddings"],
        sliding_window=_window(found),
        max_positions=found["max_position_embeddings"],
        source=config.get("_name_or_path") or None,
    )


def to_hf(cfg: Decoder.Config) -> dict[str, Any]:
    """The `config.json` of transformers for this decoder; the inverse of `from_hf`, all keys written."""
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[cfg.family]
    config: dict[str, Any] = {
        "model_type": cfg.family,
        "architectures": [f"{name}ForCausalLM"],
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "intermediate_size": cfg.ffn,
        "head_dim": cfg.head_width,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": cfg.tie_head,
        "max_position_embeddings": cfg.max_positions,
        "rope_parameters": _rope_json(cfg.rope),
    }
    if cfg.qkv_bias != (cfg.family == "qwen2") or cfg.qk_norm != (cfg.family == "qwen3"):
        raise ConfigError(f"qkv_bias {cfg.qkv_bias} and qk_norm {cfg.qk_norm} are no {name}; transformers has no such")
    if cfg.family == "qwen2" and cfg.head_width * cfg.heads != cfg.dim:
        raise ConfigError("transformers' Qwen2 splits its width evenly over the heads; head_dim must be dim / heads")
    if cfg.family != "llama":
        config["sliding_window"] = cfg.sliding_window
    elif cfg.sliding_window is not None:
        raise ConfigError("transformers' Llama has no sliding window; the family that has is mistral")
    if cfg.family in ("qwen2", "qwen3") and cfg.sliding_window is not None:
        config |= {"use_sliding_window": True, "max_window_layers": 0}
    return config


def _head_dim(found: Mapping[str, Any]) -> int | None:
    width = found.get("head_dim")
    if found["hidden_size"] % found["num_attention_heads"] == 0:
        even = found["hidden_size"] // found["num_attention_heads"]
        return None if width in (None, even) else width
    return width


def _window(found: Mapping[str, Any]) -> int | None:
    """Tokens of the sliding window, where every layer has it; Qwen's needs a flag and starts at a layer."""
    family, layers = found["model_type"], found["num_hidden_layers"]
    if family == "llama":
        return None
    if family == "mistral":
        return found["sliding_window"]
    if not found.get("use_sliding_window", False):
        return None
    window = found.get("sliding_window", 4096)
    kinds = found.get("layer_types")
    if kinds is None:
        full = found.get("max_window_layers", 28)
        kinds = ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    if len(set(kinds)) > 1:
        raise ConfigError(
            f"sliding windows in {kinds.count('sliding_attention')} of {layers} layers; our decoder has one for all;"
            " use HFCausal"
        )
    return window if kinds[0] == "sliding_attention" else None


def _rope(found: Mapping[str, Any]) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    given: dict[str, Any] = dict(found.get("rope_scaling") or {}) | dict(found.get("rope_parameters") or {})
    theta = float(given.get("rope_theta", found["rope_theta"]))
    scaling = given.get("rope_type", given.get("type", "default"))
    if float(given.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError("partial_rotary_factor is not 1; our decoder rotates whole heads; use HFCausal")
    if scaling == "default":
        return Rope(theta=theta)
    if scaling not in ("linear", "llama3", "yarn"):
        raise ConfigError(
            f"rotary scaling {scaling!r} is not one of ours (default, linear, llama3, yarn); scalings that depend on"
            " the length of a row would make a sample's logits depend on its neighbours; use HFCausal"
        )
    rope = {"theta": theta, "scaling": scaling, "factor": float(given["factor"])}
    if scaling == "linear":
        return Rope(**rope)
    rope["original_positions"] = given.get("original_max_position_embeddings", found["max_position_embeddings"])
    if scaling == "llama3":
        return Rope(**rope, low_freq=float(given["low_freq_factor"]), high_freq=float(given["high_freq_factor"]))
    if given.get("mscale") and given.get("mscale_all_dim"):
        raise ConfigError("yarn with mscale and mscale_all_dim (DeepSeek) is not ours; use HFCausal")
    return Rope(
        **rope,
        beta_fast=float(given.get("beta_fast") or 32),
        beta_slow=float(given.get("beta_slow") or 1),
        truncate=given.get("truncate", True),
        attention_factor=given.get("attention_factor"),
    )


def _rope_json(rope: Rope) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope.scaling}
    if rope.scaling == "default":
        return out
    out["factor"] = rope.factor
    if rope.scaling == "linear":
        return out
    out["original_max_position_embeddings"] = rope.original_positions
    if rope.scaling == "llama3":
        return out | {"low_freq_factor": rope.low_freq, "high_freq_factor": rope.high_freq}
    out |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    return out if rope.attention_factor is None else out | {"attention_factor": rope.attention_factor}
