"""Policy gradients on answers of the model's own: PPO with a value head, or GRPO, which needs none.

What was computed when the answers were drawn comes with the batch, a number a token (`Tokens.known`): `old`, the
log-probability then; `advantage`; with a value head `value` then and `return`; with a KL in the loss `reference`.

Sources: PPO (Schulman et al. 2017, arXiv:1707.06347), GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1).
"""

from dataclasses import dataclass

from torch import Tensor

from quintet.components import lora
from quintet.config.base import Config
from quintet.errors import ConfigError
from quintet.model.mllm import MLLM, Output
from quintet.model.modes import steady
from quintet.training.objectives import rewards
from quintet.training.objectives.lm import Notes
from quintet.values import Batch

__all__ = ["VALUE", "Policy", "counted", "policy", "valued"]

VALUE = "value"
"""The adapters that the value head reads by, where a stage's lora has them beside the policy's (LLaVA-RLHF)."""


@dataclass(frozen=True, kw_only=True)
class Policy(Config):
    """What is minimised, a token each."""

    clip: float = 0.2
    """ε: how far the ratio of probabilities may go and still be rewarded."""
    value: float = 0.0
    """How much the value head's loss counts; 0 without one. PPO: 0.1."""
    value_clip: float = 0.2
    kl: float = 0.0
    """How much KL(π ‖ π_ref) counts in the loss (GRPO: 0.04); PPO has it in the rewards instead."""
    entropy: float = 0.0
    """How much the entropy of what may be said next is rewarded, nats a token (PPO: an option)."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ConfigError(f"clip is {self.clip}; it is over 0 and under 1")
        for name in ("value", "value_clip", "kl", "entropy"):
            if (weight := getattr(self, name)) < 0:
                raise ConfigError(f"{name} is {weight}; it is 0 or more")


def policy(model: MLLM, batch: Batch, how: Policy) -> tuple[Tensor, float, Notes]:
    """Sum over the answers' tokens, how many there are, and sums to report.

    Nothing is dropped, as where the answers were drawn: the ratio of a first step is 1.
    """
    with steady(model):
        return _policy(model, batch, how)


def _policy(model: MLLM, batch: Batch, how: Policy) -> tuple[Tensor, float, Notes]:
    output = model(batch, only_targets=True)
    logps = model.target_logps(output, batch.targets)
    known, count = batch.targets.known, float(len(logps))
    if "old" not in known:
        return logps.sum() * 0.0, 0.0, {}
    loss = rewards.policy_loss(logps, known["old"], known["advantage"], clip=how.clip)
    apart = (logps.detach() - known["old"]).exp()
    notes: Notes = {"clipped": ((apart - 1).abs() > how.clip).float().sum(), "ratio": apart.sum()}
    if batch.answers is not None and len(batch.answers):
        notes["reward"] = logps.new_tensor([told.score or 0.0 for told in batch.answers.told]).mean() * count
        notes["length"] = logps.new_tensor(count / len(batch.answers)) * count
    if "reference" in known:
        notes["drift"] = (known["old"] - known["reference"]).sum()
    if how.kl:
        penalty = rewards.kl(logps, known["reference"], estimator="k3")
        loss = loss + how.kl * penalty
        notes["kl"] = penalty.detach().sum()
    if how.entropy:
        said = model.logits(_hidden(batch, output)).log_softmax(-1)
        spread = -(said.exp() * said).sum(-1)
        loss = loss - how.entropy * spread
        notes["entropy"] = spread.detach().sum()
    if how.value:
        values = valued(model, batch, output)
        error = rewards.value_loss(values, known["value"], known["return"], clip=how.value_clip)
        loss = loss + how.value * error
        notes["value_loss"] = error.detach().sum()
    return loss.sum(), count, notes


def valued(model: MLLM, batch: Batch, output: Output) -> Tensor:
    """The value of every target, float32[P]: from the policy's hidden states, or by adapters of its own (`VALUE`)."""
    if lora.has(model, VALUE):
        with lora.using(model, VALUE):
            output = model(batch, only_targets=True)
    return model.scores(_hidden(batch, output))


def _hidden(batch: Batch, output: Output) -> Tensor:
    """Hidden states that targets are predicted from, float[P, D]."""
    hidden = output.hidden if output.read is not None else output.hidden.flatten(0, 1)[batch.targets.slots]
    return hidden[: len(batch.targets.ids)]


def counted(batch: Batch) -> float:
    """What a batch counts in a step: its answers' tokens."""
    return float(len(batch.targets.ids)) if "old" in batch.targets.known else 0.0
