"""Reward models, and what PPO makes of rewards. Letters: N pairs, B answers, T tokens of the longest of them.

Per-token tensors are float[B, T] with `valid` bool[B, T]: tokens of the answer, its end marker included. What stands
outside is never read.

Sources: PPO (Schulman et al. 2017, arXiv:1707.06347), GAE (Schulman et al. 2015, arXiv:1506.02438), estimators of KL
(Schulman 2020), RLHF (Ziegler et al. 2019, arXiv:1909.08593: adaptive KL), LLaVA-RLHF (Sun et al. 2023,
arXiv:2309.14525, and its code), GRPO (Shao et al. 2024, arXiv:2402.03300).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AdaptiveKL",
    "advantages",
    "group_advantages",
    "kl",
    "policy_loss",
    "preference_loss",
    "value_loss",
    "whiten",
]


def preference_loss(
    won: Tensor,
    lost: Tensor,
    *,
    margin: float | Tensor = 0.0,
    centering: float = 0.0,
    center: Literal["square", "mean"] = "square",
) -> Tensor:
    """Bradley–Terry: −log σ(r_won − r_lost − margin), float[N], with a pull of the rewards to 0.

    `center` is what is pulled, `centering` times: (r_won + r_lost)² of each pair (TRL), or |mean(r_won + r_lost)| of
    the batch (LLaVA-RLHF's code, 0.001).

    >>> won, lost = torch.tensor([1.2]), torch.tensor([0.5])
    >>> round(preference_loss(won, lost).item(), 6)
    0.403186
    >>> round(preference_loss(won, lost, centering=1e-3, center="mean").item(), 6)
    0.404886
    """
    both = won + lost
    pull = both.square() if center == "square" else both.mean().abs()
    return -F.logsigmoid(won - lost - margin) + centering * pull


def kl(logps: Tensor, reference: Tensor, *, estimator: Literal["k1", "k3"]) -> Tensor:
    """An estimate of KL(π ‖ π_ref) at each token drawn from π; k3 is never under 0 and varies less.

    >>> [round(v, 7) for v in kl(torch.tensor([-0.2, 0.0, 0.5]), torch.zeros(3), estimator="k3").tolist()]
    [0.0214028, 0.0, 0.1065307]
    """
    apart = logps - reference
    return apart if estimator == "k1" else torch.expm1(-apart) + apart


def advantages(
    rewards: Tensor, values: Tensor, valid: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns, float[B, T] each; 0 outside the answer.

    The value behind an answer's last token is 0. `valid` is true for one run of columns a row.

    >>> rewards, values = torch.tensor([[-0.01, -0.02, 0.97]]), torch.tensor([[0.5, 0.4, 0.6]])
    >>> found, returns = advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool))
    >>> [round(v, 6) for v in found[0].tolist()], [round(v, 6) for v in returns[0].tolist()]
    ([0.394925, 0.5315, 0.37], [0.894925, 0.9315, 0.97])
    """
    there = valid.to(values.dtype)
    values, rewards = values * there, rewards * there
    after = F.pad(values[:, 1:], (0, 1))
    delta = (rewards + gamma * after - values) * there
    found, running = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        running = delta[:, t] + gamma * lam * there[:, t] * running
        found[:, t] = running
    found = found * there
    return found, (found + values) * there


def group_advantages(rewards: Tensor, group: Tensor, *, scale: bool = True) -> Tensor:
    """GRPO: how much better each answer's reward is than its group's mean, float[B], in deviations if `scale`.

    `group` int64[B] numbers the prompt of each. Answers of a group that are all as good teach nothing: 0.
    """
    count = int(group.max()) + 1
    sizes = torch.bincount(group, minlength=count).to(rewards)
    mean = rewards.new_zeros(count).index_add(0, group, rewards) / sizes
    apart = rewards - mean[group]
    if not scale:
        return apart
    spread = (rewards.new_zeros(count).index_add(0, group, apart.square()) / (sizes - 1).clamp_min(1)).sqrt()
    return apart / (spread[group] + 1e-4)


def whiten(values: Tensor, valid: Tensor, *, shift: bool = True, eps: float = 1e-8) -> Tensor:
    """`values` over their deviation over all valid tokens, less their mean if `shift`."""
    known = values[valid]
    mean = known.mean()
    white = (values - mean) * (known.var(unbiased=False) + eps).rsqrt()
    return white if shift else white + mean


def policy_loss(logps: Tensor, old: Tensor, advantage: Tensor, *, clip: float = 0.2) -> Tensor:
    """max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)), ρ = exp(logps − old), one number a token."""
    ratio = (logps - old).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float = 0.2) -> Tensor:
    """½ max((V − R)², (clip(V, V_old ± ε) − R)²), one number a token."""
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


@dataclass
class AdaptiveKL:
    """How much KL costs: more while it is over its target, less while it is under."""

    coefficient: float
    target: float
    horizon: int = 10_000
    """Answers after which the correction is whole."""

    def update(self, measured: float, answers: int) -> None:
        """κ ← κ (1 + clip(KL / target − 1, −0.2, 0.2) · answers / horizon)."""
        error = min(max(measured / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * answers / self.horizon
