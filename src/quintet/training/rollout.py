"""How the answers that a policy learns from are drawn, as settings of a stage.

Defaults are GRPO's (Shao et al. 2024, arXiv:2402.03300); those of PPO and of LLaVA-RLHF are in their recipes.
"""

from dataclasses import dataclass, fields
from typing import Literal

from quintet.config.base import Config
from quintet.errors import ConfigError

__all__ = ["Rollouts"]

_OF_PPO = ("kl", "estimator", "floor", "target", "gamma", "lam", "whiten", "whiten_rewards")
"""Settings that nothing reads where answers are compared with those of their group."""


@dataclass(frozen=True, kw_only=True)
class Rollouts(Config):
    """One iteration: so many prompts are answered with the weights as they are, then learnt from."""

    prompts: int = 64
    """Prompts an iteration; a multiple of the stage's batch."""
    group: int = 8
    """Answers a prompt, branches of one tree."""
    epochs: int = 1
    """How often an iteration's answers are learnt from."""
    max_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    reward: str = "exact"
    """What an answer is worth: a name of `quintet.lab.rewards`."""
    advantage: Literal["group", "gae"] = "group"
    """`group`: against the mean of the prompt's other answers (GRPO). `gae`: against the value head (PPO)."""
    scale: bool = True
    """Whether a group's advantages are in its standard deviations."""
    kl: float = 0.0
    """κ: what a token's KL to the reference costs (PPO; GRPO has it in the loss)."""
    estimator: Literal["k1", "k3"] = "k1"
    floor: bool = False
    """Whether a token's k1 counts as at least 0 (LLaVA-RLHF's code, which biases it upwards)."""
    target: float | None = None
    """The KL that κ adapts to; None keeps κ."""
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    """Whether advantages are whitened over an iteration's tokens."""
    times: float = 1.0
    """What all shaped rewards are multiplied by, the cost of KL and what rules add with them: 1 in LLaVA-RLHF's paper,
    10 in its code (`PPOTrainer._estimate_advantage`). Not where rewards are whitened."""
    whiten_rewards: bool = False
    """Whether shaped rewards are in their deviations over an iteration's tokens, their mean kept (PPO: an option)."""
    bias: float = 0.0
    """Added to every answer's reward (LLaVA-RLHF's `reward_bias`)."""
    correct: float = 0.0
    """What a right answer to a closed question adds, by the row's `caption_type` (LLaVA-RLHF: 2)."""
    length: float = 0.0
    """What an answer of `max_tokens` costs, shorter ones less, times the row's `length_bonus`; nothing where it has
    none (LLaVA-RLHF: 10)."""
    unended: float = 0.0
    """Added to the reward of an answer that did not end within `max_tokens` (LLaVA-RLHF: −8)."""
    unended_replaces: bool = False
    """Whether such an answer's reward is `unended` alone (an option of LLaVA-RLHF's code); rules add to it still."""

    def __post_init__(self) -> None:
        if self.advantage == "group" and self.group < 2:
            raise ConfigError(f"group is {self.group}; an answer is compared with the others of its prompt: at least 2")
        changed = [
            each.name for each in fields(self) if each.name in _OF_PPO and getattr(self, each.name) != each.default
        ]
        if self.advantage == "group" and changed:
            raise ConfigError(
                f"{changed[0]} is {getattr(self, changed[0])}, and nothing reads it where a group is compared; it is "
                "PPO's (advantage gae). GRPO's KL is in the loss: policy.kl"
            )
        if min(self.prompts, self.group, self.epochs, self.max_tokens) < 1 or self.temperature <= 0:
            raise ConfigError("prompts, group, epochs and max_tokens are at least 1, and temperature is over 0")
        if not 0 <= self.lam <= 1 or not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma is {self.gamma} and lam {self.lam}; they are from 0 to 1")
