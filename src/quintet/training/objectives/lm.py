"""Next-token prediction on the weighted tokens: the loss of pre-training and of instruction tuning."""

from collections.abc import Mapping

import torch
from torch import Tensor

from quintet.errors import ConfigError
from quintet.model.mllm import MLLM
from quintet.values import Batch

__all__ = ["Notes", "lm"]

Notes = dict[str, Tensor]
"""Name → a sum over the batch that is reported, divided as the loss is."""


def lm(model: MLLM, batch: Batch, extra: Mapping[str, float] | None = None) -> tuple[Tensor, float, Notes]:
    """Sum over targets of weight × negative log-likelihood in nats, the sum of the weights, and sums to report.

    The loop divides by the weights of the whole step, so unequal micro-batches and ranks weigh what they hold. Of the
    means in the model's `Output.extra`, those that `extra` names are added, so many times; as sums they are the mean
    times the batch's weights.

    Raises:
        ConfigError: `extra` names what this model does not give.
    """
    output = model(batch, only_targets=True)
    count = batch.targets.count
    loss = -torch.dot(model.target_logps(output, batch.targets), batch.targets.weights)
    for name, times in (extra or {}).items():
        if name not in output.extra:
            raise ConfigError(f"the objective should add {name!r}, but this model gives {sorted(output.extra)}")
        loss = loss + times * count * output.extra[name]
    return loss, count, {name: mean.detach() * count for name, mean in output.extra.items()}
