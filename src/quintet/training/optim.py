"""The optimizer of a stage: which parameters learn, at which rate, on which schedule."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from quintet.components import lora
from quintet.errors import ConfigError, nearest
from quintet.model.mllm import MLLM
from quintet.training.stage import Rate, Stage

__all__ = ["make_optimizer", "rate_of", "schedule", "set_trainable", "trainable"]


def rate_of(part: str, train: Mapping[str, Rate]) -> Rate | None:
    """The rate of a part: that of the longest name in `train` that it begins with."""
    names = [n for n in train if part == n or part.startswith(n + ".")]
    return train[max(names, key=len)] if names else None


def set_trainable(model: MLLM, train: Mapping[str, Rate]) -> dict[str, Rate]:
    """Freezes what has no rate, adds adapters where a rate asks for them; returns part → rate.

    Raises:
        ConfigError: a name in `train` that no part of the model has.
    """
    parts = model.parts()
    for name in train:
        if not any(part == name or part.startswith(name + ".") for part in parts):
            known = set(parts) | {part.split(".")[0] for part in parts}
            raise ConfigError(f"no part {name!r} to train{nearest(name, known)}")
    found: dict[str, Rate] = {}
    for part, module in parts.items():
        rate = rate_of(part, train)
        module.requires_grad_(rate is not None and rate.lora is None)
        if rate is not None:
            found[part] = rate
            if rate.lora is not None:
                lora.apply(module, rate.lora)
    model.frozen_encoders = frozenset(
        kind for kind, e in model.encoders.items() if not any(p.requires_grad for p in e.parameters())
    )
    return found


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that learn, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def make_optimizer(model: MLLM, rates: Mapping[str, Rate], stage: Stage) -> torch.optim.AdamW:
    """AdamW with one group per rate and kind of parameter; `peak` holds the rate before the schedule."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(model):
        rate = next(rates[part] for part in sorted(rates, key=len, reverse=True) if name.startswith(part + "."))
        groups.setdefault((rate.lr, parameter.ndim >= 2), []).append(parameter)
    settings = [
        {"params": params, "peak": lr, "lr": lr, "weight_decay": stage.weight_decay if matrix else 0.0}
        for (lr, matrix), params in groups.items()
    ]
    return torch.optim.AdamW(settings, betas=stage.betas, fused=True)


def schedule(step: int, *, steps: int, stage: Stage) -> float:
    """The share of the peak rate at a step, counted from 0.

    >>> from quintet.training.optim import _share
    >>> [round(_share(s, 10, 2, "cosine", 0.0), 2) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.04]
    """
    return _share(step, steps, math.ceil(stage.warmup * steps), stage.schedule, stage.final)


def _share(step: int, steps: int, warmup: int, kind: str, final: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    passed = (step - warmup) / max(1, steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * passed)) if kind == "cosine" else 1 - passed
    return final + (1 - final) * fall
