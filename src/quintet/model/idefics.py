"""transformers' `IdeficsForVisionText2Text` ⇄ `MLLM`: the same parts under other names, both ways.

    model.vision_model               ⇄  encoders.image      CLIP's, all of the last layer's features (`Vision`)
    model.perceiver_resampler        ⇄  connectors.image    (`Perceiver`)
    model.gated_cross_attn_layers    ⇄  fusion              (`GatedCrossAttention`)
    model.layers, embed_tokens, …    ⇄  llm                 LLaMA (`Decoder`)

Theirs keeps the rows of added tokens in tables of their own, ours after the published ones; the row of `<image>` is
also the fusion's marker. Only names move; weights are copied as they are.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.hf_config import from_hf as vision_from_hf
from quintet.components.encoders.presets import CLIP_H
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import to_hf_state as vision_state
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf_config import from_hf as llm_from_hf
from quintet.components.llms.weights import SafetensorsFolder
from quintet.components.llms.weights import to_hf_state as llm_state
from quintet.errors import CheckpointError, ConfigError
from quintet.model.checkpoint import read_json
from quintet.model.mllm import MLLM

__all__ = ["from_idefics_config", "import_idefics", "load_idefics_state", "to_idefics_state"]

_RESAMPLER = {
    "latents": "latents",
    "norm": "layer_norm",
    "features_norm": "0.context_layer_norm",
    "latents_norm": "0.latents_layer_norm",
    "attn.q_norm": "0.q_layer_norm",
    "attn.k_norm": "0.k_layer_norm",
    "attn.q_proj": "0.q_proj",
    "attn.k_proj": "0.k_proj",
    "attn.v_proj": "0.v_proj",
    "attn.o_proj": "0.output_proj",
    "feed_norm": "1.ln",
    "mlp.up_proj": "1.fc",
    "mlp.down_proj": "1.c_proj",
}
_BLOCK = {
    "attend_gate": "alpha_cross_attn",
    "feed_gate": "alpha_dense",
    "attend_norm": "input_layernorm",
    "feed_norm": "post_attention_layernorm",
    "attn.q_norm": "cross_attn.q_layer_norm",
    "attn.k_norm": "cross_attn.k_layer_norm",
    "attn": "cross_attn",
    "mlp": "mlp",
}


# ---- settings ----------------------------------------------------------------------------------------------------
def from_idefics_config(config: Mapping[str, Any]) -> MLLM.Config:
    """The composition that an IDEFICS `config.json` describes; `config` has all its defaults filled in.

    Raises:
        ConfigError: a setting that our parts do not have.
    """
    sight, perceiver = config["vision_config"], config["perceiver_config"]
    for name, wanted in {"use_resampler": True, "hidden_act": "silu", "tie_word_embeddings": False}.items():
        if config[name] != wanted:
            raise ConfigError(f"{name} is {config[name]!r}; ours is {wanted!r}, as in every published IDEFICS")
    if config["rms_norm_eps"] != 1e-6:
        raise ConfigError(f"rms_norm_eps is {config['rms_norm_eps']}; the gated blocks' here is 1e-6")
    size, dim = sight["image_size"], config["hidden_size"]
    encoder = vision_from_hf(
        sight | {"model_type": "clip_vision_model", "hidden_size": sight["embed_dim"]},
        image=replace(CLIP_H.image, size=(size, size), fit="squash"),
    )
    return MLLM.Config(
        encoders={"image": replace(encoder, layer=-1, select="full", keep_unused=True)},
        connectors={
            "image": Perceiver.Config(
                latents=perceiver["resampler_n_latents"],
                depth=perceiver["resampler_depth"],
                heads=perceiver["resampler_n_heads"],
                head_dim=perceiver["resampler_head_dim"],
                act="relu",
                qk_norm=perceiver["qk_layer_norms_perceiver"],
            )
        },
        fusion=GatedCrossAttention.Config(
            every=config["cross_layer_interval"],
            heads=config["num_attention_heads"],
            head_dim=dim // config["num_attention_heads"],
            features=sight["embed_dim"],
            act="swiglu",
            expand=config["intermediate_size"] / dim,
            norm="rms",
            qk_norm=config["qk_layer_norms"],
            gate="scalar" if config["alpha_type"] == "float" else "vector",
        ),
        llm=llm_from_hf(
            dict(config) | {"model_type": "llama", "vocab_size": config["vocab_size"] + config["additional_vocab_size"]}
        ),
    )


def import_idefics(folder: Path, *, image_token_id: int) -> MLLM:
    """The model of a transformers `IdeficsForVisionText2Text` folder, on the CPU, in the numbers of its file.

    `image_token_id` is the tokenizer's id of `<image>` (32001 in the published ones); the config does not say it.

    Raises:
        CheckpointError: no such folder, another class, or weights that do not fit its config.
        ConfigError: a setting that our parts do not have.
    """
    from transformers import IdeficsConfig

    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict) or raw.get("model_type") != "idefics":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise CheckpointError(f"{folder / 'config.json'} has model_type {kind!r}; expected 'idefics'")
    config = IdeficsConfig.from_dict(raw).to_dict()
    state = SafetensorsFolder(folder)
    with torch.device("meta"):
        model = from_idefics_config(config).build()
    model = model.to(state["model.norm.weight"].dtype).to_empty(device="cpu")
    load_idefics_state(model, state, vocab=config["vocab_size"], image_token_id=image_token_id)
    return model.eval()


# ---- weights -----------------------------------------------------------------------------------------------------
def to_idefics_state(model: MLLM, *, vocab: int, image_token_id: int) -> dict[str, Tensor]:
    """The model's weights under transformers' names; rows from `vocab` on are those of added tokens.

    Raises:
        ConfigError: a part that the class does not have, or an id of `<image>` that is not an added token's.
    """
    state = _views(model, vocab=vocab, image_token_id=image_token_id)
    added = "model.embed_tokens.additional_embedding.weight"
    state[added] = state[added].clone()
    state[added][image_token_id - vocab] = cast(GatedCrossAttention, model.fusion).marker.detach()
    return {name: value.contiguous() for name, value in state.items()}


@torch.no_grad()
def load_idefics_state(model: MLLM, state: Mapping[str, Tensor], *, vocab: int, image_token_id: int) -> None:
    """Copies an IDEFICS file's weights into a model of `from_idefics_config`.

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit; nothing is copied then.
    """
    ours = _views(model, vocab=vocab, image_token_id=image_token_id)
    missing, extra = sorted(ours.keys() - set(state)), sorted(set(state) - ours.keys())
    if missing or extra:
        raise CheckpointError(f"the file is no such IDEFICS: missing {missing[:4]}, unexpected {extra[:4]}")
    for name, weight in ours.items():
        value = state[name]
        if value.shape != weight.shape:
            raise CheckpointError(f"{name} is {tuple(value.shape)} in the file, {tuple(weight.shape)} in the model")
    for name, weight in ours.items():
        weight.copy_(state[name])
    cast(GatedCrossAttention, model.fusion).marker.copy_(model.llm.embedding.weight[image_token_id])


def _views(model: MLLM, *, vocab: int, image_token_id: int) -> dict[str, Tensor]:
    """Published name → our weight, not copied."""
    encoder, connector, fusion, llm = (
        model.encoders["image"],
        model.connectors["image"],
        model.fusion,
        model.llm,
    )
    sees = isinstance(encoder, Vision) and isinstance(connector, Perceiver)
    if not sees or not isinstance(fusion, GatedCrossAttention) or not isinstance(llm, Decoder) or not llm.lm_head:
        raise ConfigError("IDEFICS is a CLIP tower, a resampler, gated cross-attention and a LLaMA with a head")
    if not vocab <= image_token_id < llm.vocab:
        raise ConfigError(f"the id of <image> is {image_token_id}; added tokens have {vocab} to {llm.vocab - 1}")
    found = {f"model.vision_model.{name}": value for name, value in vision_state(cast(Vision, encoder)).items()}
    found |= {f"model.perceiver_resampler.{_resampler(n)}": v for n, v in connector.state_dict().items()}
    for name, value in fusion.blocks.state_dict().items():
        index, rest = name.split(".", 1)
        vector = rest.endswith("_gate") and fusion.config.gate == "vector"
        found[f"model.gated_cross_attn_layers.{index}.{_renamed(rest, _BLOCK)}"] = (
            value.view(1, 1, -1) if vector else value
        )
    found |= llm_state(llm)
    embedding, head = found.pop("model.embed_tokens.weight"), found.pop("lm_head.weight")
    found["model.embed_tokens.weight"], found["lm_head.weight"] = embedding[:vocab], head[:vocab]
    found["model.embed_tokens.additional_embedding.weight"] = embedding[vocab:]
    found["lm_head.additional_fc.weight"] = head[vocab:]
    return found


def _resampler(name: str) -> str:
    if not name.startswith("layers."):
        return _renamed(name, _RESAMPLER)
    _, index, rest = name.split(".", 2)
    return f"blocks.{index}.{_renamed(rest, _RESAMPLER)}"


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """With the longest beginning that the table has replaced."""
    begin = max((own for own in table if name == own or name.startswith(own + ".")), key=len)
    return table[begin] + name[len(begin) :]
