"""Learning from answers that are compared: DPO and what is like it, over trees.

A sample is a prompt and its answers, branches that do not see each other, so media are encoded once and the prompt is
attended once. Every two of them of which one is better are a pair. Log-probabilities of all learnt tokens come from one
forward; an answer's is the sum over its node.

The reference is the model before the stage: its log-probabilities come with the batch, if they were computed before,
or from the same weights with adapters off. Nothing is dropped, whatever adapters and LLM are set to: noise in one of
two models that are compared would be taken for what it learnt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from quintet.answers import Answers
from quintet.components import lora
from quintet.config.base import Config
from quintet.data.contrast import KEPT, UNSEEN
from quintet.errors import ConfigError, DataError, TrainingError, nearest
from quintet.model.mllm import MLLM, Output
from quintet.model.modes import steady
from quintet.training.objectives import pair_losses as losses
from quintet.training.objectives.lm import Notes
from quintet.values import Batch, Features, Tokens

__all__ = ["LIVE", "WORSE", "Preference", "count", "preference", "reference_logps"]

Term = Literal[
    "sigmoid", "robust", "hinge", "ipo", "bco_pair", "kto_pair", "odds", "simpo", "anchor", "unseen", "severity",
    "nll", "nll_sum", "noisy", "noisy_joint", "phrases", "kl",
]  # fmt: skip
FREE = ("odds", "simpo", "nll", "nll_sum", "phrases")
"""Terms that no reference is needed for."""
LIVE = ("noisy", "noisy_joint", "kl")
"""Terms that need more of the reference than its log-probabilities of the answers: it runs beside the policy."""
WORSE = ("unseen", "noisy", "noisy_joint")
"""Terms that look at the second tree, where winners stand behind a picture made worse."""


@dataclass(frozen=True, kw_only=True)
class Preference(Config):
    """What is minimised: a sum of terms, each a function of `objectives/pair_losses.py`; the mean over all pairs.

    unseen       −log σ(β(Δ_won − Δ of the same words about a picture made worse)): mDPO's conditional term
    noisy        −log σ(β(Δ_won − Δ_noise)): of the words that would be likeliest one by one were the picture the
                 worse one, about the real one (POVID's second stage, as its code has it)
    noisy_joint  −log σ(β(Δ_won − (1 − s)Δ_lost − sΔ_noise)), s `noise`: POVID's paper, one sigmoid
    anchor       mDPO's: the better answer shall not become less probable
    nll          the better answer's negative log-likelihood per token (RPO, ORPO)
    nll_sum      the same, summed over its tokens (STIC)
    phrases      HALVA: marked phrases against those that stand in their place, without a reference
    kl           HALVA: KL(π_ref ‖ π) over the whole vocabulary, summed over the tokens of answers named `kept`

    `unseen`, `noisy` and `noisy_joint` need a second tree (`Stage.contrast`). `kl` is divided by the pairs like every
    term: with one `kept` beside each pair it is HALVA's mean, with r of them a pair HALVA's α is `kl` times r.
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
    baseline: float = 0.0
    """δ of `bco_pair`: the reward βΔ over which a better answer shall come, and under it a worse one. A constant, not
    the paper's running mean (docs/decisions/0012)."""
    gamma: float = 1.0
    """How much a marked token counts, one that a person changed; others count 1 (RLHF-V)."""
    average: bool = False
    """Whether an answer's log-probability is its weighted mean over tokens (RLHF-V's paper)."""
    won_weight: Literal["one", "severity"] = "one"
    """What the better answer's Δ is multiplied by in `severity`: 1, or its own severity (an option of HSA-DPO)."""
    noise: float = 0.5
    """Share of Δ_noise in `noisy_joint`; the rest is the worse answer's."""

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
        if not 0 <= self.noise <= 1:
            raise ConfigError(f"noise is {self.noise}; it is a share, from 0 to 1")

    @property
    def needs_reference(self) -> bool:
        """Whether the model before the stage takes part."""
        return any(term not in FREE for term in self.terms)

    @property
    def needs_live_reference(self) -> bool:
        """Whether it must run beside the policy: log-probabilities computed before are not enough."""
        return any(term in LIVE for term in self.terms)

    def check(self, tokens: Tokens) -> None:
        """Looks whether a sample has what the terms need, before anything is computed of it.

        Raises:
            DataError: no answer of it is better than another, or what a term asks for is not there.
        """
        answers = Answers.alone(tokens.answers, tokens.enter, tokens.exit)
        won, lost = answers.pairs()
        if not len(won):
            raise DataError("no-pair", "no answer is better than another one, and the objective compares them")
        if self.gamma != 1 and tokens.mark is None:
            raise DataError("no-marks", "no token is marked for `gamma` to weigh; set differences=true, or gamma=1")
        if self.terms.keys() & set(WORSE):
            answers.beside(UNSEEN, won)
        if "severity" in self.terms:
            self.severities(answers, won, lost)
        if "phrases" in self.terms:
            _phrases(tokens.mark, tokens.enter, answers, won, lost)

    def severities(self, answers: Answers, won: Tensor, lost: Tensor) -> tuple[Tensor | float, Tensor]:
        """What `severity` multiplies either side's Δ by."""
        weight = answers.numbers("severity", won) if self.won_weight == "severity" else 1.0
        return weight, answers.numbers("severity", lost)


def preference(model: MLLM, batch: Batch, how: Preference) -> tuple[Tensor, float, Notes]:
    """Sum over pairs of the terms, how many pairs there are, and sums to report.

    Raises:
        TrainingError: a reference is needed, none came with the batch, and the model has no adapters to turn off.
        DataError: a sample lacks what a term needs; where rows are planned `Preference.check` has found it before.
    """
    with steady(model):
        seen = model.look(batch)
        policy = _State(model, batch, seen)
        reference = _reference(model, batch, how, seen)
        if batch.answers is None:
            # A rank without rows: it has run what the others run, the reference too.
            return policy.logps.sum() * 0.0, 0.0, {}
        won, lost = batch.answers.pairs()
        compared = _Compared(batch, batch.answers, won, lost, how, policy, reference)
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
    """What a batch counts in a step: its pairs."""
    return 0.0 if batch.answers is None else float(len(batch.answers.pairs()[0]))


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
        """A term for each pair, float[N]; `kl` for each kept answer."""
        match term:
            case "nll":
                return -self.mean(self.won)
            case "nll_sum":
                return -self._per_answer(self.policy.logps)[self.won]
            case "odds":
                return losses.odds(self.mean(self.won), self.mean(self.lost))
            case "simpo":
                return losses.simpo(
                    self.mean(self.won), self.mean(self.lost), beta=self.how.beta, margin=self.how.margin
                )
            case "phrases":
                return self._contrasted()
            case "kl":
                return self._divergence()
            case _:
                return self._against_reference(term)

    def _against_reference(self, term: str) -> Tensor:
        how, beta = self.how, self.how.beta
        better, worse = self.delta(self.won), self.delta(self.lost)
        match term:
            case "unseen":
                return losses.sigmoid(
                    beta * (better - self.delta(self.answers.beside(UNSEEN, self.won))), smoothing=how.smoothing
                )
            case "noisy":
                return losses.sigmoid(beta * (better - self._noisy()), smoothing=how.smoothing)
            case "noisy_joint":
                both = (1 - how.noise) * worse + how.noise * self._noisy()
                return losses.sigmoid(beta * (better - both), smoothing=how.smoothing)
            case "anchor":
                return losses.anchored(better, beta=beta, delta=how.delta)
            case "ipo":
                return losses.ipo(*(self.delta(at, average=True) for at in (self.won, self.lost)), beta=beta)
            case "bco_pair":
                return losses.bco_pair(better, worse, beta=beta, mean_reward=how.baseline)
            case "kto_pair":
                return losses.kto_pair(better, worse, beta=beta)
            case "severity":
                weight, severity = how.severities(self.answers, self.won, self.lost)
                return losses.severity(better, worse, beta=beta, severity=severity, won_weight=weight)
            case "robust":
                return losses.robust(beta * (better - worse), smoothing=how.smoothing)
            case "hinge":
                return losses.hinge(beta * (better - worse))
            case _:
                assert term == "sigmoid", term
                return losses.sigmoid(beta * (better - worse), smoothing=how.smoothing)

    def delta(self, at: Tensor, *, average: bool = False) -> Tensor:
        """Δ = log π − log π_ref of answers of these indices, float[N]; marked tokens count `gamma` times."""
        mark, apart = self.batch.targets.mark, self.policy.logps - self.reference.logps
        changed = torch.zeros_like(apart, dtype=torch.bool) if mark is None else mark > 0
        whole = average or self.how.average
        return losses.segment_score(apart, changed, *self._numbered, gamma=self.how.gamma, average=whole)[at]

    def mean(self, at: Tensor) -> Tensor:
        """Mean log π over the tokens of answers, float[N]."""
        length = self._per_answer(torch.ones_like(self.policy.logps)).clamp_min(1.0)
        return (self._per_answer(self.policy.logps) / length)[at]

    @cached_property
    def _numbered(self) -> tuple[Tensor, int]:
        """The answer of each target, int64[P]; what is in none has the number of answers, one more than there are."""
        node, at, count = self.batch.targets.node, self.answers.node, len(self.answers)
        numbers = node.new_full((int(torch.cat([node, at]).max()) + 1,), count)
        numbers[at] = torch.arange(count, device=at.device)
        return numbers[node], count + 1

    def _per_answer(self, values: Tensor) -> Tensor:
        """Sums of one number a target over each answer's node, float[A + 1]."""
        answer, count = self._numbered
        return values.new_zeros(count).index_add(0, answer, values)

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

    def _contrasted(self) -> Tensor:
        """Mean over the phrases of each pair, float[N]."""
        mark, logps, node = self.batch.targets.mark, self.policy.logps, self.batch.targets.node
        made = []
        for right, wrong in _phrases(mark, node, self.answers, self.won, self.lost):
            sums = [torch.stack([logps[at].sum() for at in side]) for side in (right, wrong)]
            made.append(losses.phrase_contrast(*sums).mean())
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


def _phrases(
    mark: Tensor | None, node: Tensor, answers: Answers, won: Tensor, lost: Tensor
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Of each pair the phrases that both answers have: bool[P] each, of the better one and of the other.

    `mark` and `node` are int64[P], of targets or of a sample's tokens.

    Raises:
        DataError: a pair has none.
    """
    found: list[tuple[list[Tensor], list[Tensor]]] = []
    for sides in zip(answers.node[won], answers.node[lost], strict=True):
        marks = [set[int]() if mark is None else set(mark[node == side].tolist()) - {0} for side in sides]
        if mark is None or not marks[0] & marks[1]:
            raise DataError(
                "no-phrases", "no phrase is marked in both answers of a pair, and the objective compares them"
            )
        both = sorted(marks[0] & marks[1])
        right, wrong = ([(node == side) & (mark == phrase) for phrase in both] for side in sides)
        found.append((right, wrong))
    return found
