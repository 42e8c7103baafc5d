"""transformers' `Blip2ForConditionalGeneration` and `InstructBlipForConditionalGeneration` ⇄ `MLLM`.

    vision_model             ⇄  encoders.image                       EVA-CLIP, all of the last layer's features
    … .post_layernorm        ⇄  connectors.image.qformer.norm_picture
    query_tokens, qformer    ⇄  connectors.image.qformer             (`QFormer`)
    language_projection      ⇄  connectors.image.project
    language_model           ⇄  llm                                  OPT, T5 (transformers' own), Llama (`Decoder`)

InstructBLIP's Q-Former also reads the instruction, in the tokens of a tokenizer of its own (`qformer_tokenizer/`).
Only names move; weights are copied as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quintet.components.connectors.qformer import QFormer
from quintet.components.encoders.hf_config import from_hf as vision_from_hf
from quintet.components.encoders.hf_config import to_hf as vision_to_hf
from quintet.components.encoders.hf_config import to_image_processor
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import to_hf_state as vision_state
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.roles import ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.model.family import (
    DERIVED,
    Facts,
    Row,
    copy_into,
    llm_config,
    llm_views,
    on_disk,
    refuse_adapters,
    text_config,
    with_row,
)
from quintet.model.mllm import MLLM

__all__ = [
    "LAYER",
    "from_config",
    "inputs",
    "load_state",
    "processor",
    "published_name",
    "recipe",
    "to_config",
    "to_state",
    "tokens",
]

LAYER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "cross.q_proj": "crossattention.attention.query",
    "cross.k_proj": "crossattention.attention.key",
    "cross.v_proj": "crossattention.attention.value",
    "cross.o_proj": "crossattention.output.dense",
    "cross.norm": "crossattention.output.LayerNorm",
    "ffn.up": "intermediate_query.dense",
    "ffn.down": "output_query.dense",
    "ffn.norm": "output_query.LayerNorm",
    "ffn_words.up": "intermediate.dense",
    "ffn_words.down": "output.dense",
    "ffn_words.norm": "output.LayerNorm",
}
"""A part of a Q-Former's layer → its published name."""
_WORDS = ("embed_tokens.weight", "shared.weight", "lm_head.weight")
"""Tables of the LLM's words."""


# ---- settings ----------------------------------------------------------------------------------------------------
def recipe(config: Mapping[str, Any]) -> str:
    """The recipe whose conversations such weights were trained on."""
    name = "instructblip" if config["model_type"] == "instructblip" else "blip2"
    return f"{name}:flan_t5" if config["text_config"]["model_type"] == "t5" else name


def tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The ids that the model does not hold; see `Family.tokens`."""
    found = config.get("image_token_index")
    found = vocabulary.get("<image>") if found is None else found
    if found is None:
        raise ConfigError(
            "the config has no image_token_index, and no tokenizer beside it has <image>: the folder was written "
            "before transformers 4.46; write the id of a token that stands for a picture's features into its "
            "config.json"
        )
    return {"image_token_id": found}


def from_config(config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
    """The composition that a BLIP-2 or InstructBLIP `config.json` describes; all its defaults are filled in.

    Raises:
        ConfigError: a setting that our parts do not have, or BLIP-2's retrieval model.
    """
    if "ForConditionalGeneration" not in (config.get("architectures") or ["ForConditionalGeneration"])[0]:
        raise ConfigError(
            f"the folder holds {config['architectures'][0]}; expected Blip2ForConditionalGeneration or "
            "InstructBlipForConditionalGeneration, which have an LLM"
        )
    sight, asks = config["vision_config"], config["qformer_config"]
    reads = config["model_type"] == "instructblip"
    wanted = {"hidden_act": "gelu"} | ({} if reads else {"use_qformer_text_input": False})
    for name, value in wanted.items():
        if asks.get(name, value) != value:
            raise ConfigError(f"the Q-Former's {name} is {asks[name]!r}; ours is {value!r}")
    tower = vision_from_hf(dict(sight) | {"model_type": "blip_2_vision_model"})
    return MLLM.Config(
        encoders={"image": replace(tower, image=image(tower.trained_size), layer=-1, select="full", norm=False)},
        connectors={
            "image": QFormer.Config(
                queries=config["num_query_tokens"],
                dim=asks["hidden_size"],
                depth=asks["num_hidden_layers"],
                heads=asks["num_attention_heads"],
                ffn=asks["intermediate_size"],
                cross_every=asks["cross_attention_frequency"],
                norm_eps=float(sight["layer_norm_eps"]),
                eps=float(asks["layer_norm_eps"]),
                reads=reads,
                words=asks["vocab_size"] if reads else None,
                positions=asks["max_position_embeddings"],
                keep_unused=reads,
            )
        },
        llm=llm_config(config["text_config"]),
    )


def to_config(model: MLLM, facts: Facts) -> dict[str, Any]:
    """The `config.json` of transformers for this model.

    Raises:
        ConfigError: the class cannot express the composition; the message says why.
    """
    encoder, connector = _parts(model)
    asks, spec = connector.config, encoder.config.spec
    kind, name = ("instructblip", "InstructBlip") if asks.reads else ("blip-2", "Blip2")
    vision = vision_to_hf(encoder.config) | {"image_size": encoder.config.trained_size}
    vision["model_type"] = "instructblip_vision_model" if asks.reads else "blip_2_vision_model"
    if spec.size != (encoder.config.trained_size,) * 2:
        raise ConfigError(f"pictures are {spec.size}, and the table of positions is of {encoder.config.trained_size}")
    if asks.norm_eps != encoder.config.eps:
        raise ConfigError(
            f"norm_eps of the Q-Former is {asks.norm_eps}; the class has the encoder's {encoder.config.eps}"
        )
    vision.pop("architectures")
    qformer: dict[str, Any] = {
        "model_type": "instructblip_qformer" if asks.reads else "blip_2_qformer",
        "hidden_size": asks.dim,
        "num_hidden_layers": asks.depth,
        "num_attention_heads": asks.heads,
        "intermediate_size": asks.ffn,
        "hidden_act": "gelu",
        "layer_norm_eps": asks.eps,
        "cross_attention_frequency": asks.cross_every,
        "encoder_hidden_size": encoder.config.width,
        "max_position_embeddings": asks.positions,
    }
    if asks.reads:
        qformer["vocab_size"] = asks.words or model.llm.vocab
    text = text_config(model.llm, vocab=max(model.llm.vocab, facts.image_token_id + 1))
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "num_query_tokens": asks.queries,
        "image_token_index": facts.image_token_id,
        "dtype": str(connector.qformer.queries.dtype).removeprefix("torch."),
        "vision_config": vision,
        "qformer_config": qformer,
        "text_config": text,
    }


def processor(model: MLLM, facts: Facts, *, image_token: str) -> dict[str, dict[str, Any]]:
    """What transformers prepares words and pictures by."""
    encoder, connector = _parts(model)
    name = "InstructBlipProcessor" if connector.config.reads else "Blip2Processor"
    pictures = to_image_processor(encoder.config.spec)
    if encoder.config.spec.fit == "squash":
        pictures["image_processor_type"] = "BlipImageProcessor"
    said = {"processor_class": name, "num_query_tokens": connector.config.queries}
    return {"preprocessor_config.json": pictures | {"processor_class": name}, "processor_config.json": said}


def _parts(model: MLLM) -> tuple[Vision, QFormer]:
    """Encoder and connector, or why the class cannot hold the model."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            f"{what}; transformers' Blip2ForConditionalGeneration and InstructBlipForConditionalGeneration are "
            "BLIP-2's tower, all features of its last layer, a Q-Former that norms them, and an LLM behind it"
        )

    if sorted(model.encoders) != ["image"]:
        raise refuse(f"this model takes {', '.join(sorted(model.encoders)) or 'no media'}")
    encoder, connector = model.encoders["image"], model.connectors["image"]
    if not isinstance(encoder, Vision) or encoder.config.family != "blip2":
        raise refuse(f"the encoder is {_named(model.config.encoders['image'])}")
    config = encoder.config
    if config.select != "full" or config.norm or not config.class_token or not isinstance(config.layer, int):
        raise refuse(f"the features are select={config.select!r}, norm={config.norm}, layer={config.layer}")
    if not isinstance(connector, QFormer) or not connector.config.norm:
        raise refuse(f"the connector is {_named(model.config.connectors['image'])}")
    if connector.project is None:
        raise refuse("this model has no LLM")
    if type(model.fusion) is not TokenFusion:
        raise refuse(f"the fusion is {_named(model.config.fusion)}")
    refuse_adapters(model)
    return encoder, connector


def _named(config: object) -> str:
    kind = f" ({config.family})" if isinstance(config, Vision.Config) else ""
    return type(config).__qualname__.removesuffix(".Config") + kind


# ---- weights -----------------------------------------------------------------------------------------------------
def load_state(model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
    """Copies a file's weights into a model of `from_config`; see `Family.load_state`."""
    views = _views(model)
    names = {name for name in state if not name.endswith(DERIVED)}
    words = {name: state[name] for name in names if name.endswith(_WORDS)}
    kept = [value for name, value in words.items() if name in views]
    for name in words.keys() - views.keys():
        # Old files write T5's embedding three times, and a tied head too.
        if not (kept and torch.equal(words[name], kept[0])):
            raise CheckpointError(f"the config ties {name} to the embedding, and the file has two different weights")
        names.remove(name)
    copy_into(views, {name: state[name] for name in names}, what="BLIP-2 or InstructBLIP")


def to_state(model: MLLM, facts: Facts) -> dict[str, Tensor]:
    """The weights under the names that transformers writes to disk."""
    views = _views(model)
    for name in views:
        if name.endswith(_WORDS):
            views[name] = with_row(views[name].detach(), facts.image_token_id)
    connector: Any = model.connectors["image"]
    if connector.config.reads and not connector.config.keep_unused:
        # The class has a feed-forward that nothing reads.
        last = f"qformer.encoder.layer.{connector.config.depth - 1}."
        like = connector.qformer.layers[-1].ffn
        for ours, part in (("up", "intermediate.dense"), ("down", "output.dense"), ("norm", "output.LayerNorm")):
            for name, value in getattr(like, ours).named_parameters():
                views[f"{last}{part}.{name}"] = torch.zeros_like(value)
    return on_disk(views)


def _views(model: MLLM) -> dict[str, Tensor]:
    """Published name → our weight, not copied."""
    encoder, connector = _parts(model)
    assert connector.project is not None, "there is an LLM"
    found = {f"vision_model.{name}": value for name, value in vision_state(encoder).items()}
    qformer = connector.qformer
    for name, value in qformer.state_dict().items():
        published = published_name(name, connector.config, reads=connector.config.reads)
        found[published] = value[None] if published == "query_tokens" else value
    found |= {f"language_projection.{name}": value for name, value in connector.project.state_dict().items()}
    return found | {f"language_model.{name}": value for name, value in llm_views(model.llm).items()}


def published_name(name: str, config: QFormer.Config, *, reads: bool) -> str:
    """The name of a weight of `Queries` in a file of InstructBLIP, whose Q-Former `reads`, or of BLIP-2."""
    first, _, rest = name.partition(".")
    match first:
        case "queries":
            return "query_tokens"
        case "norm_picture":
            return f"vision_model.post_layernorm.{rest}"
        case "norm":
            return f"qformer.{'embeddings.' if reads else ''}layernorm.{rest}"
        case "words" | "positions":
            return f"qformer.embeddings.{first.removesuffix('s')}_embeddings.{rest}"
        case "unused":
            index, rest = str(config.depth - 1), f"ffn_words.{rest}"
        case _:
            index, _, rest = rest.partition(".")
    part, _, leaf = rest.rpartition(".")
    return f"qformer.encoder.layer.{index}.{LAYER[part]}.{leaf}"


# ---- the class' forward ------------------------------------------------------------------------------------------
def inputs(model: MLLM, row: Row, facts: Facts) -> dict[str, Tensor]:
    """The row for the class' forward."""
    found = {"input_ids": row.prompt[None], "attention_mask": torch.ones_like(row.prompt)[None]}
    found["pixel_values"] = row.pixels(model.encoders["image"])
    if isinstance(model.llm, HFSeq2Seq):
        start = torch.tensor([model.llm.model.config.decoder_start_token_id])
        found["decoder_input_ids"] = torch.cat([start, row.tokens[len(row.prompt) : -1]])[None]
    if row.prompts:
        found["qformer_input_ids"] = torch.stack(row.prompts)
    elif model.connectors["image"].sees_prompt:
        found["qformer_input_ids"] = torch.zeros(1, 1, dtype=torch.int64)
    return found
