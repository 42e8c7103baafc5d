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
from quintet.model.family import Facts, Row, on_disk
from quintet.model.mllm import MLLM

__all__ = [
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

NEWLINE_ID = 71_019
"""|NEWLINE| in the published vocabulary, from memory; a folder's own tokenizer is asked first."""

_EMBEDDING = "model.embed_tokens.weight"
_SPELLINGS = [
    ("vision", re.compile(r"(?:model\.)?vision_embed_tokens\.(.+)"), ""),
    ("text", re.compile(r"language_model\.((?:model|lm_head)\..+)"), ""),
    ("text", re.compile(r"model\.language_model\.(.+)"), "model."),
    ("text", re.compile(r"(lm_head\..+)"), ""),
]
"""Names on disk and names in memory, as for LLaVA."""


def recipe(config: Mapping[str, Any]) -> str:
    """The recipe whose conversations such weights were trained on."""
    return "fuyu"


def tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The ids that the model does not hold; see `Family.tokens`."""
    newline = vocabulary.get("|NEWLINE|", NEWLINE_ID)
    return {"image_token_id": config["image_token_id"], "newline_token_id": newline}


def from_config(config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
    """The composition that a Fuyu `config.json` describes; `config` has all its defaults filled in.

    Pictures keep their size, so `image` is not asked.

    Raises:
        ConfigError: pictures of another number of channels.
    """
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
    return {
        "architectures": ["FuyuForCausalLM"],
        "model_type": "fuyu",
        "patch_size": pixels.config.patch,
        "num_channels": 3,
        "image_token_id": facts.image_token_id,
        "dtype": str(next(llm.parameters()).dtype).removeprefix("torch."),
        "text_config": llm.model.config.to_dict(),
    }


def to_state(model: MLLM, facts: Facts) -> dict[str, Tensor]:
    """The weights under the names that transformers writes to disk."""
    _, connector, llm = _parts(model)
    state = {f"vision_embed_tokens.{n}": p for n, p in connector.inner.project.named_parameters()}  # type: ignore[union-attr]
    state |= {f"language_model.{name}": value for name, value in llm.model.state_dict().items()}
    embedding = state[f"language_model.{_EMBEDDING}"].detach().clone()
    embedding[_newline(facts, embedding)] = connector.newline.detach()
    state[f"language_model.{_EMBEDDING}"] = embedding
    return on_disk(state)


@torch.no_grad()
def load_state(model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
    """Copies a Fuyu file's weights into a model of `from_config`,.

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit.
    """
    _, connector, llm = _parts(model)
    parts: dict[str, Any] = {"vision": connector.inner.project, "text": llm.model}
    found: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}}
    for name in state:
        for part, pattern, ours in _SPELLINGS:
            if match := pattern.fullmatch(name):
                found[part][ours + match[1]] = state[name]
                break
        else:
            raise CheckpointError(f"{name} is none of FuyuForCausalLM's weights")
    for part, module in parts.items():
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in found[part].items()}
        if wanted != given:
            wrong = sorted({name for name, _ in wanted.items() ^ given.items()})
            raise CheckpointError(f"weights of the {part} part are missing, unexpected or misshapen: {wrong[:4]}")
        module.load_state_dict(found[part])
    embedding = found["text"][_EMBEDDING]
    connector.newline.copy_(embedding[_newline(facts, embedding)])


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
            "Persimmon, without adapters; this model is another: use it through Quintet"
        )
    return encoder, connector, model.llm  # type: ignore[return-value]


def _newline(facts: Facts, embedding: Tensor) -> int:
    row = facts.newline_token_id
    if row is None or not 0 <= row < len(embedding):
        raise CheckpointError(f"|NEWLINE| is token {row}, past the {len(embedding)} of the vocabulary")
    return row
