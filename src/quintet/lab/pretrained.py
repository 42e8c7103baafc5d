"""Published weights into a model: from a local folder, from the hub's cache, or from the package itself.

Nothing is downloaded unless asked for, no code of a repository is run, and only safetensors are read.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from quintet.components.connectors.qformer import QFormer
from quintet.components.connectors.resampler import sincos
from quintet.components.encoders.convnext import ConvNeXt, load_open_clip_folder
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import load_hf_folder
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf import HFCausal
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.llms.weights import SafetensorsFolder, load_hf_state
from quintet.components.roles import EncoderConfig
from quintet.components.starter import asset
from quintet.data.regions import Bins
from quintet.data.tokenizer import Tokenizer
from quintet.errors import CheckpointError, ConfigError
from quintet.log import logger
from quintet.model.mllm import MLLM
from quintet.model.qformer_source import begin_as
from quintet.recipes._recipe import Recipe
from quintet.training.stage import Stage

__all__ = [
    "build_model",
    "folder_of",
    "load_published",
    "load_tokenizer",
    "look_at_experts",
    "spread_bins",
    "stage_tokenizer",
]

log = logger(__name__)


def folder_of(source: str, *, download: bool = False) -> Path:
    """The local folder of a source: a path, `starter/…`, or a hub name whose snapshot is in the cache.

    Raises:
        CheckpointError: it is not here; the message says how to get it.
    """
    if source.startswith("starter/"):
        return asset(source.removeprefix("starter/"))
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, local_files_only=not download, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError) as error:
        hint = "check the name and the network" if download else "pass --download to fetch it, or name a local folder"
        raise CheckpointError(
            f"the weights {source!r} are not on this machine ({hint}): {type(error).__name__}"
        ) from None


def load_tokenizer(config: MLLM.Config, *, added: Sequence[str] = (), download: bool = False) -> Tokenizer:
    """The LLM's own tokenizer with `added` special tokens; the starter's where the LLM has no published weights."""
    source = getattr(config.llm, "source", None) or "starter/llm"
    tokenizer = Tokenizer.load(folder_of(source, download=download))
    tokenizer.add(*added)
    return tokenizer


def stage_tokenizer(config: MLLM.Config, stage: Stage, tokenizer: Tokenizer, *, download: bool = False) -> Tokenizer:
    """The tokenizer that spells a stage's rows: the LLM's, or that of the connector which reads them in its place."""
    kind = "" if stage.reads else config.matcher
    source = config.connectors[kind].words_source if kind else ""
    return Tokenizer.load(folder_of(source, download=download)) if source else tokenizer


def build_model(
    config: MLLM.Config, *, vocab: int, added: Sequence[int] = (), seed: int = 0, download: bool = False
) -> MLLM:
    """The model with published weights where its parts name some, and seeded random ones elsewhere.

    `added` are ids of added tokens: an LLM whose published rows they exceed is widened, and the new rows begin as the
    mean of the published ones.

    Raises:
        ConfigError: a tokenizer that exceeds the published rows by more than what was added to it.
    """
    torch.manual_seed(seed)
    source, rows = getattr(config.llm, "source", None), config.llm.vocab
    if source and vocab > rows + len(added):
        raise ConfigError(f"the tokenizer has {vocab - len(added)} tokens of its own, the LLM {source!r} only {rows}")
    model = config.build(vocab=max(vocab, rows) if source else vocab, added=added)
    load_published(model, [name for name, _, _ in _published(model)], download=download)
    for part in (*model.connectors.values(), model.fusion):
        if begin := getattr(part, "begin", None):
            begin(model.llm)
    return model


@torch.no_grad()
def spread_bins(model: MLLM, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Gives the tokens of a grid's bins rows by their places, if the recipe has such (`Bins.apart`)."""
    for bins in dict.fromkeys(stage.template.regions for stage in recipe.stages):
        if not isinstance(bins, Bins) or not bins.apart:
            continue
        ids = [tokenizer.id(token) for token in bins.bins]
        for table in model.llm.tables():
            places = sincos(bins.side, table.shape[1] // 4 * 4)
            places = places - places.mean(0)
            places = F.pad(places / places.square().mean().sqrt(), (0, table.shape[1] % 4))
            table[ids] += (bins.apart * table[: min(ids)].float().std(0) * places).to(table)


def look_at_experts(recipe: Recipe, *, download: bool = False) -> None:
    """Their programs first, then their weights: what is missing is said before anything long."""
    experts = [expert for each in recipe.model.experts.values() for expert in each.values()]
    for expert in experts:
        expert.check()
    for expert in experts:
        if expert.source:
            folder_of(expert.source, download=download)


def load_published(model: MLLM, names: Collection[str], *, download: bool = False) -> None:
    """Gives these parts (`llm`, `encoders.image`) the published weights that their settings name.

    Raises:
        ConfigError: a part whose settings name none.
    """
    known = [name for name, _, _ in _published(model)]
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"no published weights are known for {', '.join(unknown)}; give its config a `source`")
    for name, part, source in _published(model):
        if name in names:
            log.info("%s: weights of %s", name, source)
            _load(part, folder_of(source, download=download))


def _published(model: MLLM) -> Iterator[tuple[str, nn.Module, str]]:
    """Every module whose settings name published weights: encoders, also those inside another, connectors, the LLM."""
    for name, module in model.encoders.named_modules():
        config = getattr(module, "config", None)
        if isinstance(config, EncoderConfig) and getattr(config, "source", None):
            yield f"encoders.{name}", module, config.source  # type: ignore[attr-defined]
    for kind, module in model.connectors.items():
        if source := getattr(model.config.connectors[kind], "source", None):
            yield f"connectors.{kind}", module, source
    if source := getattr(model.config.llm, "source", None):
        yield "llm", model.llm, source


def _load(part: nn.Module, folder: Path) -> None:
    if isinstance(part, Vision):
        load_hf_folder(part, folder)
    elif isinstance(part, ConvNeXt):
        load_open_clip_folder(part, folder)
    elif isinstance(part, Decoder):
        load_hf_state(part, SafetensorsFolder(folder))
    elif isinstance(part, QFormer):
        if fresh := begin_as(part, folder):
            log.info("random, for the file does not have it: %s", ", ".join(fresh))
    elif isinstance(part, HFCausal | HFSeq2Seq):
        part.load(folder)
    else:
        raise ConfigError(f"nothing is known that loads published weights into a {type(part).__name__}")
