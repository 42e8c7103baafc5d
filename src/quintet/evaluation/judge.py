"""Who says how good an answer is: the role that GPT-4V has in the papers. Never a paid service unless one is named.

| judge | what it goes by |
|---|---|
| `truth` | the exact truth of Scenes, or what a caption of Scenes says, claim by claim |
| a run's folder | any model of ours, asked about each sentence (`quintet.lab.judges`) |
| a folder of transformers | any model that its classes load (`quintet.evaluation.published`) |
| a URL | any endpoint that speaks OpenAI's protocol (`quintet.evaluation.endpoint`) |

`rate` gives what VLFeedback's annotators gave, `holds` what RLAIF-V's labeler gave, `grade` and `mend` what HSA-DPO's
detector and rewriter gave. What the last three say is kept and recorded (`quintet.evaluation.written`). Where a reply
cannot be read the verdict is None: whoever asked leaves that answer out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quintet.data.scenes.claims import Claim, claims, mended, truths, untrue
from quintet.data.scenes.world import Scene
from quintet.errors import DataError
from quintet.values import Ref

__all__ = ["Asked", "Judge", "Rating", "TruthJudge", "rated", "sentences"]

_BETWEEN = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Asked:
    """What was asked, and what is known of the picture."""

    question: str
    picture: Ref | None = None
    scene: Scene | None = None
    """The whole truth, where there is one."""
    caption: str = ""
    """A description that stands for the picture (LLaVA-Hound): a judge goes by it alone."""


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


def rated(asked: Asked, helpfulness: float, faithfulness: float) -> Rating:
    """What a count gives: two aspects; of who reads a caption one score, as LLaVA-Hound's judge gives: their mean."""
    score = (helpfulness + faithfulness) / 2
    return Rating(score, score, score) if asked.caption else Rating(helpfulness, faithfulness)


class Judge(Protocol):
    """Rates answers, and says of their sentences whether they hold; None where its reply could not be read."""

    name: str
    unread: int
    """Verdicts that could not be read, so far."""

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]: ...
    def holds(self, asked: Asked, said: Sequence[str]) -> list[bool | None]: ...
    def grade(self, asked: Asked, said: Sequence[str]) -> list[int | None]: ...
    def mend(self, asked: Asked, said: Sequence[str], grades: Sequence[int]) -> str | None: ...


def sentences(text: str) -> list[str]:
    """The sentences of an answer: what is asked about one by one. A sentence of Scenes makes one claim.

    >>> sentences("There is a red star. What a day! ")
    ['There is a red star.', 'What a day!']
    """
    return [each for each in _BETWEEN.split(text.strip()) if each]


class TruthJudge:
    """Exact, on Scenes. Helpfulness is the share of what is there that is named, faithfulness that of true claims.

    Given a caption it goes by that alone: what the caption leaves out is not there for it.
    """

    name = "truth"
    unread = 0

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]:
        """One rating an answer, exact to the fraction: 1 + 4 · share.

        Raises:
            DataError: no truth is known of the picture.
        """
        known = _known(asked)
        named = {(each.kind, each.what) for each in known}
        made: list[Rating | None] = []
        for answer in answers:
            said = claims(answer)
            wrong = sum(untrue(each, known) for each in said) / (3 * len(said)) if said else 0.0
            found = len(named & {(each.kind, each.what) for each in said}) / len(named) if named else 1.0
            made.append(rated(asked, 1 + 4 * found, 5 - 4 * wrong))
        return made

    def holds(self, asked: Asked, said: Sequence[str]) -> list[bool | None]:
        """Whether each sentence is true; one that claims nothing is not refused."""
        return [grade == 0 for grade in self.grade(asked, said)]

    def grade(self, asked: Asked, said: Sequence[str]) -> list[int | None]:
        """How wrong each sentence is, 0 to 3."""
        known = _known(asked)
        return [max((untrue(claim, known) for claim in claims(each)), default=0) for each in said]

    def mend(self, asked: Asked, said: Sequence[str], grades: Sequence[int]) -> str | None:
        """The answer with what is wrong corrected or struck out.

        Raises:
            DataError: the scene is not known; a caption says too little to correct by.
        """
        if asked.scene is None:
            raise DataError("no-truth", _NO_TRUTH)
        return mended(" ".join(said), asked.scene)


_NO_TRUTH = "no truth is known of this picture; name another judge with --judge"


def _known(asked: Asked) -> list[Claim]:
    if asked.caption:
        return claims(asked.caption)
    if asked.scene is None:
        raise DataError("no-truth", _NO_TRUTH)
    return truths(asked.scene)
