"""A Q-Former that begins as BERT, as BLIP-2's does, or as a published one, as MiniGPT-4's and InstructBLIP's do.

    BertForPreTraining, BertModel           layers, words, and the head that writes captions (BLIP-2, section 3.1)
    Blip2ForConditionalGeneration           queries and layers
    Blip2ForImageTextRetrieval              queries, layers, and what reads words
    InstructBlipForConditionalGeneration    queries, layers, and what reads words

Folders as transformers saves these classes; of their files only the weights named here are read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from quintet.components.connectors.qformer import QFormer
from quintet.components.llms.weights import SafetensorsFolder
from quintet.errors import CheckpointError
from quintet.model.blip2 import published_name
from quintet.model.blip2_retrieval import is_retrieval
from quintet.model.checkpoint import read_json

__all__ = ["begin_as"]

_KINDS = ("bert", "blip-2", "instructblip")
_BERT_LAYER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_BERT = {
    "qformer.norm": "bert.embeddings.LayerNorm",
    "captions.words": "bert.embeddings.word_embeddings",
    "captions.positions": "bert.embeddings.position_embeddings",
    "captions.itg": "cls.predictions.transform.dense",
    "captions.itg_norm": "cls.predictions.transform.LayerNorm",
    "captions": "cls.predictions",  # its itg_bias
}
_LEAVES = {"itg_bias": "bias"}


@torch.no_grad()
def begin_as(connector: QFormer, folder: Path) -> list[str]:
    """Copies the weights and returns our names of those that the folder does not have, which stay as they began.

    The projection is copied where the config says so. Rows behind the folder's words ([DEC]) stay as they began.

    Raises:
        CheckpointError: another class, a weight that the class has and the folder does not, or a shape that does not
            fit; nothing is copied then.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise CheckpointError(f"{path} has model_type {kind!r}; expected one of {', '.join(_KINDS)}")
    state, own = SafetensorsFolder(folder), connector.state_dict()
    names = dict(_bert(own, state) if kind == "bert" else _published(connector, config))
    if missing := sorted(name for name in names.values() if name not in state):
        raise CheckpointError(f"{folder} has no {', '.join(missing[:4])}, as which the Q-Former is to begin")
    values = {ours: _shaped(state[name], name, own[ours], folder) for ours, name in names.items()}
    for ours, value in values.items():
        own[ours][: len(value)].copy_(value)
    return sorted(own.keys() - values.keys())


def _published(connector: QFormer, config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(ours, theirs) for a folder of BLIP-2 or InstructBLIP."""
    reads = config["model_type"] == "instructblip"
    for name in connector.state_dict():
        part, _, rest = name.partition(".")
        if part == "project" and connector.config.source_project:
            yield name, f"language_projection.{rest}"
        if part != "qformer" or (rest.startswith("words.") and connector.config.words is None):
            continue  # words of another tokenizer
        words = rest.startswith(("words.", "positions.", "unused.")) or ".ffn_words." in rest
        if words and not (reads or is_retrieval(config)):
            continue  # BLIP-2 with an LLM reads none
        theirs = published_name(rest, connector.config, reads=reads)
        yield name, theirs if reads or not words else theirs.replace("qformer.embeddings.", "embeddings.")


def _bert(own: Mapping[str, Tensor], state: SafetensorsFolder) -> Iterator[tuple[str, str]]:
    """(ours, theirs) for a folder of BERT: both feed-forwards begin as its one, cross-attention is new."""
    prefixed, old = any(name.startswith("bert.") for name in state), any(name.endswith(".gamma") for name in state)
    for name in own:
        part, _, leaf = name.rpartition(".")
        pieces = name.split(".")
        if pieces[:2] in (["qformer", "layers"], ["captions", "ffn"]):
            rest = ".".join(pieces[3:-1]).removeprefix("ffn.").removeprefix("ffn_words.")
            if rest.startswith("cross."):
                continue
            theirs = f"bert.encoder.layer.{pieces[2]}.{_BERT_LAYER[rest]}"
        elif part in _BERT and (part != "captions" or leaf in _LEAVES):
            theirs = _BERT[part]
        else:
            continue
        if theirs.startswith("cls.") and not any(n.startswith("cls.") for n in state):
            continue  # BertModel has no head
        leaf = _LEAVES.get(leaf, leaf)
        if old and theirs.endswith("LayerNorm"):
            leaf = {"weight": "gamma", "bias": "beta"}[leaf]
        yield name, (theirs if prefixed else theirs.removeprefix("bert.")) + f".{leaf}"


def _shaped(value: Tensor, name: str, own: Tensor, folder: Path) -> Tensor:
    value = value[0] if value.dim() == own.dim() + 1 else value
    rows = "word_embeddings" in name or name == "cls.predictions.bias"
    if value.shape != own.shape and not (rows and value.shape[1:] == own.shape[1:] and len(value) <= len(own)):
        raise CheckpointError(f"{name} is {tuple(value.shape)} in {folder}; expected {tuple(own.shape)}")
    return value
