"""A reward model: of two answers the better one gets the higher number, read off its last token.

Sources: Bradley–Terry as in Ouyang et al. 2022 (arXiv:2203.02155, section 3.5); what LLaVA-RLHF asks its reward model
and tells it (Sun et al. 2023, arXiv:2309.14525) is put behind the answers where rows are read (`quintet.lab.facts`).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from quintet.answers import Answers
from quintet.config.base import Config
from quintet.errors import ConfigError, DataError
from quintet.model.mllm import MLLM
from quintet.training.objectives import rewards
from quintet.training.objectives.lm import Notes
from quintet.values import Batch, Tokens

__all__ = ["Reward", "reward"]


@dataclass(frozen=True, kw_only=True)
class Reward(Config):
    """How a reward model learns."""

    margin: bool = False
    """Whether a pair's `margin`, where its answers have one, must be exceeded (Touvron et al. 2023)."""
    centering: float = 0.0
    """How much rewards are pulled to 0; 0.01 is common, LLaVA-RLHF has 0.001."""
    center: Literal["square", "mean"] = "square"
    """What is pulled: each pair's squared sum, or the size of the batch's mean sum (LLaVA-RLHF's code)."""

    asked: bool = False
    """Whether behind every answer its quality is asked for, by four criteria (LLaVA-RLHF)."""
    facts: bool = False
    """Whether every answer is read with the facts of its picture behind it, within that request if there is one
    (LLaVA-RLHF)."""

    def __post_init__(self) -> None:
        if self.centering < 0:
            raise ConfigError(f"centering is {self.centering}; it is 0 or more")

    def check(self, tokens: Tokens) -> None:
        """Looks whether a sample has what is learnt from, before anything is computed of it.

        Raises:
            DataError: no answer of it is better than another, or one has no `margin` where that counts.
        """
        answers = Answers.alone(tokens.answers, tokens.enter, tokens.exit)
        won, _ = answers.pairs()
        if not len(won):
            raise DataError("no-pair", "no answer is better than another one, and a reward model compares them")
        if self.margin:
            answers.numbers("margin", won)


def reward(model: MLLM, batch: Batch, how: Reward) -> tuple[Tensor, float, Notes]:
    """Sum over pairs, how many there are, and sums to report: rewards, margin, accuracy."""
    hidden = model(batch).hidden.flatten(0, 1)
    if batch.answers is None:
        return model.scores(hidden[:1]).sum() * 0.0, 0.0, {}
    scores = model.scores(hidden[batch.answers.last])
    won, lost = batch.answers.pairs()
    margin = batch.answers.numbers("margin", won) if how.margin else 0.0
    loss = rewards.preference_loss(
        scores[won], scores[lost], margin=margin, centering=how.centering, center=how.center
    ).sum()
    better, worse = scores[won].detach(), scores[lost].detach()
    notes = {"reward_won": better, "reward_lost": worse, "margin": better - worse, "accuracy": (better > worse).float()}
    return loss, float(len(won)), {name: value.sum() for name, value in notes.items()}
