"""What a file of a published class gives, so that `quintet import` and `export` can use it, and what such files share.

A family is a module with the six functions of `Family` and the name of a recipe. `families.py` has the table of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quintet.components.encoders.vision import Vision
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf import HFCausal
from quintet.components.llms.hf_config import from_hf as decoder_from_hf
from quintet.components.llms.hf_config import to_hf as decoder_to_hf
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.llms.weights import to_hf_state as decoder_state
from quintet.components.lora import LoraLinear
from quintet.components.roles import ImageSpec, LLMConfig
from quintet.errors import CheckpointError, ConfigError
from quintet.model.mllm import MLLM
from quintet.values import Batch, MediaBatch, Targets

__all__ = [
    "DERIVED",
    "Facts",
    "Family",
    "Row",
    "cast",
    "copy_into",
    "llm_config",
    "llm_views",
    "materialised",
    "on_disk",
    "refuse_adapters",
    "text_config",
    "with_row",
]

DERIVED = ("position_ids", "rotary_emb.inv_freq", "embed_positions.weights")
"""Ends of the names of buffers that old files carry: functions of the config."""
_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
_SEQ2SEQ = ("t5", "mt5")


@dataclass(frozen=True)
class Facts:
    """What a published folder says beside its model."""

    image_token_id: int
    """The token that stands for one feature of a picture."""
    vocab: int
    """Rows of the embedding."""
    dtype: str
    source: str
    """Name of the folder."""
    newline_token_id: int | None = None
    """Fuyu's: the token that ends a row of patches."""
    kind: str = "llava"
    """`model_type` of the folder."""
    first_added: int | None = None
    """IDEFICS': the first of the tokens whose rows are in tables of their own."""


@dataclass(frozen=True)
class Row:
    """Random words and pictures, as one row for our model and for a published class."""

    tokens: Tensor
    """int64[T]."""
    pictures: tuple[Tensor, ...]
    """uint8[3, H, W] each."""
    slots: Tensor
    """Columns of the pictures, int64."""
    counts: tuple[int, ...]
    """Columns of each picture."""
    prompts: tuple[Tensor, ...] = ()
    """What a connector that reads the instruction reads, int64[L] a picture."""
    answer: int = 0
    """Columns at the end that are an answer: what an encoder–decoder's decoder writes."""

    @property
    def prompt(self) -> Tensor:
        """The tokens before the answer."""
        return self.tokens[: len(self.tokens) - self.answer]

    def pixels(self, encoder: Any) -> Tensor:
        """The pictures as a `Vision` sees them, float[N, 3, H, W]; for a class that insists on one, a black picture."""
        assert isinstance(encoder, Vision)
        pictures = self.pictures or (torch.zeros(3, *encoder.config.spec.size, dtype=torch.uint8),)
        return encoder.normalise(torch.stack(pictures))

    def read(self) -> Tensor:
        """The columns whose logits are compared, int64."""
        if not self.answer:
            return torch.arange(len(self.tokens))
        return torch.arange(len(self.prompt) - 1, len(self.tokens) - 1)

    def batch(self) -> Batch:
        """The row for our model. An image token past our vocabulary becomes 0: its embedding is written over."""
        columns = torch.arange(len(self.tokens))[None]
        zeros = torch.zeros_like(columns)
        place = torch.zeros(len(self.pictures), dtype=torch.int64)
        tokens = self.tokens.clone()
        tokens[self.slots] = 0
        media = MediaBatch(
            values=self.pictures,
            slots=self.slots,
            counts=self.counts,
            row=place,
            enter=place,
            exit=place + 1,
            order=torch.stack([columns[0] for columns in self.slots.split(self.counts)]) if self.counts else place,
            prompts=self.prompts,
        )
        ids = self.tokens[len(self.prompt) :]
        targets = Targets(self.read()[: len(ids)], ids, torch.ones(len(ids)), torch.zeros_like(ids))
        return Batch(
            tokens=tokens[None],
            enter=zeros,
            exit=zeros + 1,
            order=columns,
            positions=columns,
            targets=targets,
            media={"image": media} if self.pictures else {},
            lengths=(len(tokens),),
        )

    def with_other_pictures(self) -> "Row":
        """The same words with every picture inverted."""
        return replace(self, pictures=tuple(255 - picture for picture in self.pictures))


class Family(Protocol):
    """A published class: settings and weights, both ways, and how its forward is called."""

    def recipe(self, config: Mapping[str, Any]) -> str:
        """The recipe whose conversations the published weights were trained on."""
        ...

    def tokens(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
        """The ids among `Facts`, by name; `vocabulary` is the tokenizer's, empty without one.

        Raises:
            ConfigError: neither the config nor the tokenizer says one.
        """
        ...

    def from_config(self, config: Mapping[str, Any], *, image: Callable[[int], ImageSpec]) -> MLLM.Config:
        """The composition that a `config.json` describes, of which all defaults are filled in.

        `image` gives the preparation of pictures for the tower's size in pixels.

        Raises:
            ConfigError: a setting that our parts do not have.
        """
        ...

    def load_state(self, model: MLLM, state: Mapping[str, Tensor], facts: Facts) -> None:
        """Copies a file's weights into a model of `from_config`.

        Raises:
            CheckpointError: missing or unexpected names, or a shape that does not fit.
        """
        ...

    def to_config(self, model: MLLM, facts: Facts) -> dict[str, Any]:
        """The `config.json` of transformers for this model.

        Raises:
            ConfigError: the class cannot express the composition; the message says why.
        """
        ...

    def to_state(self, model: MLLM, facts: Facts) -> dict[str, Tensor]:
        """The weights under the names that transformers writes to disk, for the config of `to_config`."""
        ...

    def processor(self, model: MLLM, facts: Facts, *, image_token: str) -> dict[str, dict[str, Any]]:
        """What prepares words and pictures, as transformers reads it: name of the file → content."""
        ...

    def inputs(self, model: MLLM, row: Row, facts: Facts) -> dict[str, Tensor]:
        """The row for the class' forward; pictures in float32."""
        ...


# ---- weights -----------------------------------------------------------------------------------------------------
def materialised(config: MLLM.Config, dtype: torch.dtype) -> MLLM:
    """The model on the CPU in this type with weights that are not set, without the time that random ones take."""
    with torch.device("meta"):
        model = config.build()
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:  # one that stands in two places stays one
                empty = nn.Parameter(torch.empty_like(weight, dtype=dtype, device="cpu"), weight.requires_grad)
                module._parameters[name] = made.setdefault(weight, empty)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                assert name not in module._non_persistent_buffers_set, f"no file fills {name}"
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                module._buffers[name] = torch.empty_like(buffer, dtype=kind, device="cpu")
    return model


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes the weights of this type. What no file holds stays: rotary frequencies are wrong in 16 bits."""
    for module in model.modules():
        held = [n for n in module._buffers if n not in module._non_persistent_buffers_set]
        for tensor in (*module._parameters.values(), *(module._buffers[n] for n in held)):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


@torch.no_grad()
def copy_into(views: Mapping[str, Tensor], state: Mapping[str, Tensor], *, what: str) -> None:
    """Copies a file's weights into ours, which `views` has under the file's names.

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit; nothing is copied then.
    """
    missing, extra = sorted(views.keys() - set(state)), sorted(set(state) - views.keys())
    if missing or extra:
        raise CheckpointError(f"the file is no such {what}: missing {missing[:4]}, unexpected {extra[:4]}")
    for name, weight in views.items():
        value = state[name]
        if value.shape != weight.shape:
            raise CheckpointError(f"{name} is {tuple(value.shape)} in the file, {tuple(weight.shape)} in the model")
    for name, weight in views.items():
        weight.copy_(state[name])


def on_disk(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a file takes them: on the CPU, and a piece of a larger table as a tensor of its own."""
    found: dict[str, Tensor] = {}
    for name, value in sorted(views.items()):
        value = value.detach().to("cpu").contiguous()
        found[name] = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
    return found


def with_row(table: Tensor, row: int) -> Tensor:
    """A table of tokens float[V, D] that has this row; new ones are the mean of all, which nothing reads."""
    if row < len(table):
        return table
    return torch.cat([table, table.float().mean(0).to(table.dtype).expand(row + 1 - len(table), -1)])


def refuse_adapters(model: MLLM) -> None:
    """Raises ConfigError for a model with an adapter beside its weights."""
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise ConfigError(
            "this model has an adapter beside its weights; merge it first (quintet.components.lora.merge)"
        )


# ---- LLMs --------------------------------------------------------------------------------------------------------
def llm_config(text: Mapping[str, Any]) -> LLMConfig:
    """The LLM of a `text_config`: our decoder where it is one of its families, else transformers' own class."""
    if text["model_type"] in _DECODERS:
        return decoder_from_hf(text)
    kind = HFSeq2Seq if text["model_type"] in _SEQ2SEQ else HFCausal
    return kind.Config(config={name: value for name, value in text.items() if value is not None})


def text_config(llm: Any, *, vocab: int) -> dict[str, Any]:
    """The `text_config` of an LLM that `llm_config` gives, with this many rows."""
    if isinstance(llm, Decoder):
        config = decoder_to_hf(llm.cfg)
        config.pop("architectures")
    elif isinstance(llm, HFCausal | HFSeq2Seq):
        config = llm.model.config.to_dict()
        config.pop("dtype", None)
        if isinstance(llm, HFSeq2Seq):
            # transformers 5 says of every T5 that its head is tied.
            config["tie_word_embeddings"] = llm.cfg.config.get("tie_word_embeddings", True)
    else:
        raise ConfigError(f"the LLM is {type(llm).__name__}; expected a decoder, or a model of transformers")
    return config | {"vocab_size": vocab}


def llm_views(llm: Any) -> dict[str, Tensor]:
    """Our weights, not copied, under the names of the LLM's own file; one that is tied has one name."""
    if isinstance(llm, Decoder):
        return decoder_state(llm)
    return dict(llm.model.named_parameters()) | {n: b for n, b in llm.model.named_buffers() if n in _saved(llm.model)}


def _saved(model: nn.Module) -> set[str]:
    return set(model.state_dict())
