"""transformers' `FuyuForCausalLM` ⇄ `MLLM`: one linear layer and Persimmon, both ways.

    vision_embed_tokens                     ⇄  connectors.image.inner.project
    language_model                          ⇄  llm.model               (`PersimmonForCausalLM` in both)
    the row of |NEWLINE| in its embedding   ⇄  connectors.image.newline

Weights are copied as they are. The row of |NEWLINE| stands in both places after an import; an export writes the
connector's vector into it, which is the one that pictures were read with.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quintet.components.connectors.linear import Linear
from quintet.components.connectors.newline import Newline
from quintet.components.encoders.pixels import Pixels
from quintet.components.llms.hf import HFCausal
from quintet.components.lora import LoraLinear
from quintet.components.roles import ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.model.family import DERIVED, Facts, Row, copy_into, on_disk, with_row
from quintet.model.mllm import MLLM

__all__ = [
    "NEWLINE",
    "NEWLINE_ID",
    "from_config",
    "inputs",
    "load_state",
    "processor",
    "recipe",
    "to_config",
    "to_state",
    "tokens",
]

NEWLINE = "|NEWLINE|"
"""The token that ends a row of patches."""
NEWLINE_ID = 71_019
"""Its id in the published vocabulary, from memory; a folder's own tokenizer is asked first."""

_EMBEDDING = "language_model.model.embed_tokens.weight"
_TABLES = (_EMBEDDING, "language_model.lm_head.weight")
_IN_MEMORY = [
    (re.compile(r"model\.vision_embed_tokens\."), "vision_embed_tokens."),
    (re.compile(r"model\.language_model\."), "language_model.model."),
    (re.compile(r"lm_head\."), "language_model.lm_head."),
]
"""Beginnings of names in memory, which some files have, and what they are on disk."""


def recipe(config: Mapping[str, Any]) -> str:
    """The recipe whose conversations such weights were trained on."""
    return "fuyu"


def tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The ids that the model does not hold; see `Family.tokens`."""
    newline = vocabulary.get(NEWLINE, NEWLINE_ID)
    return {"image_token_id": config["image_token_id"], "newline_token_id": newline}


def from_config(config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
    """The composition that a Fuyu `config.json` describes; `config` has all its defaults filled in.

    Pictures keep their size, so `image` is not asked.

    Raises:
        ConfigError: another LLM, or pictures of another number of channels.
    """
    if (kind := config["text_config"]["model_type"]) != "persimmon":
        raise ConfigError(f"the text_config is of model_type {kind!r}; Fuyu's is 'persimmon': is model_type right?")
    if config["num_channels"] != 3:
        raise ConfigError(f"num_channels is {config['num_channels']}; pictures here have 3")
    patch = config["patch_size"]
    encoder = Pixels.Config(patch=patch)
    # The largest picture in whole patches, as the published 1080 × 1920 is in patches of 30.
    most = 36 * patch, 64 * patch
    encoder = replace(encoder, image=replace(encoder.image, size=most, most=most, multiple=patch))
    return MLLM.Config(
        encoders={"image": encoder},
        connectors={"image": Newline.Config(inner=Linear.Config(), rows="all")},
        llm=HFCausal.Config(config={k: v for k, v in config["text_config"].items() if v is not None}),
    )


def to_config(model: MLLM, facts: Facts) -> dict[str, Any]:
    """The `config.json` of transformers for this model.

    Raises:
        ConfigError: the class cannot express the composition; the message says why.
    """
    pixels, _, llm = _parts(model)
    rows = max(llm.vocab, facts.image_token_id + 1, (facts.newline_token_id or 0) + 1)
    return {
        "architectures": ["FuyuForCausalLM"],
        "model_type": "fuyu",
        "patch_size": pixels.config.patch,
        "num_channels": 3,
        "image_token_id": facts.image_token_id,
        "dtype": str(next(llm.parameters()).dtype).removeprefix("torch."),
        "text_config": llm.model.config.to_dict() | {"vocab_size": rows},
    }


def to_state(model: MLLM, facts: Facts) -> dict[str, Tensor]:
    """The weights under the names that transformers writes to disk; tokens past the vocabulary get rows."""
    _, connector, _ = _parts(model)
    assert facts.newline_token_id is not None, "a row of patches ends with a token"
    state = _views(model)
    for name in _TABLES:
        state[name] = with_row(state[name].detach().clone(), max(facts.image_token_id, facts.newline_token_id))
    state[_EMBEDDING][facts.newline_token_id] = connector.newline.detach()
    return on_disk(state)


@torch.no_grad()
def load_state(model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
    """Copies a Fuyu file's weights into a model of `from_config`.

    Raises:
        CheckpointError: missing or unexpected names, a shape that does not fit, or no row for |NEWLINE|.
    """
    _, connector, llm = _parts(model)
    if (row := facts.newline_token_id) is None or not 0 <= row < llm.vocab:
        raise CheckpointError(
            f"{NEWLINE} is token {row}, past the {llm.vocab} of the vocabulary; put the folder's tokenizer beside it"
        )
    views = _views(model)
    copy_into(views, {_on_disk(name): state[name] for name in state if not name.endswith(DERIVED)}, what="Fuyu")
    connector.newline.copy_(views[_EMBEDDING][row])


def _views(model: MLLM) -> dict[str, Tensor]:
    """Published name → our weight, not copied."""
    _, connector, llm = _parts(model)
    found = {f"vision_embed_tokens.{n}": p for n, p in connector.inner.project.named_parameters()}  # type: ignore[union-attr]
    return found | {f"language_model.{name}": value for name, value in llm.model.state_dict().items()}


def _on_disk(name: str) -> str:
    for pattern, begin in _IN_MEMORY:
        if match := pattern.match(name):
            return begin + name[match.end() :]
    return name


def processor(model: MLLM, facts: Facts, *, image_token: str) -> dict[str, dict[str, Any]]:
    """Nothing: its processor's files are those of the published folder."""
    return {}


def inputs(model: MLLM, row: Row, facts: Facts) -> dict[str, Tensor]:
    """The row for the class' forward: the last of each row's columns is a newline, the others are patches."""
    found = {"input_ids": row.tokens[None].clone()}
    encoder = model.encoders["image"]
    if row.pictures:
        assert facts.newline_token_id is not None
        features = encoder(row.pictures)
        sizes = [layout.grid for layout in features.layouts]
        ends = torch.cat([(torch.arange(r * (c + 1)) + 1) % (c + 1) == 0 for r, c in sizes])
        found["input_ids"][0, row.slots[ends]] = facts.newline_token_id
        found["pixel_values"] = features.values[None]
    return found


def _parts(model: MLLM) -> tuple[Pixels, Newline, HFCausal]:
    """The three parts, or why the class cannot hold them."""
    encoder, connector = (dict(part.items()).get("image") for part in (model.encoders, model.connectors))
    fits = isinstance(encoder, Pixels) and isinstance(connector, Newline) and isinstance(connector.inner, Linear)
    text = isinstance(model.llm, HFCausal) and model.llm.model.config.model_type == "persimmon"
    if not (fits and text and len(model.encoders) == 1) or any(isinstance(m, LoraLinear) for m in model.modules()):
        raise ConfigError(
            "transformers' FuyuForCausalLM is patches of pixels, one linear layer with a newline after each row, and "
            "Persimmon, without adapters; this model is another"
        )
    return encoder, connector, model.llm  # type: ignore[return-value]
