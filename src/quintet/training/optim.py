"""The optimizer of a stage: which parameters learn, at which rate, on which schedule."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quintet import dist
from quintet.components import lora
from quintet.errors import ConfigError, nearest
from quintet.model.mllm import MLLM
from quintet.training.stage import Rate, Stage

__all__ = ["Optimizers", "make_optimizer", "rate_of", "schedule", "set_trainable", "trainable"]


def rate_of(part: str, train: Mapping[str, Rate]) -> Rate | None:
    """The rate of a part: that of the longest name in `train` that it begins with."""
    names = [n for n in train if part == n or part.startswith(n + ".")]
    return train[max(names, key=len)] if names else None


def set_trainable(model: MLLM, train: Mapping[str, Rate]) -> dict[str, Rate]:
    """Freezes what has no rate, adds adapters where a rate asks for them; returns part → rate.

    The part `tokens` are the rows of added tokens, for stages in which the LLM is frozen or has adapters; where `llm`
    trains they learn with it.

    Raises:
        ConfigError: a name in `train` that no part of the model has, or a share of layers of a part that has none.
    """
    if "tokens" in train:
        model.with_token_rows()
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
            elif rate.upper < 1:
                _only_upper(part, module, rate.upper)
    model.frozen_encoders = frozenset(
        kind for kind, e in model.encoders.items() if not any(p.requires_grad for p in e.parameters())
    )
    return found


def _only_upper(part: str, module: nn.Module, share: float) -> None:
    """Of the module's weights, those of its upper layers learn."""
    upper = getattr(module, "upper", None)
    if upper is None:
        raise ConfigError(f"{part} does not tell its upper layers from its lower ones; train it with upper=1")
    module.requires_grad_(requires_grad=False)
    for layer in upper(share):
        layer.requires_grad_(requires_grad=True)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that learn, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


class Optimizers:
    """Several optimizers as one: each parameter belongs to exactly one of them."""

    def __init__(self, *each: torch.optim.Optimizer) -> None:
        self.each = [optimizer for optimizer in each if optimizer.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all; `peak` holds a group's rate before the schedule."""
        return [group for optimizer in self.each for group in optimizer.param_groups]

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state of a parameter, by name; before its first gradient what it would start with."""
        owner = next(o for o in self.each for g in o.param_groups for p in g["params"] if p is parameter)
        state = owner.state[parameter]
        if not state and isinstance(owner, torch.optim.Muon):
            state["momentum_buffer"] = torch.zeros_like(parameter)
        elif not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def step(self) -> None:
        """One update of every parameter."""
        for optimizer in self.each:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for optimizer in self.each:
            optimizer.zero_grad()


def make_optimizer(model: MLLM, rates: Mapping[str, Rate], stage: Stage) -> Optimizers:
    """One group per rate and kind of parameter; `peak` holds the rate before the schedule.

    Raises:
        ConfigError: Muon, which needs whole matrices, where they are sharded over processes.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    hidden: list[nn.Parameter] = []
    for name, parameter in trainable(model):
        if stage.optimizer == "muon" and parameter.ndim == 2 and name.startswith("llm.blocks."):
            hidden.append(parameter)
            continue
        rate = next(rates[part] for part in sorted(rates, key=len, reverse=True) if name.startswith(part + "."))
        groups.setdefault((rate.lr, parameter.ndim >= 2), []).append(parameter)
    if hidden and dist.world() > 1:
        raise ConfigError(f"stage {stage.name!r}: Muon trains on one process; use adamw with {dist.world()}")
    adamw = [
        {"params": params, "peak": lr, "lr": lr, "weight_decay": stage.weight_decay if matrix else 0.0}
        for (lr, matrix), params in groups.items()
    ]
    made: list[torch.optim.Optimizer] = []
    if hidden:
        muon = [{"params": hidden, "peak": stage.muon_lr, "lr": stage.muon_lr}]
        made.append(torch.optim.Muon(muon, weight_decay=stage.weight_decay, momentum=0.95))
    if adamw:
        made.append(torch.optim.AdamW(adamw, betas=stage.betas, fused=True))
    return Optimizers(*made)


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
