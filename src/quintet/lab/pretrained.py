"""Published weights into a model: from a local folder, from the hub's cache, or from the package itself.

Nothing is downloaded unless asked for, no code of a repository is run, and only safetensors are read.
"""

from pathlib import Path

import torch
from torch import nn

from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import load_hf_folder
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf import HFCausal
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.llms.weights import SafetensorsFolder, load_hf_state
from quintet.components.starter import asset
from quintet.data.tokenizer import Tokenizer
from quintet.errors import CheckpointError, ConfigError
from quintet.log import logger
from quintet.model.mllm import MLLM

__all__ = ["build_model", "folder_of", "load_tokenizer"]

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


def load_tokenizer(config: MLLM.Config, *, download: bool = False) -> Tokenizer:
    """The LLM's own tokenizer; the starter's where the LLM has no published weights (tiny)."""
    source = getattr(config.llm, "source", None) or "starter/llm"
    return Tokenizer.load(folder_of(source, download=download))


def build_model(config: MLLM.Config, *, vocab: int, seed: int = 0, download: bool = False) -> MLLM:
    """The model with published weights where its parts name some, and seeded random ones elsewhere."""
    torch.manual_seed(seed)
    published = getattr(config.llm, "source", None)
    model = config.build(vocab=None if published else vocab)
    if vocab > model.llm.vocab:
        raise ConfigError(f"the tokenizer has {vocab} tokens, the LLM {published!r} only {model.llm.vocab}")
    for name, part in [*((f"encoders.{k}", e) for k, e in model.encoders.items()), ("llm", model.llm)]:
        source = _source(model, name)
        if source:
            log.info("%s: weights of %s", name, source)
            _load(part, folder_of(source, download=download))
    model.fusion.begin(model.llm)
    return model


def _source(model: MLLM, part: str) -> str | None:
    config = model.config.llm if part == "llm" else model.config.encoders[part.split(".", 1)[1]]
    return getattr(config, "source", None) or None


def _load(part: nn.Module, folder: Path) -> None:
    if isinstance(part, Vision):
        load_hf_folder(part, folder)
    elif isinstance(part, Decoder):
        load_hf_state(part, SafetensorsFolder(folder))
    elif isinstance(part, HFCausal | HFSeq2Seq):
        part.load(folder)
    else:
        raise ConfigError(f"nothing is known that loads published weights into a {type(part).__name__}")
