"""Better answers once more, about a picture that was made worse: a second tree in the same row.

    ▣ what is here? ─┬─ best            ▣' what is here? ─┬─ best, named `unseen`
                     ├─ second                            └─ second, named `unseen`
                     └─ worst

Every answer that wins over another one has its words there, and `Answer.of` says whose they are. An objective that
compares the two teaches that the picture matters (mDPO, POVID). The change is drawn once a sample, so that policy and
reference see the same; mDPO's code draws it anew for each.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from quintet.answers import Answer
from quintet.config.base import Config
from quintet.errors import ConfigError
from quintet.values import Media, Node, Sample, Turn

__all__ = ["KEPT", "UNSEEN", "Contrast"]

UNSEEN = "unseen"
"""The name of the answer in the second tree."""
KEPT = "kept"
"""The name of an answer in another tree that shall stay as likely as it is (HALVA's KL)."""


@dataclass(frozen=True, kw_only=True)
class Contrast(Config):
    """How the picture of the second tree is made.

    `crop`: a part of `area` of it, drawn, blown up (mDPO, section 3.1). `noise`: diffusion at `step` (POVID, 500).
    """

    how: Literal["crop", "noise"] = "crop"
    area: tuple[float, float] = (0.01, 0.2)
    step: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area is {self.area}; it is a range of shares of the picture, over 0 and at most 1")

    def draw(self, sample: Sample, *, seed: tuple[int, ...]) -> Sample:
        """The sample with its second tree; without a picture or a winner that needs one it stays as it is."""
        if not any(isinstance(part, Media) for turn in sample.root.turns for part in turn.parts):
            return sample
        nodes = [node for root in (sample.root, *sample.others) for node in root.walk() if node.answer]
        told = [node.answer for node in nodes if node.answer]
        # A file may have brought other pictures of its own.
        there = {answer.of for answer in told if answer.name == UNSEEN}
        worst = min((answer.score for answer in told if answer.score is not None), default=None)
        again = tuple(
            Node(node.turns, answer=Answer(name=UNSEEN, of=at))
            for at, (node, answer) in enumerate(zip(nodes, told, strict=True))
            if answer.score is not None
            and answer.score != worst
            and at not in there
            # Answers elsewhere are about pictures of their own.
            and any(node is child for child in sample.root.children)
        )
        if not again:
            return sample
        random = np.random.default_rng((*seed, 2))
        turns = tuple(self._changed(turn, random) for turn in sample.root.turns)
        return replace(sample, others=(*sample.others, Node(turns, again)))

    def _changed(self, turn: Turn, random: np.random.Generator) -> Turn:
        # What stands for a medium in words was read off it as it was.
        parts = (
            replace(p, ref=replace(p.ref, change=self._text(random)), text=None) if isinstance(p, Media) else p
            for p in turn.parts
        )
        return replace(turn, parts=tuple(parts))

    def _text(self, random: np.random.Generator) -> str:
        if self.how == "noise":
            return f"noise {self.step} {int(random.integers(1 << 31))}"
        area, x, y = random.uniform(*self.area), random.random(), random.random()
        # Shapes as torchvision's RandomResizedCrop draws them.
        ratio = float(np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3))))
        return f"crop {area:.6f} {ratio:.6f} {x:.6f} {y:.6f}"
