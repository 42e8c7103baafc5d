"""Who says how good an answer is: the role that GPT-4V has in the papers. Never a paid service unless one is named.

| judge | what it goes by |
|---|---|
| `truth` | the exact truth of Scenes, claim by claim |
| a run's folder | any model of ours, asked about each claim |
| a URL | any endpoint that speaks OpenAI's protocol (`quintet.evaluation.endpoint`); answers are kept and recorded |

`rate` gives what VLFeedback's annotators gave, `holds` what RLAIF-V's labeler gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quintet.data.scenes.claims import Claim, claims, severity, truths
from quintet.data.scenes.world import Scene
from quintet.errors import DataError
from quintet.values import Ref

__all__ = ["Asked", "Judge", "Rating", "TruthJudge"]


@dataclass(frozen=True)
class Asked:
    """What was asked, and what is known of the picture."""

    question: str
    picture: Ref | None = None
    scene: Scene | None = None
    """The whole truth, where there is one."""
    caption: str = ""
    """A description that stands for the picture (LLaVA-Hound)."""


@dataclass(frozen=True)
class Rating:
    """1 to 5 in each of VLFeedback's aspects."""

    helpfulness: float
    faithfulness: float
    ethics: float = 5.0

    @property
    def mean(self) -> float:
        """What answers are compared by."""
        return (self.helpfulness + self.faithfulness + self.ethics) / 3


class Judge(Protocol):
    """Rates answers, and says of claims whether they hold."""

    name: str

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating]: ...
    def holds(self, asked: Asked, said: Sequence[Claim]) -> list[bool]: ...


class TruthJudge:
    """Exact, on Scenes. Helpfulness is the share of what is there that is named, faithfulness that of true claims."""

    name = "truth"

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating]:
        """One rating an answer, exact to the fraction: 1 + 4 · share.

        Raises:
            DataError: no truth is known of the picture.
        """
        scene = _scene(asked)
        named = {(each.kind, each.what) for each in truths(scene)}
        made: list[Rating] = []
        for answer in answers:
            said = claims(answer)
            wrong = sum(severity(each, scene) for each in said) / (3 * len(said)) if said else 0.0
            found = len(named & {(each.kind, each.what) for each in said}) / len(named) if named else 1.0
            made.append(Rating(1 + 4 * found, 5 - 4 * wrong))
        return made

    def holds(self, asked: Asked, said: Sequence[Claim]) -> list[bool]:
        """Whether each claim is true."""
        scene = _scene(asked)
        return [severity(each, scene) == 0 for each in said]


def _scene(asked: Asked) -> Scene:
    if asked.scene is None:
        raise DataError("no-truth", "no truth is known of this picture; name another judge with --judge")
    return asked.scene
