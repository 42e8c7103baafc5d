"""transformers' `LlavaForConditionalGeneration` and `LlavaNext…` ⇄ `MLLM`: the same parts under other names, both ways.

    model.vision_tower           ⇄  encoders.image        CLIP or SigLIP (`Vision`)
    model.multi_modal_projector  ⇄  connectors.image      two linear layers (`Mlp`)
    model.language_model         ⇄  llm                   Llama, Mistral, Qwen2 or Qwen3 (`Decoder`)

and for LLaVA-NeXT the tower inside `Tiles`, the two layers inside a `Newline`:

    model.image_newline          ⇄  connectors.image.newline

Only names move; weights are copied as they are. What the class cannot express is refused with the reason.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from quintet.components.connectors.mlp import Activation, Mlp
from quintet.components.connectors.newline import Newline
from quintet.components.encoders.hf_config import from_hf as vision_from_hf
from quintet.components.encoders.hf_config import to_hf as vision_to_hf
from quintet.components.encoders.hf_config import to_image_processor
from quintet.components.encoders.tiles import Tiles
from quintet.components.encoders.vision import Select, Vision, resize_positions
from quintet.components.encoders.weights import load_hf_state as load_vision
from quintet.components.encoders.weights import to_hf_state as vision_state
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf_config import from_hf as llm_from_hf
from quintet.components.llms.hf_config import to_hf as llm_to_hf
from quintet.components.llms.weights import load_hf_state as load_llm
from quintet.components.llms.weights import to_hf_state as llm_state
from quintet.components.roles import ConnectorConfig, EncoderConfig, ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.model.family import Facts, Row, on_disk, refuse_adapters, with_row
from quintet.model.mllm import MLLM

__all__ = ["from_config", "inputs", "load_state", "processor", "recipe", "to_config", "to_state", "tokens"]

_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}
_EMBEDDING, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


# ---- settings ----------------------------------------------------------------------------------------------------
def recipe(config: Mapping[str, Any]) -> str:
    """The recipe whose conversations such weights were trained on."""
    return "llava_next" if config["model_type"] == "llava_next" else "llava15"


def tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The ids that the model does not hold; see `Family.tokens`."""
    found = config["image_token_index"]
    if found >= config["text_config"]["vocab_size"]:
        raise CheckpointError(
            f"the image token {found} is past the {config['text_config']['vocab_size']} of the vocabulary"
        )
    return {"image_token_id": found}


def from_config(config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
    """The composition that a LLaVA or LLaVA-NeXT `config.json` describes; `config` has all its defaults filled in.

    `image` gives the preparation of pictures for the tower's size in pixels. Everything of the tower is kept, so that
    an export gives back every weight.

    Raises:
        ConfigError: a tower, a text model or a setting that our parts do not have.
    """
    tower = vision_from_hf(config["vision_config"])
    if tower.family == "dinov2":
        raise ConfigError("a DINOv2 tower: LLaVA folders with CLIP or SigLIP towers can be imported")
    act, layer = config["projector_hidden_act"], config["vision_feature_layer"]
    if act not in _ACTIVATIONS:
        raise ConfigError(f"projector_hidden_act is {act!r}; ours are {', '.join(_ACTIVATIONS)}")
    # "default" cuts the first token whatever it is: CLIP's class token, SigLIP's top left patch.
    first_cut: Select = "patch" if tower.extra else "rest"
    encoder: EncoderConfig = replace(
        tower,
        image=image(tower.trained_size),
        layer=layer if isinstance(layer, int) else tuple(layer),
        select=first_cut if config["vision_feature_select_strategy"] == "default" else "full",
        keep_unused=True,
    )
    text = dict(config["text_config"])
    text["tie_word_embeddings"] = bool(config["tie_word_embeddings"] or text.get("tie_word_embeddings"))
    connector: ConnectorConfig = Mlp.Config(bias=config["multimodal_projector_bias"], act=_ACTIVATIONS[act])
    if config["model_type"] == "llava_next":
        encoder = Tiles.Config(
            encoder=replace(encoder, image=replace(encoder.spec, fit="squash")),  # type: ignore[call-arg]
            grids=_grids(config["image_grid_pinpoints"], tower.trained_size),
        )
        connector = Newline.Config(inner=connector, rows="details")
    return MLLM.Config(
        encoders={"image": encoder},
        connectors={"image": connector},
        fusion=TokenFusion.Config(),
        llm=llm_from_hf(text),
    )


def _grids(pinpoints: list[list[int]], side: int) -> tuple[tuple[int, int], ...]:
    """Canvases in pixels as rows and columns of tiles."""
    if not pinpoints:
        raise ConfigError("image_grid_pinpoints is empty; expected at least one canvas [height, width] in pixels")
    if any(pixels % side for point in pinpoints for pixels in point):
        raise ConfigError(f"image_grid_pinpoints {pinpoints} are not made of tiles of {side} pixels")
    return tuple((height // side, width // side) for height, width in pinpoints)


@dataclass(frozen=True)
class _Parts:
    """The three parts of a model that the class can express, and what LLaVA-NeXT puts around them."""

    encoder: Vision
    connector: Mlp
    llm: Decoder
    tiles: Tiles | None = None
    newline: Newline | None = None


def _parts(model: MLLM) -> _Parts:
    """The parts, or why the class cannot hold them."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            f"{what}; transformers' {_class(model)} is a CLIP or SigLIP tower, two linear layers and a Llama, Mistral, "
            "Qwen2 or Qwen3 decoder"
        )

    kinds = sorted(model.encoders)
    if kinds != ["image"]:
        raise refuse(f"this model takes {', '.join(kinds) or 'no media'}")
    encoder, connector, llm = model.encoders["image"], model.connectors["image"], model.llm
    tiles = encoder if isinstance(encoder, Tiles) and encoder.config.join == "map" else None
    newline = connector if isinstance(connector, Newline) and connector.config.rows == "details" else None
    if tiles is not None and newline is not None:
        encoder, connector = tiles.encoder, newline.inner
    if not isinstance(encoder, Vision) or encoder.config.family == "dinov2":
        raise refuse(f"the encoder is {_describe(model.config.encoders['image'])}")
    if encoder.config.select == "cls" or encoder.config.norm:
        raise refuse(f"the features are select={encoder.config.select!r}, norm={encoder.config.norm}")
    if not isinstance(connector, Mlp) or connector.config.depth != 2:
        raise refuse(f"the connector is {_describe(model.config.connectors['image'])}")
    if type(model.fusion) is not TokenFusion:
        raise refuse(f"the fusion is {_describe(model.config.fusion)}")
    if not isinstance(llm, Decoder):
        raise refuse(f"the LLM is {_describe(model.config.llm)}")
    refuse_adapters(model)
    height, width = encoder.config.spec.size
    if not encoder.config.spec.fixed or height != width:
        raise refuse(f"pictures are {height} × {width}, fit={encoder.config.spec.fit!r}, not of one square size")
    return _Parts(encoder, connector, llm, tiles, newline)


def _describe(config: object) -> str:
    name = type(config).__qualname__.removesuffix(".Config")
    if isinstance(config, Vision.Config):
        return f"{name} ({config.family})"
    return f"{name} (depth={config.depth})" if isinstance(config, Mlp.Config) else name


def _class(model: MLLM) -> str:
    """The class of transformers that is meant."""
    tiles = isinstance(model.config.encoders.get("image"), Tiles.Config)
    return "LlavaNextForConditionalGeneration" if tiles else "LlavaForConditionalGeneration"


def to_config(model: MLLM, facts: Facts) -> dict[str, Any]:
    """The `config.json` of transformers for this model.

    Raises:
        ConfigError: the class cannot express the composition; the message says why.
    """
    parts = _parts(model)
    encoder = parts.encoder.config
    side = encoder.spec.size[0]
    vision = vision_to_hf(encoder) | {"image_size": side}
    vision.pop("architectures")
    # Without the layers after it, the deepest feature layer is the last one.
    depth = encoder.depth if encoder.keep_unused else encoder.num_run
    layers = [index - depth - 1 for index in encoder.indices]
    text = llm_to_hf(parts.llm.cfg) | {"vocab_size": max(parts.llm.vocab, facts.image_token_id + 1)}
    text.pop("architectures")
    next_: dict[str, Any] = {}
    if parts.tiles is not None:
        canvases = [[rows * side, cols * side] for rows, cols in parts.tiles.config.grids]
        next_ = {"model_type": "llava_next", "image_grid_pinpoints": canvases}
        next_["architectures"] = ["LlavaNextForConditionalGeneration"]
    acts = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    cuts_first = encoder.select == "rest" or (encoder.select == "patch" and encoder.extra > 0)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": facts.image_token_id,
        "image_seq_length": encoder.layout((side, side)).count,
        "projector_hidden_act": acts[parts.connector.config.act],
        "multimodal_projector_bias": parts.connector.config.bias,
        "vision_feature_layer": layers[0] if isinstance(encoder.layer, int) else layers,
        "vision_feature_select_strategy": "default" if cuts_first else "full",
        "tie_word_embeddings": parts.llm.cfg.tie_head,
        "dtype": str(parts.llm.embedding.weight.dtype).removeprefix("torch."),
        "vision_config": vision,
        "text_config": text,
    } | next_


def processor(model: MLLM, facts: Facts, *, image_token: str) -> dict[str, dict[str, Any]]:
    """What transformers prepares words and pictures by."""
    parts = _parts(model)
    encoder, name, more = parts.encoder.config, "LlavaProcessor", {}
    config = to_config(model, facts)
    if parts.tiles is not None:
        name = "LlavaNextProcessor"
        more = {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True}
        more["image_grid_pinpoints"] = config["image_grid_pinpoints"]
    return {
        "preprocessor_config.json": to_image_processor(encoder.spec) | more,
        "processor_config.json": {
            "processor_class": name,
            "image_token": image_token,
            "patch_size": encoder.patch,
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
            "num_additional_image_tokens": encoder.extra,
        },
    }


# ---- the class' forward ------------------------------------------------------------------------------------------
def inputs(model: MLLM, row: Row, facts: Facts) -> dict[str, Tensor]:
    """The row for the class' forward."""
    found = {"input_ids": row.tokens[None]}
    encoder = model.encoders["image"]
    if row.pictures and isinstance(encoder, Tiles):
        views = [torch.stack(encoder.divided(picture)) for picture in row.pictures]
        pixels = torch.nn.utils.rnn.pad_sequence(views, batch_first=True)
        found["image_sizes"] = torch.tensor([picture.shape[1:] for picture in row.pictures])
        assert isinstance(encoder.encoder, Vision)
        found["pixel_values"] = encoder.encoder.normalise(pixels)
    elif row.pictures:
        found["pixel_values"] = row.pixels(encoder)
    return found


# ---- weights -----------------------------------------------------------------------------------------------------
def to_state(model: MLLM, facts: Facts) -> dict[str, Tensor]:
    """The weights under the names that transformers writes to disk, for the config of `to_config`.

    Positions for another picture size are resized here, once, as the encoder does at every forward. An image token
    past the vocabulary gets rows of its own: the mean of all rows, which nothing reads.
    """
    parts = _parts(model)
    encoder, spec = parts.encoder, parts.encoder.config.spec
    vision = vision_state(encoder)
    vision["embeddings.position_embedding.weight"] = resize_positions(
        encoder.positions, extra=encoder.config.extra, side=encoder.config.table, grid=encoder.config.grid(spec.size)
    )
    state = {f"vision_tower.{name}": value for name, value in vision.items()}
    for number, layer in enumerate(parts.connector.project.layers, start=1):
        for name, value in layer.named_parameters():
            state[f"multi_modal_projector.linear_{number}.{name}"] = value
    if parts.newline is not None:
        state["image_newline"] = parts.newline.newline
    state |= {f"language_model.{name}": value for name, value in llm_state(parts.llm).items()}
    for name in {_EMBEDDING, _HEAD} & state.keys():
        state[name] = with_row(state[name].detach(), facts.image_token_id)
    return on_disk(state)


def load_state(model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
    """Copies a LLaVA file's weights into a model of `from_config`.

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit.
    """
    parts = _parts(model)
    found: dict[str, dict[str, str]] = {"vision": {}, "projector": {}, "text": {}, "newline": {}}
    unknown: list[str] = []
    for name in state:
        for part, pattern, ours in _SPELLINGS:
            if match := pattern.fullmatch(name):
                found[part][ours + match[1]] = name
                break
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{len(unknown)} weights are none of {_class(model)}'s: {', '.join(sorted(unknown)[:4])}")
    load_vision(parts.encoder, _Renamed(state, found["vision"]))
    load_llm(parts.llm, _Renamed(state, found["text"]))
    _load_projector(parts.connector, _Renamed(state, found["projector"]))
    _load_newline(parts.newline, _Renamed(state, found["newline"]))


_SPELLINGS = [
    ("vision", re.compile(r"(?:model\.)?vision_tower\.(.+)"), ""),
    ("projector", re.compile(r"(?:model\.)?multi_modal_projector\.(.+)"), ""),
    # On disk a whole causal LM stands below `language_model`; in memory its body, with the head beside it.
    ("text", re.compile(r"language_model\.((?:model|lm_head)\..+)"), ""),
    ("text", re.compile(r"model\.language_model\.(.+)"), "model."),
    ("text", re.compile(r"(lm_head\..+)"), ""),
    ("newline", re.compile(r"(?:model\.)?image_(newline)"), ""),
]
"""Names on disk, names in memory, and the hub's of 2023: all three are in the wild."""


class _Renamed(Mapping[str, Tensor]):
    """Weights read one by one under other names."""

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._state, self._names = state, names

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@torch.no_grad()
def _load_projector(connector: Mlp, state: Mapping[str, Tensor]) -> None:
    layers = [cast(torch.nn.Linear, layer) for layer in connector.project.layers]
    wanted = {f"linear_{i}.{n}": p for i, layer in enumerate(layers, start=1) for n, p in layer.named_parameters()}
    if wanted.keys() != set(state):
        missing, extra = sorted(wanted.keys() - set(state)), sorted(set(state) - wanted.keys())
        raise CheckpointError(f"the projector does not fit: missing {missing}, unexpected {extra}")
    for name, weight in wanted.items():
        value = state[name]
        if value.shape != weight.shape:
            raise CheckpointError(
                f"multi_modal_projector.{name} is {tuple(value.shape)} in the file, {tuple(weight.shape)} in the model"
            )
        weight.copy_(value)


@torch.no_grad()
def _load_newline(connector: Newline | None, state: Mapping[str, Tensor]) -> None:
    wanted = {} if connector is None else {"newline": connector.newline}
    if wanted.keys() != set(state):
        raise CheckpointError(f"the file has {len(state)} image_newline, and the model has {len(wanted)}")
    for name, weight in wanted.items():
        if state[name].shape != weight.shape:
            raise CheckpointError(f"image_newline is {tuple(state[name].shape)}; expected {tuple(weight.shape)}")
        weight.copy_(state[name])
