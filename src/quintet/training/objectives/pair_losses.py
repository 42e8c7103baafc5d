"""Losses of preferences: one loss a pair, float[N], in nats, from log-probabilities of whole answers.

    Δ = log π(y | m, x) − log π_ref(y | m, x)    summed over the answer's tokens, its end marker included
    h = β · (Δ_won − Δ_lost)                     the margin; 0 where the policy is the reference

`won` and `lost` are Δ of the preferred and of the other answer, unless a function says otherwise; `beta` is β. A
sigmoid of h is ln 2 where the policy is the reference, whatever the pair: the first step of a run shows it.

Sources: DPO (Rafailov et al. 2023, arXiv:2305.18290), cDPO (Mitchell 2023), robust DPO (Chowdhury et al. 2024,
arXiv:2403.00409), IPO (Azar et al. 2023, arXiv:2310.12036), hinge (SLiC, Zhao et al. 2023, arXiv:2305.10425), KTO
(Ethayarajh et al. 2024, arXiv:2402.01306), BCO (Jung et al. 2024, arXiv:2404.04656), ORPO (Hong et al. 2024,
arXiv:2403.07691), SimPO (Meng et al. 2024, arXiv:2405.14734), mDPO (Wang et al. 2024, arXiv:2406.11839), HSA-DPO
(Xiao et al. 2024, arXiv:2404.14233), RLHF-V (Yu et al. 2023, arXiv:2312.00849), HALVA (Sarkar et al. 2024,
arXiv:2405.18654).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.errors import ConfigError

__all__ = [
    "anchored",
    "bco_pair",
    "hinge",
    "ipo",
    "kto_pair",
    "odds",
    "phrase_contrast",
    "robust",
    "segment_score",
    "severity",
    "sigmoid",
    "simpo",
]


def sigmoid(h: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """DPO: −log σ(h). With `smoothing` ε, cDPO: −(1 − ε) log σ(h) − ε log σ(−h), for labels that are wrong so often.

    >>> h = 0.1 * torch.tensor([(-10 + 12) - (-15 + 14)])
    >>> round(sigmoid(h).item(), 7)
    0.5543552
    """
    _share("smoothing", smoothing)
    return -(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h)


def robust(h: Tensor, *, smoothing: float) -> Tensor:
    """[−(1 − ε) log σ(h) + ε log σ(−h)] / (1 − 2ε): in expectation DPO on right labels, if ε of them are wrong."""
    _share("smoothing", smoothing)
    return (-(1 - smoothing) * F.logsigmoid(h) + smoothing * F.logsigmoid(-h)) / (1 - 2 * smoothing)


def hinge(h: Tensor) -> Tensor:
    """max(0, 1 − h)."""
    return F.relu(1 - h)


def ipo(won: Tensor, lost: Tensor, *, beta: float) -> Tensor:
    """(Δ_won − Δ_lost − 1 / 2β)², of means over tokens instead of sums: β is here how far apart they shall come."""
    return (won - lost - 1 / (2 * beta)).square()


def bco_pair(won: Tensor, lost: Tensor, *, beta: float, mean_reward: float | Tensor) -> Tensor:
    """−log σ(βΔ_won − δ) − log σ(δ − βΔ_lost), a pair's two answers; δ is `mean_reward`, the paper's running mean."""
    return -F.logsigmoid(beta * won - mean_reward) - F.logsigmoid(mean_reward - beta * lost)


def kto_pair(won: Tensor, lost: Tensor, *, beta: float) -> Tensor:
    """1 − σ(β(Δ_won − K_lost)) + 1 − σ(β(K_won − Δ_lost)), K the mean of Δ over N, at least 0, without gradient.

    KTO on pairs with LLaMA-Factory's baselines: the other answers of the batch stand for those that KTO pairs at
    random. It is the sum of a pair's two answers, where LLaMA-Factory takes the mean over answers: twice that.

    The N are the pairs of one micro-batch on one rank, so where an answer gained in the mean the loss depends on how a
    step is cut (`Stage.micro`): the later pairs of a step are not known yet when the first are learnt from. Where
    neither side gained in the mean of any micro-batch, as at the first step, K is 0 and it does not.
    """
    base_won, base_lost = (each.detach().mean().clamp_min(0.0) for each in (won, lost))
    return 2 - torch.sigmoid(beta * (won - base_lost)) - torch.sigmoid(beta * (base_won - lost))


def odds(won: Tensor, lost: Tensor) -> Tensor:
    """ORPO's ratio: −log σ of the difference of log-odds; `won` and `lost` are log π per token (means), under 0.

    The whole of ORPO is the preferred answer's mean negative log-likelihood and λ times this; there is no reference.
    """
    apart = (won - lost) - (_log1mexp(won) - _log1mexp(lost))
    return -F.logsigmoid(apart)


def simpo(won: Tensor, lost: Tensor, *, beta: float, margin: float) -> Tensor:
    """−log σ(β(won − lost) − γ) of log π per token (means); `margin` is γ. There is no reference."""
    return -F.logsigmoid(beta * (won - lost) - margin)


def anchored(won: Tensor, *, beta: float, delta: float = 0.0) -> Tensor:
    """The anchor of mDPO: −log σ(βΔ_won − δ), so that the preferred answer itself does not become less probable."""
    return -F.logsigmoid(beta * won - delta)


def severity(won: Tensor, lost: Tensor, *, beta: float, severity: Tensor, won_weight: float | Tensor = 1.0) -> Tensor:
    """HSA-DPO: −log σ(β(w Δ_won − s Δ_lost)), `severity` s float[N] of the rejected answer's hallucinations.

    >>> round(severity(torch.tensor([2.0]), torch.tensor([-1.0]), beta=0.1, severity=torch.tensor([3.0])).item(), 7)
    0.474077
    """
    return -F.logsigmoid(beta * (won_weight * won - severity * lost))


def segment_score(
    logps: Tensor, changed: Tensor, answer: Tensor, count: int, *, gamma: float, average: bool = True
) -> Tensor:
    """RLHF-V's score of each answer, float[count]: tokens that a person changed count γ times.

    `logps` and `changed` are float[P] and bool[P] of all tokens, `answer` int64[P] numbers the answer of each. The sum
    is divided by the weights' sum if `average` (the paper; its script leaves it). With γ 1 and without `average` it is
    an answer's log-probability.

    >>> logps, changed = torch.tensor([-1.0, -2.0, -3.0, -0.5]), torch.tensor([False, True, True, False])
    >>> round(segment_score(logps, changed, torch.zeros(4, dtype=torch.int64), 1, gamma=5.0).item(), 7)
    -2.2083333
    """
    weights = torch.where(changed, gamma, 1.0).to(logps)
    total = logps.new_zeros(count).index_add(0, answer, weights * logps)
    if not average:
        return total
    # An answer without a token scores 0.
    return total / logps.new_zeros(count).index_add(0, answer, weights).clamp_min(1e-9)


def phrase_contrast(right: Tensor, wrong: Tensor) -> Tensor:
    """HALVA: log(1 + exp(wrong − right)) of a phrase and of what stands in its place, summed log π, float[phrases].

    >>> round(phrase_contrast(torch.tensor([-2.0]), torch.tensor([-4.0])).item(), 6)
    0.126928
    """
    return F.softplus(wrong - right)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, exact near 0 and far from it (Mächler 2012)."""
    near = x > -0.6931471805599453
    # Each branch gets an argument that it can take, or its gradient would be NaN where the other one is chosen.
    small, large = x.where(near, -1.0), x.where(~near, -1.0)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def _share(name: str, value: float) -> None:
    if not 0 <= value < 0.5:
        raise ConfigError(f"{name} is {value}; it is the share of labels that are wrong: at least 0 and under 0.5")
