"""Learning from answers that are compared: DPO and what is like it, over trees.

A sample is a prompt and its answers, branches that do not see each other, so media are encoded once and the prompt is
attended once. Every two of them of which one is better are a pair. Log-probabilities of all learnt tokens come from one
forward; an answer's is the sum over its node.

The reference is the model before the stage: its log-probabilities come with the batch, if they were computed before,
or from the same weights with adapters off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from quintet.answers import Answers
from quintet.components import lora
from quintet.config.base import Config
from quintet.data.contrast import KEPT, UNSEEN
from quintet.errors import ConfigError, DataError, TrainingError, nearest
from quintet.model.mllm import MLLM, Output
from quintet.training.objectives import pair_losses as losses
from quintet.training.objectives.lm import Notes
from quintet.values import Batch, Features

__all__ = ["LIVE", "Preference", "count", "preference", "reference_logps"]

Term = Literal[
    "sigmoid", "robust", "hinge", "ipo", "bco_pair", "kto_pair", "odds", "simpo", "anchor", "unseen", "severity",
    "nll", "noisy", "phrases", "kl",
]  # fmt: skip
FREE = ("odds", "simpo", "nll", "phrases")
"""Terms that no reference is needed for."""
LIVE = ("noisy", "kl")
"""Terms that need more of the reference than its log-probabilities of the answers: it runs beside the policy."""


@dataclass(frozen=True, kw_only=True)
class Preference(Config):
    """What is minimised: a sum of terms, each a function of `objectives/pair_losses.py`.

    unseen    −log σ(β(Δ_won − Δ of the same words about a picture made worse)): mDPO's conditional term
    noisy     −log σ(β(Δ_won − Δ_noise)): of the words that would be likeliest one by one were the picture the worse
              one, about the real one (POVID's second stage)
    anchor    mDPO's: the better answer shall not become less probable
    nll       the better answer's negative log-likelihood per token (RPO, STIC, ORPO)
    phrases   HALVA: marked phrases against those that stand in their place, without a reference
    kl        HALVA: KL(π_ref ‖ π) over the whole vocabulary, summed over the tokens of answers named `kept`

    `unseen` and `noisy` need a second tree (`Stage.contrast`).
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
    """How much a marked token counts, one that a person changed; others count 1 (RLHF-V)."""
    average: bool = False
    """Whether an answer's log-probability is its weighted mean over tokens (RLHF-V's paper)."""

    def __post_init__(self) -> None:
        known = get_args(Term)
        for term in self.terms:
            if term not in known:
                raise ConfigError(f"no term {term!r}{nearest(term, known)}")
        if not self.terms:
            raise ConfigError("terms is empty; a preference minimises at least one")
        for term, weight in self.terms.items():
            if not weight > 0:
                raise ConfigError(f"terms.{term} is {weight}; a term counts more than 0, or is left out")
        for name in ("beta", "gamma"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be over 0")

    @property
    def needs_reference(self) -> bool:
        """Whether the model before the stage takes part."""
        return any(term not in FREE for term in self.terms)

    @property
    def needs_live_reference(self) -> bool:
        """Whether it must run beside the policy: log-probabilities computed before are not enough."""
        return any(term in LIVE for term in self.terms)


def preference(model: MLLM, batch: Batch, how: Preference) -> tuple[Tensor, float, Notes]:
    """Sum over pairs of the terms, how many pairs (and kept answers) there are, and sums to report.

    Raises:
        TrainingError: a reference is needed, none came with the batch, and the model has no adapters to turn off.
        DataError: a sample lacks an answer that a term needs.
    """
    seen = model.look(batch)
    policy = _State(model, batch, seen)
    if batch.answers is None:
        # A rank without rows: it runs what the others run.
        return policy.logps.sum() * 0.0, 0.0, {}
    won, lost = batch.answers.pairs()
    compared = _Compared(batch, batch.answers, won, lost, how, policy, _reference(model, batch, how, seen))
    loss = policy.logps.new_zeros(())
    notes: Notes = {}
    for term, weight in how.terms.items():
        found = compared.term(term).sum()
        loss = loss + weight * found
        if len(how.terms) > 1:
            notes[term] = found.detach()
    better, worse = compared.delta(won).detach(), compared.delta(lost).detach()
    rewards = {"reward_won": how.beta * better, "reward_lost": how.beta * worse}
    rewards |= {"margin": how.beta * (better - worse), "accuracy": (better > worse).float()}
    return loss, count(batch), notes | {name: value.sum() for name, value in rewards.items()}


def count(batch: Batch) -> float:
    """What a batch counts in a step: its pairs, and the answers that shall stay as they are."""
    if batch.answers is None:
        return 0.0
    return float(len(batch.answers.pairs()[0]) + len(batch.answers.named(KEPT)))


def reference_logps(model: MLLM, batch: Batch) -> Tensor:
    """Log-probability of each target under the model as it is, float32[P], without a graph."""
    with torch.no_grad():
        return _State(model, batch).logps


class _State:
    """A model's view of a batch: hidden states at the targets, and the log-probability of each, float32[P]."""

    def __init__(self, model: MLLM, batch: Batch, seen: dict[str, Features] | None = None) -> None:
        self.model, self.slots = model, batch.targets.slots
        self.output: Output = model(batch, only_targets=True, seen=seen)
        self.logps = model.target_logps(self.output, batch.targets)

    def log_probs(self, targets: Tensor) -> Tensor:
        """The whole distribution at targets of these indices, float32[N, V]."""
        hidden = self.output.hidden
        if self.output.read is None:
            hidden, targets = hidden.flatten(0, 1), self.slots[targets]
        return self.model.logits(hidden[targets]).log_softmax(-1)


@dataclass(frozen=True)
class _Known:
    """A reference whose log-probabilities came with the batch."""

    logps: Tensor


def _reference(model: MLLM, batch: Batch, how: Preference, seen: dict[str, Features]) -> _State | _Known:
    known = batch.targets.known.get("reference")
    if not how.needs_reference:
        return _Known(torch.zeros_like(batch.targets.weights))
    if known is not None and not how.needs_live_reference:
        return _Known(known)
    if not any(isinstance(module, lora.LoraLinear) for module in model.modules()):
        raise TrainingError(
            "no reference model: its log-probabilities did not come with the data, or the terms need more of it "
            f"({', '.join(LIVE)} do), and no adapter trains that could be turned off; give the stage's parts a `lora`"
        )
    with torch.no_grad(), lora.disabled(model):
        return _State(model, batch, seen)


@dataclass(frozen=True)
class _Compared:
    """The answers of a batch by both models, and which of them won, int64[N] each."""

    batch: Batch
    answers: Answers
    won: Tensor
    lost: Tensor
    how: Preference
    policy: _State
    reference: _State | _Known

    def term(self, term: str) -> Tensor:
        """A term for each pair, float[N]."""
        how, won, lost = self.how, self.won, self.lost
        if term == "nll":
            return -self.mean(won)
        if term == "odds":
            return losses.odds(self.mean(won), self.mean(lost))
        if term == "simpo":
            return losses.simpo(self.mean(won), self.mean(lost), beta=how.beta, margin=how.margin)
        if term == "phrases":
            return self._phrases()
        if term == "kl":
            return self._divergence()
        if term == "unseen":
            lost = self.answers.beside(UNSEEN, won)
        better = self.delta(won)
        worse = self._noisy() if term == "noisy" else self.delta(lost)
        if term == "ipo":
            length = self.length
            return losses.ipo(better / length[won], worse / length[lost], beta=how.beta)
        h = how.beta * (better - worse)
        match term:
            case "anchor":
                return losses.anchored(better, beta=how.beta, delta=how.delta)
            case "robust":
                return losses.robust(h, smoothing=how.smoothing)
            case "hinge":
                return losses.hinge(h)
            case "bco_pair":
                mean = how.beta * torch.cat([better, worse]).detach().mean()
                return losses.bco_pair(better, worse, beta=how.beta, mean_reward=mean)
            case "kto_pair":
                return losses.kto_pair(better, worse, beta=how.beta)
            case "severity":
                return losses.severity(better, worse, beta=how.beta, severity=self.answers.numbers("severity", lost))
            case _:
                return losses.sigmoid(h, smoothing=how.smoothing)

    def delta(self, at: Tensor) -> Tensor:
        """Δ = log π − log π_ref of answers of these indices, float[N]; marked tokens count `gamma` times."""
        return self._summed(self.policy.logps - self.reference.logps)[at]

    def mean(self, at: Tensor) -> Tensor:
        """Mean log π over the tokens of answers, float[N]."""
        return (self._per_answer(self.policy.logps) / self.length)[at]

    @property
    def length(self) -> Tensor:
        """Tokens of each answer, float[A]."""
        return self._per_answer(torch.ones_like(self.policy.logps)).clamp_min(1.0)

    def _summed(self, logps: Tensor) -> Tensor:
        """Of each answer, float[A], with the weights of marked tokens."""
        mark = self.batch.targets.mark
        if mark is None or (self.how.gamma == 1 and not self.how.average):
            total = self._per_answer(logps)
            return total / self.length if self.how.average else total
        weights = torch.where(mark > 0, self.how.gamma, 1.0).to(logps)
        total = self._per_answer(weights * logps)
        return total / self._per_answer(weights).clamp_min(1e-9) if self.how.average else total

    def _per_answer(self, values: Tensor) -> Tensor:
        """Sums of one number a target over each answer's node, float[A]."""
        node, at = self.batch.targets.node, self.answers.node
        if not len(node):
            return values.new_zeros(len(at))
        nodes = int(torch.maximum(node.max(), at.max())) + 1
        return values.new_zeros(nodes).index_add(0, node, values)[at]

    def _targets(self, answer: int) -> Tensor:
        """The targets of an answer, in their order."""
        return (self.batch.targets.node == self.answers.node[answer]).nonzero().flatten()

    def _noisy(self) -> Tensor:
        """Δ of the likeliest words about the worse picture, each model's own, as words about the real one."""
        assert isinstance(self.reference, _State), "terms of LIVE have a reference that runs"
        made = []
        for won, unseen in zip(self.won.tolist(), self.answers.beside(UNSEEN, self.won).tolist(), strict=True):
            real, worse = self._targets(won), self._targets(unseen)
            sums = []
            for state in (self.policy, self.reference):
                words = state.log_probs(worse).argmax(-1)
                sums.append(state.log_probs(real).gather(-1, words[:, None]).sum())
            made.append(sums[0] - sums[1])
        return torch.stack(made) if made else self.policy.logps.new_zeros(0)

    def _phrases(self) -> Tensor:
        """Mean over the phrases of each pair, float[N]; a pair without one counts nothing."""
        mark, logps = self.batch.targets.mark, self.policy.logps
        made = []
        for won, lost in zip(self.won.tolist(), self.lost.tolist(), strict=True):
            sides = [self._targets(won), self._targets(lost)]
            if mark is None:
                raise DataError("no-phrases", "no phrase of an answer is marked, and the objective compares phrases")
            both = set(mark[sides[0]].tolist()) & set(mark[sides[1]].tolist()) - {0}
            sums = [[logps[at[mark[at] == phrase]].sum() for phrase in sorted(both)] for at in sides]
            right, wrong = (torch.stack(each) if each else logps.new_zeros(0) for each in sums)
            made.append(losses.phrase_contrast(right, wrong).mean() if both else logps.sum() * 0.0)
        return torch.stack(made) if made else logps.new_zeros(0)

    def _divergence(self) -> Tensor:
        """KL(π_ref ‖ π) of each kept answer, summed over its tokens, float[K]."""
        assert isinstance(self.reference, _State), "terms of LIVE have a reference that runs"
        made = []
        for answer in self.answers.named(KEPT):
            at = self._targets(answer)
            before, now = self.reference.log_probs(at), self.policy.log_probs(at)
            made.append((before.exp() * (before - now)).sum())
        return torch.stack(made) if made else self.policy.logps.new_zeros(0)
