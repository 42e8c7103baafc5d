"""Learning from answers that are compared: DPO and what is like it, over trees.

A sample is a prompt and its answers, branches that do not see each other, so media are encoded once and the prompt is
attended once. Log-probabilities of all learnt tokens come from one forward; an answer's is the sum over its node.

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

    unseen    −log σ(β(Δ_chosen − Δ of the same words about another picture)): mDPO's conditional term; the answer is
              named `unseen`
    anchor    mDPO's: the chosen answer shall not become less probable
    nll       the chosen answer's negative log-likelihood per token (RPO, STIC, ORPO)
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
    """Sum over samples of the terms, how many samples there are, and sums to report: rewards, margin, accuracy.

    Raises:
        TrainingError: a reference is needed, none came with the batch, and the model has no adapters to turn off.
        DataError: a sample lacks an answer that a term needs.
    """
    assert batch.answers is not None, "the planner gives this objective samples with answers alone"
    output = model(batch, only_targets=True)
    logps = model.target_logps(output, batch.targets)
    reference = reference_logps(model, batch) if how.needs_reference else torch.zeros_like(logps)
    policy, length = _sums(logps, batch, how)
    base, _ = _sums(reference, batch, how)
    scores = _Scores(batch.answers, policy, base, length)
    loss = logps.new_zeros(())
    notes: Notes = {}
    for term, weight in how.terms.items():
        found = _term(term, scores, how).sum()
        loss = loss + weight * found
        if len(how.terms) > 1:
            notes[term] = found.detach()
    won, lost = (scores.delta(name).detach() for name in ("chosen", "rejected"))
    rewards = {"reward_chosen": how.beta * won, "reward_rejected": how.beta * lost}
    rewards |= {"margin": how.beta * (won - lost), "accuracy": (won > lost).float()}
    return loss, float(batch.answers.compared), notes | {name: value.sum() for name, value in rewards.items()}


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
    """Of every answer, float[A]: log-probability by the policy and by the reference, and tokens."""

    answers: Answers
    policy: Tensor
    reference: Tensor
    length: Tensor

    def delta(self, name: str, *, mean: bool = False) -> Tensor:
        """Δ = log π − log π_ref of the answers of a name, float[N]."""
        at = self.answers.of(name)
        found = (self.policy - self.reference)[at]
        return found / self.length[at] if mean else found

    def logp(self, name: str) -> Tensor:
        """Mean log π over their tokens, float[N]."""
        at = self.answers.of(name)
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
    """A term for each sample, float[N]."""
    if term == "nll":
        return -scores.logp("chosen")
    if term == "odds":
        return losses.odds(scores.logp("chosen"), scores.logp("rejected"))
    if term == "simpo":
        return losses.simpo(scores.logp("chosen"), scores.logp("rejected"), beta=how.beta, margin=how.margin)
    won = scores.delta("chosen", mean=term == "ipo")
    if term == "anchor":
        return losses.anchored(won, beta=how.beta, delta=how.delta)
    lost = scores.delta("unseen" if term == "unseen" else "rejected", mean=term == "ipo")
    margin = how.beta * (won - lost)
    if term == "robust":
        return losses.robust(margin, smoothing=how.smoothing)
    if term == "hinge":
        return losses.hinge(margin)
    if term == "ipo":
        return losses.ipo(won, lost, beta=how.beta)
    if term == "bco_pair":
        mean = how.beta * torch.cat([won, lost]).detach().mean()
        return losses.bco_pair(won, lost, beta=how.beta, mean_reward=mean)
    if term == "kto_pair":
        return losses.kto_pair(won, lost, beta=how.beta)
    if term == "severity":
        severity = scores.answers.numbers("severity", scores.answers.of("rejected"))
        return losses.severity(won, lost, beta=how.beta, severity=severity)
    return losses.sigmoid(margin, smoothing=how.smoothing)
