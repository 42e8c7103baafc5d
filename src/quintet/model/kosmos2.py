"""transformers' `Kosmos2ForConditionalGeneration` ⇄ `MLLM`: the same parts under other names, both ways.

    vision_model.model           ⇄  encoders.image      CLIP's, its last layer and its last norm (`Vision`)
    image_to_text_projection     ⇄  connectors.image    (`AttentivePooling`, of features of length 1)
    text_model                   ⇄  llm                 (`Magneto` with sinusoids; the head is the embedding)

Only names move; weights are copied as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quintet.components.connectors.resampler import AttentivePooling
from quintet.components.encoders.hf_config import from_hf as vision_from_hf
from quintet.components.encoders.hf_config import to_hf as vision_to_hf
from quintet.components.encoders.hf_config import to_image_processor
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import to_hf_state as vision_state
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.magneto import Magneto
from quintet.components.roles import ImageSpec
from quintet.errors import ConfigError
from quintet.model.family import DERIVED, Facts, Row, copy_into, on_disk, refuse_adapters
from quintet.model.mllm import MLLM

__all__ = ["from_config", "inputs", "load_state", "processor", "recipe", "to_config", "to_state", "tokens"]

_FIRST_PICTURE = 4
"""What its processor writes in a picture's first column: the token behind <unk>. Nothing reads it."""
_BLOCK = {
    "attend_norm": "self_attn_layer_norm",
    "inner_norm": "self_attn.inner_attn_ln",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj",
    "feed_norm": "final_layer_norm",
    "middle_norm": "ffn.ffn_layernorm",
    "up_proj": "ffn.fc1",
    "down_proj": "ffn.fc2",
}
_TOP = {"embedding": "embed_tokens", "norm": "layer_norm"}
_POOLING = {
    "enter": "dense",
    "queries": "latent_query",
    "attend.q_proj": "x_attn.q_proj",
    "attend.k_proj": "x_attn.k_proj",
    "attend.v_proj": "x_attn.v_proj",
    "attend.o_proj": "x_attn.out_proj",
}
_TEXT = {"activation_function": "gelu", "scale_embedding": True, "add_cross_attention": False}
_HEAD = "text_model.lm_head.weight"
"""In old files; it is the embedding."""


# ---- settings ----------------------------------------------------------------------------------------------------
def recipe(config: Mapping[str, Any]) -> str:
    """The recipe whose conversations such weights were trained on."""
    return "kosmos2"


def tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The ids that the model does not hold; see `Family.tokens`."""
    return {"image_token_id": vocabulary.get("<unk>", _FIRST_PICTURE - 1) + 1}


def from_config(config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
    """The composition that a Kosmos-2 `config.json` describes; all its defaults are filled in.

    Raises:
        ConfigError: a setting that our parts do not have.
    """
    text = config["text_config"]
    for name, wanted in _TEXT.items():
        if text[name] != wanted:
            raise ConfigError(f"the text model's {name} is {text[name]!r}; ours is {wanted!r}")
    if not (config["tie_word_embeddings"] and text["tie_word_embeddings"]):
        raise ConfigError("tie_word_embeddings is off; Kosmos-2's head is its embedding")
    tower = vision_from_hf(dict(config["vision_config"]) | {"model_type": "clip_vision_model"})
    return MLLM.Config(
        encoders={"image": replace(tower, image=image(tower.trained_size), layer=-1, select="full", norm=True)},
        connectors={
            "image": AttentivePooling.Config(
                queries=config["latent_query_num"], heads=text["attention_heads"], unit=True
            )
        },
        llm=Magneto.Config(
            vocab=text["vocab_size"],
            dim=text["embed_dim"],
            depth=text["layers"],
            heads=text["attention_heads"],
            ffn=text["ffn_dim"],
            norm_eps=float(text["layer_norm_eps"]),
            positions="sinusoid",
        ),
    )


def to_config(model: MLLM, facts: Facts) -> dict[str, Any]:
    """The `config.json` of transformers for this model; see `Family.to_config`."""
    encoder, connector, llm = _parts(model)
    vision = vision_to_hf(encoder.config) | {"model_type": "kosmos_2_vision_model"}
    vision.pop("architectures")
    return {
        "architectures": ["Kosmos2ForConditionalGeneration"],
        "model_type": "kosmos-2",
        "latent_query_num": connector.config.queries,
        "tie_word_embeddings": True,
        "dtype": str(llm.embedding.weight.dtype).removeprefix("torch."),
        "vision_config": vision,
        "text_config": {
            "model_type": "kosmos_2_text_model",
            "vocab_size": llm.vocab,
            "embed_dim": llm.dim,
            "layers": llm.depth,
            "ffn_dim": llm.cfg.ffn,
            "attention_heads": llm.cfg.heads,
            "layer_norm_eps": llm.cfg.norm_eps,
            **_TEXT,
        },
    }


def processor(model: MLLM, facts: Facts, *, image_token: str) -> dict[str, dict[str, Any]]:
    """What transformers prepares words and pictures by."""
    encoder, *_ = _parts(model)
    said = {"processor_class": "Kosmos2Processor"}
    pictures = to_image_processor(encoder.config.spec)
    return {"preprocessor_config.json": pictures | said, "processor_config.json": said}


def _parts(model: MLLM) -> tuple[Vision, AttentivePooling, Magneto]:
    """The three parts, or why the class cannot hold the model."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            f"{what}; transformers' Kosmos2ForConditionalGeneration is CLIP's tower, all features of its last layer "
            "normed and of length 1, latent queries with as many heads as the LLM, and Magneto with sinusoids"
        )

    if sorted(model.encoders) != ["image"] or type(model.fusion) is not TokenFusion:
        raise refuse(f"this model takes {', '.join(sorted(model.encoders)) or 'no media'}, or its fusion is another")
    encoder, connector, llm = model.encoders["image"], model.connectors["image"], model.llm
    if not isinstance(encoder, Vision) or encoder.config.family != "clip":
        raise refuse("the encoder is another")
    sight = encoder.config
    if sight.select != "full" or not sight.norm or not sight.class_token or sight.dim != sight.width:
        raise refuse(f"the features are select={sight.select!r}, norm={sight.norm}, layer={sight.layer}")
    if sight.keep_unused or sight.spec.size != (sight.trained_size,) * 2:
        raise refuse(f"pictures are {sight.spec.size}, or layers that do not run are kept")
    if not isinstance(llm, Magneto) or llm.cfg.positions != "sinusoid":
        raise refuse("the LLM is another")
    if not isinstance(connector, AttentivePooling) or not connector.config.unit:
        raise refuse("the connector is another")
    if connector.config.heads != llm.cfg.heads:
        raise refuse(f"the queries have {connector.config.heads} heads, the LLM {llm.cfg.heads}")
    refuse_adapters(model)
    return encoder, connector, llm


# ---- weights -----------------------------------------------------------------------------------------------------
def load_state(model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
    """Copies a file's weights into a model of `from_config`; see `Family.load_state`."""
    names = [name for name in state if name != _HEAD and not name.endswith(DERIVED)]
    copy_into(_views(model), {name: state[name] for name in names}, what="Kosmos-2")


def to_state(model: MLLM, facts: Facts) -> dict[str, Tensor]:
    """The weights under the names that transformers writes to disk."""
    return on_disk(_views(model))


def _views(model: MLLM) -> dict[str, Tensor]:
    """Published name → our weight, not copied."""
    encoder, connector, llm = _parts(model)
    found = {f"vision_model.model.{name}": value for name, value in vision_state(encoder).items()}
    for name, value in connector.state_dict().items():
        part, _, leaf = name.rpartition(".")
        own = _POOLING[name] if name in _POOLING else f"{_POOLING[part]}.{leaf}"
        found[f"image_to_text_projection.{own}"] = value
    for name, value in llm.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            index, part, leaf = rest.split(".")
            found[f"text_model.model.layers.{index}.{_BLOCK[part]}.{leaf}"] = value
        else:
            found[f"text_model.model.{_TOP[first]}.{rest}"] = value
    return found


# ---- the class' forward ------------------------------------------------------------------------------------------
def inputs(model: MLLM, row: Row, facts: Facts) -> dict[str, Tensor]:
    """The row for the class' forward."""
    shown = torch.zeros_like(row.tokens)
    shown[row.slots] = 1
    found = {"input_ids": row.tokens[None], "attention_mask": torch.ones_like(row.tokens)[None]}
    found["image_embeds_position_mask"] = shown[None]
    if row.pictures:
        return found | {"pixel_values": row.pixels(model.encoders["image"])}
    return found | {"image_embeds": torch.zeros(0, 1, model.llm.dim)}
