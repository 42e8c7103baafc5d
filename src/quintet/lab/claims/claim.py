"""What a claim is as an experiment: arms that differ in one thing, what is measured, and what is expected of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Arm", "Claim", "Expected"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to go on from the tuned model. Everything that is not said here is the same in all arms."""

    method: str = ""
    """Of `recipes/align`; empty: the tuned model as it is."""
    sets: tuple[str, ...] = ()
    """Settings that are other than the method's."""
    pairs: str = "truth"
    """Who makes the pairs (`quintet.lab.pairs`); one file for all arms and seeds that name it."""
    rows: int = 2_000
    asks: str = ""
    """What stands behind the question for a description when the arm is measured."""
    reward: "Arm | None" = None
    """What is made first, and says what answers are worth: a reward model."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One difference between two arms that the claim is about."""

    better: str
    than: str
    """Another arm; empty: it is held against 0."""
    measure: str
    """`scenes.chair`, or with a colon one of its measures: `scenes.chair:recall`; `text:perplexity`; `swap:picture` and
    `swap:crop`, how much less likely the truth gets with another picture; or `reward_won` of training; `pairs:right`,
    the share of its pairs whose chosen answer is the better one; `judge:accuracy` of the reward model's training;
    `rollouts:truth`, how rewards go with the truth."""
    lower: bool = False
    """Whether less is better."""
    apart: bool = True
    """Whether they must differ; False: the first must not be worse by more than `room`."""
    room: float = 0.0
    beyond: tuple[str, str] | None = None
    """Two more arms, of which the first must be ahead of the second by less."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the surveys (methods.md, section 4.3) with its arms."""

    id: str
    says: str
    source: str
    arms: Mapping[str, Arm]
    expects: tuple[Expected, ...]
    not_run: str
    """What of the experiment that methods.md describes is left out, so that nobody takes the verdict for more."""
    needs: Mapping[str, Expected] = field(default_factory=dict)
    """What must be so for the claim to be seen at all, under what is said where it is not so."""
    shows: tuple[str, ...] = ("scenes.chair", "scenes.vqa", "scenes.pope")
    """What every arm is asked: tasks of Scenes, `text:…` and `swap:…`."""
