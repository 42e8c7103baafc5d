"""The model that contracts are proved on: the recipe's structure with small random weights, never trained ones.

Parameters that begin as zeros (gates, second halves of adapters, biases) get small random values, or nothing could be
seen through them: a gate of zero hides a picture from every test.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from quintet.components.visible import visible
from quintet.data.collate import Loaded, collate
from quintet.lab.doctor.patient import Case
from quintet.model.mllm import MLLM
from quintet.values import Batch, Tokens

__all__ = ["build", "hidden", "parents", "row", "seeded", "wake"]

WAKE_STD = 0.02


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Random numbers of its own; the caller's are as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build(config: MLLM.Config, *, vocab: int, added: Sequence[int] = ()) -> MLLM:
    """The model with seeded random weights, in evaluation mode."""
    with seeded():
        model = config.build(vocab=vocab, added=added)
        wake(model)
    return model.eval()


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Gives parameters that are all zero small random values."""
    for parameter in model.parameters():
        if not bool(parameter.any()):
            parameter.normal_(std=WAKE_STD)


def row(cases: list[Case], *, pad: int, ids: list[Tensor] | None = None, media: list[Loaded] | None = None) -> Batch:
    """Samples side by side in one row; `ids` or `media` replace those of the samples."""
    loaded = [value for case in cases for value in case.media] if media is None else media
    tokens = [case.tokens for case in cases]
    if ids is not None:
        tokens = [replace(t, ids=new) for t, new in zip(tokens, ids, strict=True)]
    return collate([tokens], dict(enumerate(loaded)), pad=pad)


def hidden(model: MLLM, batch: Batch) -> Tensor:
    """float[T, D] of the first row. A column's logits are a function of its hidden state alone."""
    with model.inference():
        return model(batch).hidden[0]


def parents(tokens: Tokens) -> Tensor:
    """The column that predicts each token, int64[T], from the attention rule alone; -1 if there is none.

    It is the last column before the token that the token may look at.
    """
    enter, exit, order = (v[None] for v in (tokens.enter, tokens.exit, tokens.order))
    seen = visible(enter, order, key_exit=exit)[0].tril(-1)
    columns = torch.arange(len(tokens))
    return torch.where(seen, columns, -1).amax(1) if len(tokens) else columns
