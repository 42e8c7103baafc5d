"""Losses of preferences and of rewards: published numbers, what they are where nothing was learnt, and gradients."""

import math

import pytest
import torch
from torch import Tensor

from quintet.errors import ConfigError
from quintet.training.objectives import pair_losses as P
from quintet.training.objectives import rewards as R

LN2 = math.log(2)
WON, LOST = torch.tensor([2.0]), torch.tensor([-1.0])
"""log π − log π_ref: −10 + 12 and −15 + 14."""


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mdpo_of_a_known_pair() -> None:
    """DPO, the chosen answer against itself under a crop (−13 against −12.5), and the anchor."""
    cropped = torch.tensor([-0.5])
    terms = P.sigmoid(0.1 * (WON - LOST)), P.sigmoid(0.1 * (WON - cropped)), P.anchored(WON, beta=0.1)
    assert [round(term.item(), 7) for term in terms] == [0.5543552, 0.5759394, 0.5981389]


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: P.sigmoid(h),
        lambda h: P.sigmoid(h, smoothing=0.2),
        lambda h: P.robust(h, smoothing=0.2),
        lambda h: P.anchored(h, beta=0.1),
        lambda h: P.severity(h, h, beta=0.1, severity=torch.tensor([2.0])),
        lambda h: P.phrase_contrast(h, h),
        lambda h: P.odds(h - 1.0, h - 1.0),
        lambda h: P.simpo(h, h, beta=2.0, margin=0.0),
        lambda h: P.bco_pair(h, h, beta=0.1, mean_reward=0.0) / 2,
    ],
)
def test_every_sigmoid_is_ln_2_where_the_policy_is_the_reference(loss) -> None:
    assert loss(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(LN2, abs=1e-12)


def test_robust_labels_give_dpo_in_expectation() -> None:
    """(1 − ε) of the loss on the label as it is and ε of that on the other is the loss on the right label."""
    h, eps = drawn(5), 0.2
    mean = (1 - eps) * P.robust(h, smoothing=eps) + eps * P.robust(-h, smoothing=eps)
    torch.testing.assert_close(mean, P.sigmoid(h))


def test_siblings_against_their_formulas() -> None:
    won, lost, beta = drawn(4), drawn(4, seed=1), 0.3
    s = torch.sigmoid
    torch.testing.assert_close(P.ipo(won, lost, beta=beta), (won - lost - 1 / 0.6) ** 2)
    torch.testing.assert_close(P.hinge(won), torch.maximum(torch.zeros(4), 1 - won))
    base_won, base_lost = won.mean().clamp(min=0), lost.mean().clamp(min=0)
    torch.testing.assert_close(
        P.kto_pair(won, lost, beta=beta), 1 - s(beta * (won - base_lost)) + 1 - s(beta * (base_won - lost))
    )
    torch.testing.assert_close(
        P.bco_pair(won, lost, beta=beta, mean_reward=0.1), -(s(beta * won - 0.1) * s(0.1 - beta * lost)).log()
    )
    pw, pl = (-drawn(4).abs()).exp(), (-drawn(4, seed=1).abs()).exp()
    ratio = (pw / (1 - pw)).log() - (pl / (1 - pl)).log()
    torch.testing.assert_close(P.odds(pw.log(), pl.log()), -s(ratio).log())


def test_odds_of_answers_that_are_almost_sure_or_impossible_are_finite() -> None:
    logps = torch.tensor([-1e-12, -1e-4, -50.0, -700.0], dtype=torch.float64, requires_grad=True)
    P.odds(logps, logps.flip(0)).sum().backward()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [-0.1, 0.5])
def test_a_share_of_wrong_labels_that_cannot_be_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="at least 0 and under"):
        P.sigmoid(WON, smoothing=smoothing)


def test_segment_scores_of_several_answers_at_once_are_those_of_each_alone() -> None:
    logps, answer = drawn(7), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    changed = torch.tensor([False, True, False, True, True, False, False])
    whole = P.segment_score(logps, changed, answer, 2, gamma=5.0)
    for n in (0, 1):
        of = answer == n
        alone = P.segment_score(logps[of], changed[of], torch.zeros_like(answer[of]), 1, gamma=5.0)
        torch.testing.assert_close(whole[n], alone[0])
    plain = P.segment_score(logps, changed, answer, 2, gamma=1.0, average=False)
    torch.testing.assert_close(plain, torch.stack([logps[:3].sum(), logps[3:].sum()]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: P.sigmoid(0.1 * (a - b), smoothing=0.1),
        lambda a, b: P.robust(a - b, smoothing=0.1),
        lambda a, b: P.ipo(a, b, beta=0.1),
        lambda a, b: P.bco_pair(a, b, beta=0.5, mean_reward=0.2),
        lambda a, b: P.odds(-a.exp(), -b.exp()),
        lambda a, b: P.simpo(a, b, beta=2.0, margin=1.0),
        lambda a, b: P.severity(a, b, beta=0.5, severity=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
        lambda a, b: P.phrase_contrast(a, b),
        lambda a, b: R.preference_loss(a, b, margin=0.2, centering=0.01),
        lambda a, b: R.preference_loss(a, b, centering=0.001, center="mean"),
        lambda a, b: R.policy_loss(a, drawn(3) + 0.05, b),
        lambda a, b: R.value_loss(a, drawn(3) - 0.05, b),
        lambda a, b: R.kl(a, b, estimator="k3"),
    ],
)
def test_gradients_are_finite_differences(loss) -> None:
    a, b = (drawn(3, seed=n).requires_grad_() for n in (0, 1))
    assert torch.autograd.gradcheck(loss, (a, b))


# ---- rewards -----------------------------------------------------------------------------------------------------
def test_advantages_without_discount_are_what_is_still_to_come() -> None:
    rewards, values = torch.tensor([[-0.01, -0.02, 0.97]]), torch.tensor([[0.5, 0.4, 0.6]])
    found, returns = R.advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), lam=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.44, 0.55, 0.37]]))
    torch.testing.assert_close(returns, torch.tensor([[0.94, 0.95, 0.97]]))


def test_padding_changes_no_advantage_whatever_stands_in_it() -> None:
    rewards, values = drawn(2, 5), drawn(2, 5, seed=1)
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    found, returns = R.advantages(rewards, values, valid, gamma=0.9, lam=0.8)
    alone, alone_returns = R.advantages(rewards[:1, :3], values[:1, :3], valid[:1, :3], gamma=0.9, lam=0.8)
    torch.testing.assert_close(found[:1, :3], alone)
    torch.testing.assert_close(returns[:1, :3], alone_returns)
    assert (found[0, 3:] == 0).all()
    assert (returns[0, 3:] == 0).all()


def test_a_group_that_is_all_as_good_teaches_nothing() -> None:
    rewards, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    found = R.group_advantages(rewards, group)
    torch.testing.assert_close(found[:2], torch.tensor([0.5, -0.5]) / (0.5**0.5 + 1e-4))
    assert (found[2:] == 0).all()


def test_whitening_sees_valid_tokens_alone() -> None:
    values, valid = drawn(2, 4), torch.tensor([[True, True, False, False], [True, True, True, False]])
    white = R.whiten(values, valid)
    assert white[valid].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white[valid].std(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(R.whiten(values, valid, shift=False) - white, values[valid].mean().expand(2, 4))


def test_the_price_of_kl_rises_by_a_fifth_of_its_share_at_most() -> None:
    price = R.AdaptiveKL(0.1, target=6.0, horizon=100)
    price.update(60.0, answers=50)
    assert price.coefficient == pytest.approx(0.1 * 1.1)
    price.update(0.0, answers=50)
    assert price.coefficient == pytest.approx(0.1 * 1.1 * 0.9)
