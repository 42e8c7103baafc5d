"""Next-token prediction on the weighted tokens: the loss of pre-training and of instruction tuning."""

import torch
from torch import Tensor

from quintet.model.mllm import MLLM
from quintet.values import Batch

__all__ = ["lm"]


def lm(model: MLLM, batch: Batch) -> tuple[Tensor, float]:
    """Sum over targets of weight × negative log-likelihood in nats, and the sum of the weights.

    The loop divides one by the other over the whole step, so unequal micro-batches and ranks weigh what they hold.
    """
    logps = model.target_logps(model(batch, only_targets=True), batch.targets)
    return -torch.dot(logps, batch.targets.weights), batch.targets.count
