"""transformers' `IdeficsForVisionText2Text` ⇄ `MLLM`: the same parts under other names, both ways.

    model.vision_model               ⇄  encoders.image      CLIP's, all of the last layer's features (`Vision`)
    model.perceiver_resampler        ⇄  connectors.image    (`Perceiver`)
    model.gated_cross_attn_layers    ⇄  fusion              (`GatedCrossAttention`)
    model.layers, embed_tokens, …    ⇄  llm                 LLaMA (`Decoder`)

Theirs keeps the rows of added tokens (`Facts.first_added` and on) in tables of their own, ours after the published
ones; the row of `<image>` is also the fusion's marker. Only names move; weights are copied as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.hf_config import from_hf as vision_from_hf
from quintet.components.encoders.hf_config import to_image_processor
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import to_hf_state as vision_state
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf_config import from_hf as llm_from_hf
from quintet.components.llms.hf_config import to_hf as llm_to_hf
from quintet.components.llms.weights import to_hf_state as llm_state
from quintet.components.roles import ImageSpec
from quintet.errors import ConfigError
from quintet.model.family import DERIVED, Facts, Row, copy_into, on_disk, refuse_adapters, with_row
from quintet.model.mllm import MLLM

__all__ = ["from_config", "inputs", "load_state", "processor", "recipe", "to_config", "to_state", "tokens"]

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
def recipe(config: Mapping[str, Any]) -> str:
    """The recipe whose conversations such weights were trained on."""
    return "idefics"


def tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The config does not say which token is `<image>`: the tokenizer does, or it is the second of the added ones."""
    first, added = config["vocab_size"], config["additional_vocab_size"]
    image = vocabulary.get("<image>", first + 1)
    if not first <= image < first + added:
        raise ConfigError(
            f"the id of <image> is {image}; added tokens have {first} to {first + added - 1}: put the tokenizer of the "
            "checkpoint beside it"
        )
    return {"image_token_id": image, "first_added": first}


def from_config(config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
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
        image=image(size),
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


def to_config(model: MLLM, facts: Facts) -> dict[str, Any]:
    """The `config.json` of transformers for this model.

    Raises:
        ConfigError: the class cannot express the composition; the message says why.
    """
    encoder, connector, fusion, llm = _parts(model)
    sight, perceiver, gated, words = encoder.config, connector.config, fusion.config, llm_to_hf(llm.cfg)
    for name in ("architectures", "model_type", "head_dim", "num_key_value_heads", "tie_word_embeddings", "vocab_size"):
        words.pop(name)
    first = _first_added(facts)
    return words | {
        "architectures": ["IdeficsForVisionText2Text"],
        "model_type": "idefics",
        "vocab_size": first,
        "additional_vocab_size": max(llm.vocab, facts.image_token_id + 1) - first,
        "tie_word_embeddings": False,
        "use_resampler": True,
        "cross_layer_interval": gated.every,
        "qk_layer_norms": gated.qk_norm,
        "alpha_type": "float" if gated.gate == "scalar" else "vector",
        "dtype": str(llm.embedding.weight.dtype).removeprefix("torch."),
        "vision_config": {
            "model_type": "idefics_vision",
            "embed_dim": sight.width,
            "image_size": sight.trained_size,
            "intermediate_size": sight.ffn,
            "patch_size": sight.patch,
            "num_hidden_layers": sight.depth if sight.keep_unused else sight.num_run,
            "num_attention_heads": sight.heads,
            "hidden_act": sight.act,
            "layer_norm_eps": sight.eps,
        },
        "perceiver_config": {
            "model_type": "idefics_perciever",  # sic
            "use_resampler": True,
            "resampler_n_latents": perceiver.latents,
            "resampler_depth": perceiver.depth,
            "resampler_n_heads": perceiver.heads,
            "resampler_head_dim": perceiver.head_dim,
            "qk_layer_norms_perceiver": perceiver.qk_norm,
        },
    }


def processor(model: MLLM, facts: Facts, *, image_token: str) -> dict[str, dict[str, Any]]:
    """What transformers prepares words and pictures by."""
    encoder, *_ = _parts(model)
    side = encoder.config.trained_size
    pictures = to_image_processor(encoder.config.spec)
    pictures |= {"image_processor_type": "IdeficsImageProcessor", "image_size": side, "image_num_channels": 3}
    said = {"processor_class": "IdeficsProcessor"}
    return {"preprocessor_config.json": pictures | said, "processor_config.json": said}


def _parts(model: MLLM) -> tuple[Vision, Perceiver, GatedCrossAttention, Decoder]:
    """The four parts, or why the class cannot hold the model."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            f"{what}; transformers' IdeficsForVisionText2Text is CLIP's tower, all features of its last layer, a "
            "resampler as wide as it, LLaMA-like gated cross-attention and a LLaMA"
        )

    if sorted(model.encoders) != ["image"]:
        raise refuse(f"this model takes {', '.join(sorted(model.encoders)) or 'no media'}")
    encoder, connector, fusion, llm = model.encoders["image"], model.connectors["image"], model.fusion, model.llm
    if not isinstance(encoder, Vision) or encoder.config.family != "clip":
        raise refuse("the encoder is another")
    sight = encoder.config
    if sight.select != "full" or sight.norm or not sight.class_token or sight.dim != sight.width:
        raise refuse(f"the features are select={sight.select!r}, norm={sight.norm}, layer={sight.layer}")
    if sight.keep_unused and sight.num_run != sight.depth:
        raise refuse(f"the features are of layer {sight.layer}")
    if sight.spec.size != (sight.trained_size,) * 2 or sight.spec.fit != "squash":
        raise refuse(f"pictures are {sight.spec.size}, fit={sight.spec.fit!r}, and not squashed to one size")
    if not isinstance(connector, Perceiver) or connector.config.act != "relu" or connector.config.frames:
        raise refuse("the connector is another")
    if connector.config.width not in (0, sight.width) or connector.config.expand != 4:
        raise refuse("the resampler is of another width")
    if not isinstance(fusion, GatedCrossAttention) or not isinstance(llm, Decoder):
        raise refuse("the fusion or the LLM is another")
    gated, cfg = fusion.config, llm.cfg
    alike: dict[str, tuple[object, object]] = {
        "act": (gated.act, "swiglu"),
        "norm": (gated.norm, "rms"),
        "look": (gated.look, "last"),
        "first": (gated.first, 0),
        "heads": (gated.heads, cfg.heads),
        "features": (gated.features, sight.width),
        "width of all heads": (gated.heads * gated.head_dim, cfg.dim),
        "width inside the feed-forward": (round(gated.expand * cfg.dim), cfg.ffn),
    }
    if others := [f"{name} {found!r} for {wanted!r}" for name, (found, wanted) in alike.items() if found != wanted]:
        raise refuse(f"the gated blocks are not those of the LLM ({', '.join(others)})")
    if cfg.family != "llama" or cfg.kv_heads != cfg.heads or cfg.norm_eps != 1e-6:
        raise refuse(f"the LLM is {cfg.family} with {cfg.kv_heads} key heads and norm_eps {cfg.norm_eps}")
    refuse_adapters(model)
    return encoder, connector, fusion, llm


def _first_added(facts: Facts) -> int:
    return facts.image_token_id if facts.first_added is None else facts.first_added


# ---- weights -----------------------------------------------------------------------------------------------------
def to_state(model: MLLM, facts: Facts) -> dict[str, Tensor]:
    """The weights under the names that transformers writes to disk."""
    _, _, fusion, llm = _parts(model)
    tables = llm.tables()  # one, if the head is tied: theirs is not
    embedding, head = (with_row(table.detach().clone(), facts.image_token_id) for table in (tables[0], tables[-1]))
    embedding[facts.image_token_id] = fusion.marker.detach()
    views = _views(model, facts, embedding, head)
    return on_disk(views)


@torch.no_grad()
def load_state(model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
    """Copies a file's weights into a model of `from_config`; see `Family.load_state`."""
    _, _, fusion, llm = _parts(model)
    names = [name for name in state if not name.endswith(DERIVED)]
    copy_into(_views(model, facts, *llm.tables()), {name: state[name] for name in names}, what="IDEFICS")
    fusion.marker.copy_(llm.embedding.weight[facts.image_token_id])


def _views(model: MLLM, facts: Facts, embedding: Tensor, head: Tensor) -> dict[str, Tensor]:
    """Published name → our weight, not copied; the tables of words are the ones given."""
    encoder, connector, fusion, llm = _parts(model)
    first = _first_added(facts)
    found = {f"model.vision_model.{name}": value for name, value in vision_state(encoder).items()}
    found |= {f"model.perceiver_resampler.{_resampler(n)}": v for n, v in connector.state_dict().items()}
    for name, value in fusion.blocks.state_dict().items():
        index, rest = name.split(".", 1)
        vector = rest.endswith("_gate") and fusion.config.gate == "vector"
        found[f"model.gated_cross_attn_layers.{index}.{_renamed(rest, _BLOCK)}"] = (
            value.view(1, 1, -1) if vector else value
        )
    found |= llm_state(llm)
    for name, more, table in (
        ("model.embed_tokens", "additional_embedding", embedding),
        ("lm_head", "additional_fc", head),
    ):
        found[f"{name}.weight"], found[f"{name}.{more}.weight"] = table[:first], table[first:]
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


# ---- the class' forward ------------------------------------------------------------------------------------------
def inputs(model: MLLM, row: Row, facts: Facts) -> dict[str, Tensor]:
    """The row for the class' forward: a column sees the last picture before it."""
    pixels = row.pixels(model.encoders["image"])
    last = (row.tokens == facts.image_token_id).cumsum(0) - 1
    return {
        "input_ids": row.tokens[None],
        "attention_mask": torch.ones_like(row.tokens)[None],
        "pixel_values": pixels[None],
        "image_attention_mask": (last[:, None] == torch.arange(len(pixels))).long()[None],
    }
