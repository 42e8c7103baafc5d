"""Modes that a model computes in for a while; then it is as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["inference", "steady"]


@contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with a graph: nothing is dropped inside, so that passes over one batch can be compared.

    Neither adapters' inputs, nor activations of a published LLM, nor tokens that an expert has no room for.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a graph."""
    with steady(model), torch.no_grad():
        yield
