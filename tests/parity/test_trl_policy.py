"""Reward models and policies against TRL's own code: the losses of its RewardTrainer and its GRPOTrainer.

TRL's trainers take numbers from a model; here tables of random numbers stand for it, float64, so that nothing but the
loss is compared, with its gradient. The tolerance is 1e-12, for sums in another order; measured worst case: 2e-16.
The installed TRL (1.16) has no PPO trainer, and with it no GAE and no `masked_whiten`: those are held by the vectors of
tests/unit/test_rolling_numbers.py alone.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trl import GRPOTrainer, RewardTrainer
from trl.trainer.utils import nanstd

from quintet.training.objectives import rewards
from quintet.training.objectives.policy import Policy, policy
from quintet.training.objectives.reward import Reward, reward

TOLERANCE = 1e-12
PAIRS, ANSWERS, LENGTH, GROUP = 6, 6, 9, 3


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(ours: Tensor, theirs: Tensor, of: Tensor) -> None:
    """The loss, and its gradient."""
    (mine,), (slope,) = (torch.autograd.grad(loss, of) for loss in (ours, theirs))
    assert slope.abs().max() > 1e-3, "a loss that nothing moves proves nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(mine, slope, atol=TOLERANCE, rtol=0)


class Accelerator:
    """One process."""

    num_processes = 1
    sync_gradients = True

    @staticmethod
    def gather(value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather

    @staticmethod
    def reduce(value: Tensor, reduction: str) -> Tensor:
        return value


class Metrics(dict[str, list[float]]):
    def __missing__(self, name: str) -> list[float]:
        return self.setdefault(name, [])


def trainer(**held: Any) -> Any:
    """What a trainer's loss asks of its trainer."""
    metrics = {"train": Metrics(), "eval": Metrics()}
    return SimpleNamespace(
        accelerator=Accelerator(),
        model=SimpleNamespace(training=False),
        _metrics=metrics,
        _total_train_tokens=0,
        **held,
    )


# ---- a reward model ----------------------------------------------------------------------------------------------
class Scored(nn.Module):
    """What stands for our model: a number for each answer."""

    def __init__(self, found: Tensor) -> None:
        super().__init__()
        self.found = found

    def forward(self, batch: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden=torch.zeros(1, len(self.found), 1))

    def scores(self, hidden: Tensor) -> Tensor:
        return self.found


class Pairs:
    """The first half of the answers won, the second lost."""

    last = torch.arange(2 * PAIRS)

    def __init__(self, margin: Tensor) -> None:
        self.margin = margin

    def pairs(self) -> tuple[Tensor, Tensor]:
        return torch.arange(PAIRS), torch.arange(PAIRS, 2 * PAIRS)

    def numbers(self, name: str, of: Tensor) -> Tensor:
        assert name == "margin"
        return self.margin[of]


@pytest.mark.parametrize("centering", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("margin", [False, True])
def test_a_reward_models_loss_is_trls(centering: float, margin: bool) -> None:
    found, by = drawn(2 * PAIRS, seed=1).requires_grad_(), drawn(PAIRS, seed=2).abs()
    held = trainer(args=SimpleNamespace(center_rewards_coefficient=centering or None))
    inputs: dict[str, Any] = {"attention_mask": torch.ones(1)} | ({"margin": by} if margin else {})
    theirs = RewardTrainer.compute_loss(held, lambda **_: SimpleNamespace(logits=found[:, None]), inputs)
    batch: Any = SimpleNamespace(answers=Pairs(by.repeat(2)))
    model: Any = Scored(found)
    loss, count, notes = reward(model, batch, Reward(margin=margin, centering=centering))
    assert isinstance(theirs, Tensor)
    same(loss / count, theirs, found)
    metrics = held._metrics["eval"]
    assert (notes["margin"] / count).item() == pytest.approx(metrics["margin"][0], abs=1e-6)
    assert (notes["accuracy"] / count).item() == pytest.approx(metrics["accuracy"][0], abs=1e-6)


# ---- GRPO --------------------------------------------------------------------------------------------------------
class Spoken(nn.Module):
    """What stands for our model: a log-probability for each token that was said."""

    def __init__(self, logps: Tensor) -> None:
        super().__init__()
        self.logps = logps

    def forward(self, batch: Any, *, only_targets: bool) -> None:
        return None

    def target_logps(self, output: None, targets: Any) -> Tensor:
        return self.logps


def grpo(logps: Tensor, mask: Tensor, **inputs: Tensor) -> Any:
    """TRL's loss of those tokens, a mean over all of them ("bnpo"), with a KL of 0.04."""
    made = trainer(
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None), beta=0.04, epsilon_low=0.2, epsilon_high=0.2,
        loss_type="bnpo", importance_sampling_level="token", top_entropy_quantile=1.0, aux_loss_enabled=False,
        off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
    )  # fmt: skip
    ids = torch.zeros_like(mask)
    asked = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask}
    return GRPOTrainer._compute_loss(made, None, asked | inputs)


def test_grpos_loss_is_trls() -> None:
    """With ratios that are clipped on both sides, and a KL to another reference."""
    lengths = torch.tensor([9, 4, 7, 2, 8, 5])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    said = mask.bool()
    logps = (-drawn(ANSWERS, LENGTH, seed=3).abs()).requires_grad_()
    old, before = (logps.detach() + drawn(ANSWERS, LENGTH, seed=n) / 3 for n in (4, 5))
    gains = drawn(ANSWERS, seed=6)
    clipped = ((logps - old).exp() - 1).abs()[said] > 0.2
    assert 0 < int(clipped.sum()) < int(said.sum())
    theirs = grpo(logps, mask, advantages=gains, old_per_token_logps=old, ref_per_token_logps=before)
    known = {"old": old[said], "reference": before[said], "advantage": gains.repeat_interleave(lengths)}
    batch: Any = SimpleNamespace(targets=SimpleNamespace(known=known), answers=None)
    model: Any = Spoken(logps[said])
    loss, count, _ = policy(model, batch, Policy(kl=0.04))
    same(loss / count, theirs, logps)


def test_a_groups_advantages_are_in_trls_deviations() -> None:
    """Its formula stands within a longer function: r less its group's mean, over TRL's deviation + 1e-4."""
    found = drawn(ANSWERS, seed=7)
    groups = found.view(-1, GROUP)
    theirs = ((groups - groups.nanmean(dim=1, keepdim=True)) / (nanstd(groups, dim=1)[:, None] + 1e-4)).flatten()
    ours = rewards.group_advantages(found, torch.arange(ANSWERS // GROUP).repeat_interleave(GROUP))
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
