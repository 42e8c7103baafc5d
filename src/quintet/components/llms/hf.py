"""Any causal language model of transformers as an LLM of ours, for fusion at the level of tokens.

The rule of the message tree goes in as a 4-D additive mask and explicit positions, so packing and trees mean the same
here as in our decoder. What cannot be done from outside is refused: standing around blocks, models without explicit
positions (BLOOM), sliding windows, logits that are not simply the output layer's. Remote code is never run.

Tried: OPT (its positions start at 2 inside, its last norm and projections belong to the hidden states), GPT-NeoX.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from quintet.components.llms.attention import dense_mask
from quintet.components.llms.cache import Columns
from quintet.components.roles import Around, Context, Fusion, LLMConfig, plain
from quintet.errors import CheckpointError, ConfigError

__all__ = ["HFCausal", "HFConfig", "pretrained", "refuse_around", "token_tables"]

_SIZES: dict[str, tuple[int, int]] = {
    # name in config.json: (starter, tiny)
    "hidden_size": (192, 32),
    "d_model": (192, 32),
    "word_embed_proj_dim": (192, 32),
    "num_hidden_layers": (6, 2),
    # An encoder and a decoder are two stacks.
    "num_layers": (3, 2),
    "num_decoder_layers": (3, 2),
    "num_attention_heads": (6, 4),
    "num_heads": (6, 4),
    "num_key_value_heads": (2, 2),
    "d_kv": (32, 8),
    "head_dim": (32, 8),
    "intermediate_size": (512, 64),
    "ffn_dim": (512, 64),
    "d_ff": (512, 64),
    "vocab_size": (2048, 512),
}
_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, kw_only=True)
class HFConfig(LLMConfig):
    """A model of transformers, described by its whole `config.json`: sizes are known without weights or network."""

    config: Mapping[str, Any]
    """The published `config.json`."""
    source: str | None = None
    """Hub name or local folder of the weights."""
    revision: str | None = None
    """Commit or tag on the hub."""
    licence: str | None = None

    def __post_init__(self) -> None:
        if "model_type" not in self.config:
            raise ConfigError("a transformers config needs model_type; give the whole config.json")
        for name, value in self.config.items():
            # Our JSON keeps "type" for classes of ours.
            if isinstance(value, Mapping) and "type" in value:
                raise ConfigError(f"{name} has an entry 'type', which our files cannot hold; call it rope_type")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The model in a local folder.

        Raises:
            CheckpointError: no config.json there.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no config.json; give a folder that save_pretrained wrote")
        config: dict[str, Any] = json.loads(path.read_text())
        scaling = config.get("rope_scaling")
        if scaling and "type" in scaling:  # the name before transformers 4.43
            config["rope_scaling"] = {"rope_type" if k == "type" else k: v for k, v in scaling.items()}
        return cls(config=config, source=str(folder))

    @property
    def dim(self) -> int:
        """Width of its embeddings, which is what connectors write (OPT-350M's blocks are wider)."""
        config = self.transformers()
        return getattr(config, "word_embed_proj_dim", None) or config.hidden_size

    @property
    def depth(self) -> int:
        return self.transformers().num_hidden_layers

    @property
    def vocab(self) -> int:
        return self.transformers().vocab_size

    def transformers(self) -> Any:
        """The `PreTrainedConfig`.

        Raises:
            ConfigError: a model type that this version of transformers does not have, or that is no language model.
        """
        return _config(json.dumps(dict(self.config), sort_keys=True))

    def starter(self) -> Self:
        """The same architecture at the size of the parts that ship with the package."""
        return self._small(0)

    def tiny(self) -> Self:
        """The same architecture at a size for tests."""
        return self._small(1)

    def _small(self, column: int) -> Self:
        full = self.transformers().to_dict()
        sizes = {name: size[column] for name, size in _SIZES.items() if full.get(name) is not None}
        return replace(self, config={**self.config, **sizes}, source=None, revision=None, licence=None)


class HFCausal(nn.Module):
    """Tokens → hidden states by a causal model of transformers."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HFConfig):
        """See `HFConfig`."""

        def build(self, *, vocab: int | None = None) -> "HFCausal":
            """The module with random weights; `vocab` replaces the published vocabulary when tokens are added."""
            return HFCausal(self if vocab is None else replace(self, config={**self.config, "vocab_size": vocab}))

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.cfg = cfg
        self.dim, self.depth, self.vocab = cfg.dim, cfg.depth, cfg.vocab
        config = cfg.transformers()
        try:
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype())
        except ValueError as error:
            raise ConfigError(f"transformers has no causal model for {config.model_type!r}: {error}") from None
        _fill_rotary(self.model)
        _check_causal(self.model)

    def load(self, folder: Path) -> None:
        """Takes the weights of a local folder (safetensors only); added tokens keep their mean initial rows."""
        from transformers import AutoModelForCausalLM

        self.model = pretrained(AutoModelForCausalLM, folder, vocab=self.vocab, like=self.model)

    def embed(self, tokens: Tensor) -> Tensor:
        """int64[B, T] → float[B, T, D]."""
        return self.model.get_input_embeddings()(tokens)

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        """Hidden states as the output layer wants them, float[B, T, D].

        Raises:
            ConfigError: a fusion that stands around blocks.
        """
        refuse_around(around, "HFCausal")
        held: HFCache | None = ctx.cache
        if held is not None:
            held.extend(ctx)
        hidden = self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=_additive(dense_mask(ctx, window=None), embeds.dtype),
            position_ids=ctx.positions,
            past_key_values=None if held is None else held.layers,
            use_cache=held is not None,
        )
        return hidden.last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """float[…, D] → logits float[…, V]."""
        return self.model.get_output_embeddings()(hidden)

    def tables(self) -> tuple[Tensor, ...]:
        """The embedding's weight, and the head's unless it is tied: float[V, D] each."""
        return token_tables(self.model)

    def new_cache(self, rows: int, columns: int) -> "HFCache":
        """An empty cache with room for the prompt's columns and those to be generated."""
        return HFCache(rows, columns, device=self.model.device)


class HFCache(Columns):
    """transformers' own cache beside the vectors that say who sees what."""

    def __init__(self, rows: int, columns: int, *, device: torch.device) -> None:
        super().__init__(rows, columns, device=device)
        from transformers import DynamicCache

        # Without the config: with it, layers of some models would drop old columns on their own.
        self.layers = DynamicCache()


def refuse_around(around: Around, name: str) -> None:
    """Lets pass the two hooks that do nothing.

    Raises:
        ConfigError: any other.
    """
    if around is not plain and getattr(around, "__func__", None) is not Fusion.around:
        raise ConfigError(
            f"{name} runs transformers' own layers, which no fusion can stand around; use token-level fusion,"
            " or quintet.components.llms.decoder.Decoder (Llama, Mistral, Qwen2, Qwen3)"
        )


def pretrained(auto: Any, folder: Path, *, vocab: int, like: nn.Module) -> Any:
    """A model of transformers from a local folder, with `vocab` rows, on the device and in the dtype of `like`.

    Raises:
        CheckpointError: no safetensors there, or more rows than asked for.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no safetensors; pickled weights are never opened")
    first = next(like.parameters())
    try:
        model = auto.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=first.dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from None
    found = model.get_input_embeddings().weight.shape[0]
    if found > vocab:
        raise CheckpointError(f"{folder} has {found} rows of vocabulary, the model was built with {vocab}")
    if found < vocab:
        # By hand: transformers draws the new rows at random about the mean.
        model.resize_token_embeddings(vocab, mean_resizing=False)
        with torch.no_grad():
            for table in {id(t): t for t in _tables(model)}.values():
                table[found:] = table[:found].float().mean(0).to(table.dtype)
    return model.to(first.device)


def token_tables(model: Any) -> tuple[Tensor, ...]:
    """The weights of a model of transformers with a row a token: the embedding, and the head's unless it is the same.

    Raises:
        ConfigError: the embedding or the head does more than look up and multiply.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    scaled = getattr(model.config, "scale_decoder_outputs", False)
    if type(embedding) is not nn.Embedding or head.bias is not None or scaled:
        raise ConfigError(
            f"{model.config.model_type} scales its embeddings or logits, or its head has a bias, so rows of added"
            " tokens cannot be trained apart; train the whole `llm`, or choose another LLM"
        )
    first, *rest = _tables(model)
    return (first, *(table for table in rest if table is not first))


def _tables(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@cache
def _config(text: str) -> Any:
    from transformers import AutoConfig

    given = json.loads(text)
    try:
        config = AutoConfig.for_model(**given)
    except ValueError as error:
        raise ConfigError(f"transformers knows no model_type {given['model_type']!r}: {error}") from None
    missing = [name for name in ("hidden_size", "num_hidden_layers", "vocab_size") if not hasattr(config, name)]
    if missing:
        raise ConfigError(f"model_type {given['model_type']!r} has no {', '.join(missing)}; it is no language model")
    return config


def _fill_rotary(model: nn.Module) -> None:
    """Rotary frequencies that were made on the meta device, made again: no file holds them, so none would fill them."""
    for module in model.modules():
        names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if names and hasattr(module, "rope_type"):
            with torch.device("cpu"):
                fresh = type(module)(module.config)
            for name in names:
                module.register_buffer(name, getattr(fresh, name), persistent=False)


def _check_causal(model: Any) -> None:
    """Refuses what would silently compute something else."""
    kind, config = model.config.model_type, model.config
    taken = signature(type(model.base_model).forward).parameters
    for name in ("inputs_embeds", "position_ids", "attention_mask"):
        if name not in taken:
            raise ConfigError(f"{kind} takes no {name}, so rows cannot be packed; choose another LLM")
    for name in _SCALED_LOGITS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ConfigError(f"{kind} changes its logits by {name}; HFCausal does not; choose another LLM")
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        raise ConfigError(f"{kind} has a sliding window, which a mask of the tree would undo; use Decoder")


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and the least finite number, which every attention of transformers understands."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
