"""Learning from answers that are compared: DPO and what is like it, over trees.

A sample is a prompt and its answers, branches that do not see each other, so media are encoded once and the prompt is
attended once. Every two of them of which one is better are a pair. Log-probabilities of all learnt tokens come from one
forward; an answer's is the sum over its node.

The reference is the model before the stage: its log-probabilities come with the batch, if they were computed before,
or from the same weights with adapters off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from quintet.components import lora
from quintet.config.base import Config
from quintet.errors import ConfigError, TrainingError
from quintet.model.mllm import MLLM
from quintet.training.objectives import pair_losses as losses
from quintet.training.objectives.lm import Notes
from quintet.values import Answers, Batch

__all__ = ["Preference", "preference"]

Term = Literal[
    "sigmoid", "robust", "hinge", "ipo", "bco_pair", "kto_pair", "odds", "simpo", "anchor", "unseen", "severity", "nll"
]
FREE = ("odds", "simpo", "nll")
"""Terms that no reference is needed for."""
PER_TOKEN = ("ipo", "odds", "simpo", "nll")
"""Terms of means over tokens instead of sums."""


@dataclass(frozen=True, kw_only=True)
class Preference(Config):
    """What is minimised: a sum of terms, each a function of `objectives/pair_losses.py`.

    unseen    −log σ(β(Δ_won − Δ of the same words about another picture)): mDPO's conditional term; that answer is
              named `unseen`
    anchor    mDPO's: the better answer shall not become less probable
    nll       the better answer's negative log-likelihood per token (RPO, STIC, ORPO)
    """

    terms: Mapping[Term, float] = field(default_factory=lambda: {"sigmoid": 1.0})
    """Term → how much it counts."""
    beta: float = 0.1
    smoothing: float = 0.0
    """Share of labels that are taken to be wrong (cDPO with `sigmoid`, `robust`)."""
    margin: float = 0.0
    """γ of SimPO."""
    delta: float = 0.0
    """δ of the anchor."""
    gamma: float = 1.0
    """How much a token counts that a person changed (RLHF-V); others count 1. Such tokens have a weight over 1."""
    average: bool = False
    """Whether an answer's log-probability is its weighted mean over tokens (RLHF-V's paper)."""

    def __post_init__(self) -> None:
        known = Term.__args__  # type: ignore[attr-defined]
        for term in self.terms:
            if term not in known:
                raise ConfigError(f"no term {term!r}; there are {', '.join(known)}")
        if not self.terms:
            raise ConfigError("terms is empty; a preference minimises at least one")
        if self.beta <= 0:
            raise ConfigError(f"beta is {self.beta}; it must be over 0")

    @property
    def needs_reference(self) -> bool:
        """Whether the model before the stage takes part."""
        return any(term not in FREE for term in self.terms)


def preference(model: MLLM, batch: Batch, how: Preference) -> tuple[Tensor, float, Notes]:
    """Sum over pairs of the terms, how many pairs there are, and sums to report: rewards, margin, accuracy.

    Raises:
        TrainingError: a reference is needed, none came with the batch, and the model has no adapters to turn off.
        DataError: a sample lacks an answer that a term needs.
    """
    output = model(batch, only_targets=True)
    logps = model.target_logps(output, batch.targets)
    if batch.answers is None:
        # A rank without rows: it runs what the others run.
        return logps.sum() * 0.0, 0.0, {}
    reference = reference_logps(model, batch) if how.needs_reference else torch.zeros_like(logps)
    policy, length = _sums(logps, batch, how)
    base, _ = _sums(reference, batch, how)
    scores = _Scores(batch.answers, policy, base, length, *batch.answers.pairs())
    loss = logps.new_zeros(())
    notes: Notes = {}
    for term, weight in how.terms.items():
        found = _term(term, scores, how).sum()
        loss = loss + weight * found
        if len(how.terms) > 1:
            notes[term] = found.detach()
    won, lost = scores.delta(scores.won).detach(), scores.delta(scores.lost).detach()
    rewards = {"reward_won": how.beta * won, "reward_lost": how.beta * lost}
    rewards |= {"margin": how.beta * (won - lost), "accuracy": (won > lost).float()}
    return loss, float(len(won)), notes | {name: value.sum() for name, value in rewards.items()}


def reference_logps(model: MLLM, batch: Batch) -> Tensor:
    """Log-probability of each target under the model before the stage, float32[P], without a graph."""
    if batch.targets.reference is not None:
        return batch.targets.reference
    if not any(isinstance(module, lora.LoraLinear) for module in model.modules()):
        raise TrainingError(
            "the reference model's log-probabilities did not come with the data, and no adapter trains that could be "
            "turned off; compute them first"
        )
    with torch.no_grad(), lora.disabled(model):
        return model.target_logps(model(batch, only_targets=True), batch.targets)


@dataclass(frozen=True)
class _Scores:
    """Of every answer, float[A]: log-probability by the policy and by the reference, and tokens; and who won."""

    answers: Answers
    policy: Tensor
    reference: Tensor
    length: Tensor
    won: Tensor
    lost: Tensor

    def delta(self, at: Tensor, *, mean: bool = False) -> Tensor:
        """Δ = log π − log π_ref of answers, float[N]."""
        found = (self.policy - self.reference)[at]
        return found / self.length[at] if mean else found

    def logp(self, at: Tensor) -> Tensor:
        """Mean log π over the tokens of answers, float[N]."""
        return self.policy[at] / self.length[at]


def _sums(logps: Tensor, batch: Batch, how: Preference) -> tuple[Tensor, Tensor]:
    """Of each answer, float[A]: the weighted sum of its tokens' log-probabilities, and how many tokens it has."""
    assert batch.answers is not None
    targets, node = batch.targets, batch.answers.node
    nodes = int(max(targets.node.max(), node.max())) + 1
    weights = torch.where(targets.weights > 1, how.gamma, 1.0).to(logps)
    total = logps.new_zeros(nodes).index_add(0, targets.node, weights * logps)
    if how.average:
        total = total / logps.new_zeros(nodes).index_add(0, targets.node, weights).clamp_min(1.0)
    length = logps.new_zeros(nodes).index_add(0, targets.node, torch.ones_like(logps)).clamp_min(1.0)
    return total[node], length[node]


def _term(term: str, scores: _Scores, how: Preference) -> Tensor:
    """A term for each pair, float[N]."""
    won, lost = scores.won, scores.lost
    if term in FREE:
        better, worse = scores.logp(won), scores.logp(lost)
        if term == "nll":
            return -better
        return (
            losses.odds(better, worse)
            if term == "odds"
            else losses.simpo(better, worse, beta=how.beta, margin=how.margin)
        )
    if term == "unseen":
        lost = scores.answers.beside("unseen", won)
    better, worse = (scores.delta(at, mean=term == "ipo") for at in (won, lost))
    h = how.beta * (better - worse)
    match term:
        case "anchor":
            return losses.anchored(better, beta=how.beta, delta=how.delta)
        case "robust":
            return losses.robust(h, smoothing=how.smoothing)
        case "hinge":
            return losses.hinge(h)
        case "ipo":
            return losses.ipo(better, worse, beta=how.beta)
        case "bco_pair":
            mean = how.beta * torch.cat([better, worse]).detach().mean()
            return losses.bco_pair(better, worse, beta=how.beta, mean_reward=mean)
        case "kto_pair":
            return losses.kto_pair(better, worse, beta=how.beta)
        case "severity":
            return losses.severity(better, worse, beta=how.beta, severity=scores.answers.numbers("severity", lost))
        case _:
            return losses.sigmoid(h, smoothing=how.smoothing)
