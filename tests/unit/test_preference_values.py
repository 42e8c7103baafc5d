"""Every term of the preference objective on log-probabilities set by hand: its value from plain sums.

A table stands for the model, a distribution over four words at every target, one for the policy and one for the
reference, which an adapter switches between as it does in a model. Everything behind the table is the objective itself.
Numbers that are written out are those of shared test vectors (DPO, mDPO, RLHF-V, HSA-DPO, HALVA), made elsewhere.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, log, log1p
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from quintet.answers import Answer, Answers
from quintet.components import lora
from quintet.components.lora import Lora, LoraLinear
from quintet.data.contrast import KEPT, UNSEEN
from quintet.model.mllm import MLLM, Output
from quintet.training.objectives.preference import Preference, preference
from quintet.values import Batch, Features, Targets

WORDS = 4
LN2 = 0.6931472


# ---- answers by hand ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Said:
    """An answer: log-probabilities of its tokens, or whole distributions, by the policy and by the reference."""

    answer: Answer
    policy: Sequence[float | Sequence[float]]
    reference: Sequence[float | Sequence[float]]
    mark: Sequence[int] = field(default_factory=tuple)
    sample: int = 0


class Table(nn.Module):
    """A model in which every token is as likely as a table says."""

    def __init__(self, said: Sequence[Said]) -> None:
        super().__init__()
        self.policy = nn.Parameter(_rows(of for each in said for of in each.policy))
        self.reference = _rows(of for each in said for of in each.reference)
        self.switch = LoraLinear(nn.Linear(1, 1), Lora(rank=1))

    def look(self, batch: Batch) -> dict[str, Features]:
        return {}

    def forward(self, batch: Batch, *, only_targets: bool, seen: object) -> Output:
        return Output(self.policy if self.switch.active else self.reference, read=batch.targets.slots)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def target_logps(self, output: Output, targets: Targets) -> Tensor:
        return output.hidden.log_softmax(-1).gather(-1, targets.ids[:, None])[:, 0]


def _rows(of: Iterable[float | Sequence[float]]) -> Tensor:
    """Logits float64[P, WORDS] in which word 0, the one that was said, has its log-probability."""
    rows = []
    for each in of:
        shares = [exp(each), *[(1 - exp(each)) / (WORDS - 1)] * (WORDS - 1)] if isinstance(each, float) else each
        rows.append([log(max(share, 1e-300)) for share in shares])
    return torch.tensor(rows, dtype=torch.float64)


def batch(said: Sequence[Said]) -> Batch:
    """The answers as a batch: nodes 1, 3, 5 …, every token word 0."""
    lengths = [len(each.policy) for each in said]
    count = sum(lengths)
    nodes = torch.arange(len(said)) * 2 + 1
    marks = [mark for each in said for mark in (each.mark or [0] * len(each.policy))]
    zeros = torch.zeros(count, dtype=torch.int64)
    targets = Targets(
        torch.arange(count),
        zeros,
        torch.ones(count, dtype=torch.float64),
        nodes.repeat_interleave(torch.tensor(lengths)),
        mark=torch.tensor(marks) if any(each.mark for each in said) else None,
    )
    sample = torch.tensor([each.sample for each in said])
    answers = Answers(nodes, nodes + 1, sample, zeros[: len(said)], tuple(each.answer for each in said))
    empty = torch.zeros(1, 1, dtype=torch.int64)
    return Batch(empty, empty, empty, empty, empty, targets, answers=answers)


def value(how: Preference, said: Sequence[Said]) -> tuple[float, float, dict[str, float]]:
    """The objective's sum, its count, and what it reports."""
    loss, count, notes = preference(cast(MLLM, Table(said)), batch(said), how)
    return float(loss.detach()), count, {name: float(each) for name, each in notes.items()}


def of(**settings: float) -> Preference:
    """One term, and settings."""
    names = {"beta", "smoothing", "margin", "delta", "baseline", "gamma", "average", "won_weight", "noise"}
    terms = {name: weight for name, weight in settings.items() if name not in names}
    return Preference(terms=terms, **{n: v for n, v in settings.items() if n in names})  # type: ignore[arg-type]


def cost(h: float) -> float:
    """−log σ(h)."""
    return log1p(exp(-h))


def sure(h: float) -> float:
    return 1 / (1 + exp(-h))


# ---- terms -------------------------------------------------------------------------------------------------------
WON = Said(Answer(1.0, numbers={"severity": 0.2}), (-4.0, -6.0), (-5.0, -7.0))
LOST = Said(Answer(0.0, numbers={"severity": 3.0}), (-7.0, -3.0, -5.0), (-6.0, -2.5, -5.5))
"""log π −10 against −12, and −15 against −14: β 0.1 gives h = 0.3. Two tokens and three."""
AGAIN = Said(Answer(name=UNSEEN), (-6.0, -7.0), (-6.0, -6.5))
"""The better answer's words about a worse picture: −13 against −12.5."""

VALUES: dict[str, tuple[Preference, float]] = {
    "sigmoid": (of(sigmoid=1), 0.5543552),
    "its weight": (of(sigmoid=0.5), 0.5543552 / 2),
    "cdpo": (of(sigmoid=1, smoothing=0.1), 0.9 * cost(0.3) + 0.1 * cost(-0.3)),
    "robust": (of(robust=1, smoothing=0.1), (0.9 * cost(0.3) - 0.1 * cost(-0.3)) / 0.8),
    "hinge": (of(hinge=1), 0.7),
    "ipo": (of(ipo=1), (2 / 2 + 1 / 3 - 5) ** 2),
    "bco": (of(bco_pair=1), cost(0.2) + cost(0.1)),
    "bco over a baseline": (of(bco_pair=1, baseline=0.05), cost(0.2 - 0.05) + cost(0.05 + 0.1)),
    "kto": (of(kto_pair=1), 2 - sure(0.1 * (2 - 0)) - sure(0.1 * (2 + 1))),
    "anchor": (of(anchor=1), 0.5981389),
    "anchor with a margin": (of(anchor=1, delta=0.05), cost(0.2 - 0.05)),
    "unseen": (of(unseen=1), 0.5759394),
    "mdpo": (of(sigmoid=1, unseen=1, anchor=1), 1.7284335),
    "severity": (of(severity=1), 0.4740770),
    "severity of both": (of(severity=1, won_weight="severity"), cost(0.1 * (0.2 * 2 + 3 * 1))),  # type: ignore[arg-type]
    "nll": (of(nll=1), 5.0),
    "stic": (of(sigmoid=1, nll_sum=1 / 1024), 0.5543552 + 10 / 1024),
    "mpo": (of(sigmoid=0.8, bco_pair=0.2, nll=1), 0.8 * 0.5543552 + 0.2 * (cost(0.2) + cost(0.1)) + 5.0),
}


@pytest.mark.parametrize(("how", "expected"), VALUES.values(), ids=VALUES)
def test_a_term_on_known_log_probabilities_is_what_its_formula_gives(how: Preference, expected: float) -> None:
    found, count, notes = value(how, (WON, LOST, AGAIN))
    assert found == pytest.approx(expected, abs=1e-7)
    assert count == 1
    if how.needs_reference:
        reported = [notes[name] for name in ("reward_won", "reward_lost", "margin", "accuracy")]
        assert reported == pytest.approx([how.beta * 2, how.beta * -1, how.beta * 3, 1.0])


@pytest.mark.parametrize("term", ["sigmoid", "robust", "unseen", "anchor", "severity", "noisy", "noisy_joint"])
def test_where_the_policy_is_the_reference_a_term_is_ln_2(term: str) -> None:
    said = [Said(each.answer, each.policy, each.policy) for each in (WON, LOST, AGAIN)]
    assert value(of(**{term: 1.0}), said)[0] == pytest.approx(LN2, abs=1e-7)


def test_unequal_answers_without_a_reference() -> None:
    """Means over tokens −0.5 and −2: ORPO's odds, and SimPO at β 2 with its margin."""
    said = (Said(Answer(1.0), (-0.2, -0.8), (-9.0, -9.0)), Said(Answer(0.0), (-1.0, -2.0, -3.0), (-9.0,) * 3))
    odds = [exp(mean) / (1 - exp(mean)) for mean in (-0.5, -2.0)]
    assert value(of(odds=1), said)[0] == pytest.approx(cost(log(odds[0] / odds[1])))
    assert value(of(simpo=1, beta=2.0, margin=0.5), said)[0] == pytest.approx(cost(2.0 * 1.5 - 0.5))


@pytest.mark.parametrize(("average", "score"), [(True, -26.5 / 12), (False, -26.5)])
def test_changed_tokens_of_a_correction_count_gamma_times(average: bool, score: float) -> None:
    """Scores −26.5/12 and −13/7, of a reference that is sure of everything; γ 5."""
    won = Said(Answer(1.0), (-1.0, -2.0, -3.0, -0.5), (0.0,) * 4, (0, 1, 1, 0))
    lost = Said(Answer(0.0), (-1.0, -2.0, -2.0), (0.0,) * 3, (0, 1, 0))
    other = -13 / 7 if average else -13.0
    how = Preference(beta=0.5, gamma=5.0, average=average)
    assert value(how, (won, lost))[0] == pytest.approx(cost(0.5 * (score - other)), abs=1e-9)
    assert value(how, (won, lost))[2]["reward_won"] == pytest.approx(0.5 * score)


def test_phrases_of_both_answers_are_compared_and_others_are_left() -> None:
    """Phrase 1: −2 against −4, the vector. Phrase 2, of two tokens here and one there: −3 against −1. Phrase 3 stands
    in one answer alone, and what is not marked counts nothing."""
    first = (
        Said(Answer(1.0), (-2.0, -7.0), (-1.0, -1.0), (1, 0)),
        Said(Answer(0.0), (-4.0, -0.1), (-2.0, -2.0), (1, 0)),
    )
    assert value(of(phrases=1), first)[0] == pytest.approx(0.1269280, abs=1e-7)
    both = (
        Said(Answer(1.0), (-2.0, -1.0, -2.0, -9.0), (-1.0,) * 4, (1, 2, 2, 0)),
        Said(Answer(0.0), (-8.0, -1.0, -4.0, -6.0), (-1.0,) * 4, (0, 2, 1, 3)),
    )
    assert value(of(phrases=1), both)[0] == pytest.approx((cost(2.0) + cost(-2.0)) / 2)


def test_what_is_kept_costs_the_divergence_of_the_policy_from_the_reference() -> None:
    """KL(reference ‖ policy) of two tokens, over all words; the two directions differ. Two of them beside a pair."""
    before, now = (0.85, 0.05, 0.05, 0.05), (0.25, 0.25, 0.25, 0.25)
    forward, backward = (sum(a * log(a / b) for a, b in zip(*of, strict=True)) for of in ((before, now), (now, before)))
    kept = Said(Answer(name=KEPT), (now, now), (before, before))
    pair = (
        Said(Answer(1.0), (-2.0,), (-1.0,), (1,)),
        Said(Answer(0.0), (-4.0,), (-2.0,), (1,)),
    )
    assert forward != pytest.approx(backward, abs=1e-2)
    for number in (0, 1, 2):
        loss, count, notes = value(of(phrases=1, kl=0.4), (*pair, *[kept] * number))
        assert loss == pytest.approx(0.1269280 + 0.4 * number * 2 * forward, abs=1e-7)
        assert notes["kl"] == pytest.approx(number * 2 * forward)
        assert count == 1, "what is kept makes no pair weigh less"


def test_the_words_of_a_noisy_picture_are_each_model_s_own_and_scored_about_the_clean_one() -> None:
    """Under noise the policy would say word 1, then 2, the reference 3, then 1; shares are those of the clean one."""
    clean = ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4))
    before = ((0.7, 0.1, 0.1, 0.1), (0.25, 0.15, 0.5, 0.1))
    noisy = ((0.1, 0.6, 0.2, 0.1), (0.2, 0.1, 0.6, 0.1))
    noisy_before = ((0.1, 0.2, 0.1, 0.6), (0.1, 0.5, 0.3, 0.1))
    said = (
        Said(Answer(1.0), clean, before),
        Said(Answer(0.0), (-3.0,), (-2.5,)),
        Said(Answer(name=UNSEEN), noisy, noisy_before),
    )
    won = log(0.4 * 0.1) - log(0.7 * 0.25)
    noise = log(0.3 * 0.3) - log(0.1 * 0.15)
    assert value(of(noisy=1), said)[0] == pytest.approx(cost(0.1 * (won - noise)))
    one = of(noisy_joint=1, noise=0.25)
    assert value(one, said)[0] == pytest.approx(cost(0.1 * (won - (0.75 * -0.5 + 0.25 * noise))))


# ---- several pairs -----------------------------------------------------------------------------------------------
def test_every_two_answers_of_a_sample_are_a_pair_and_none_of_two_samples() -> None:
    """Δ 1, −0.5 and 2 of scores 5, 3 and 1 in a file's order; beside it a sample of its own."""
    tree = [Said(Answer(score), (-1.0 + d,), (-1.0,)) for score, d in ((3.0, -0.5), (5.0, 0.9), (1.0, -2.0))]
    alone = [Said(Answer(score), (-3.0 + d,), (-3.0,), sample=1) for score, d in ((1.0, 0.4), (0.0, 0.6))]
    loss, count, notes = value(of(sigmoid=1, beta=1.0), (*tree, *alone))
    assert count == 4
    assert loss == pytest.approx(cost(0.9 + 0.5) + cost(0.9 + 2.0) + cost(-0.5 + 2.0) + cost(0.4 - 0.6))
    assert notes["accuracy"] == 3


@pytest.mark.parametrize("term", ["bco_pair", "sigmoid", "hinge", "ipo", "unseen", "severity"])
def test_pairs_together_cost_what_they_cost_apart(term: str) -> None:
    """So a step does not depend on how it is cut into micro-batches."""
    first, second = (WON, LOST, AGAIN), tuple(_elsewhere(each) for each in (WON, LOST, AGAIN))
    how = of(**{term: 1.0})
    apart = value(how, first)[0] + value(how, second)[0]
    assert value(how, (*first, *second))[0] == pytest.approx(apart, abs=1e-12)


def _elsewhere(said: Said) -> Said:
    """The answer in another sample, with another Δ."""
    return Said(said.answer, [cast(float, p) + 0.7 for p in said.policy], said.reference, sample=1)


def test_kto_s_baselines_are_those_of_the_micro_batch() -> None:
    """Where neither side gained in the mean they are 0 and a step may be cut anywhere; else the cut shows."""
    how = of(kto_pair=1)
    pairs = [
        [Said(Answer(s), (-3.0 + d,), (-3.0,), sample=n) for s, d in ((1.0, won), (0.0, lost))]
        for n, (won, lost) in enumerate([(-0.5, -1.5), (-0.2, -0.1)])
    ]
    together, apart = value(how, [*pairs[0], *pairs[1]])[0], sum(value(how, pair)[0] for pair in pairs)
    assert together == pytest.approx(apart, abs=1e-12)
    by_hand = sum(2 - sure(0.1 * won) - sure(-0.1 * lost) for won, lost in [(-0.5, -1.5), (-0.2, -0.1)])
    assert together == pytest.approx(by_hand)
    gained = [(1.0, 0.4), (0.6, -0.2)]
    pairs = [
        [Said(Answer(s), (-3.0 + d,), (-3.0,), sample=n) for s, d in ((1.0, won), (0.0, lost))]
        for n, (won, lost) in enumerate(gained)
    ]
    by_hand = sum(2 - sure(0.1 * (won - 0.1)) - sure(0.1 * (0.8 - lost)) for won, lost in gained)
    assert value(how, [*pairs[0], *pairs[1]])[0] == pytest.approx(by_hand)
    assert math.fsum(value(how, pair)[0] for pair in pairs) != pytest.approx(by_hand, abs=1e-4)


def test_the_reference_is_the_model_with_its_adapters_off() -> None:
    """The table's own check: what the objective asks of the model without adapters is the other table."""
    table = Table((WON, LOST))
    asked = batch((WON, LOST))
    with lora.disabled(table):
        hidden = table(asked, only_targets=True, seen=None).hidden
    assert torch.equal(hidden, table.reference)
