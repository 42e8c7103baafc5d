"""What a builder of pairs works with: pictures with their truth, a model to sample from, a judge."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from quintet.data.scenes import DETAILED, Truth, read_truth
from quintet.errors import ConfigError
from quintet.evaluation.judge import Asked, Judge, TruthJudge
from quintet.model.generate import Sampling
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Ref, Sample, Text, Turn

__all__ = ["FRAMES", "Work"]

BATCH = 32
"""Prompts that are sampled from together."""

FRAMES = 3
"""Pictures of a sequence: of more, a model that was tuned on single ones says too little to be chosen (docs/log.md)."""

Shown = TypeVar("Shown", Truth, tuple[Truth, ...])
"""What a prompt shows: a picture, or a sequence of them."""


@dataclass(frozen=True)
class Work:
    """One building of pairs."""

    scenes: Path
    """A folder of Scenes; pairs are of its training pictures."""
    rows: int
    """At most so many rows."""
    seed: int = 0
    model: Callable[[], Engine] | None = None
    """The model whose answers are compared, loaded when it is first asked."""
    judge: Judge = field(default_factory=TruthJudge)
    progress: Callable[[int, int], None] = lambda done, total: None
    question: str = DETAILED[0]
    max_tokens: int = 96
    """An answer's, at most, for each picture: Scenes' longest descriptions take fewer. Papers allow 512 (RLAIF-V)."""
    frames: int = FRAMES
    """Pictures of a sequence, for pairs that stand for a video's (`proxy`)."""

    unheld: list[str] = field(default_factory=list)
    """Answers that no row can hold, so far (`plain`)."""

    @cached_property
    def truths(self) -> list[Truth]:
        """The training pictures, in the order of the file."""
        return read_truth(self.scenes / "train.truth.jsonl")

    @cached_property
    def engine(self) -> Engine:
        """The model.

        Raises:
            ConfigError: there is none, and the builder needs one.
        """
        if self.model is None:
            raise ConfigError("these pairs are made of a model's own answers; name its run with --from")
        return self.model()

    def asked(self, truth: Truth) -> Asked:
        """What a judge is told of a picture."""
        return Asked(self.question, Ref(self.name(truth), path=truth.image), truth.scene)

    def name(self, truth: Truth) -> str:
        """The picture as rows name it."""
        return truth.image.relative_to(self.scenes).as_posix()

    def row(self, truth: Truth, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
        """A pair as a row in RLAIF-V's layout."""
        picture = {"id": truth.image.stem, "image": self.name(truth)}
        return picture | {"question": self.question, "chosen": chosen, "rejected": rejected} | more

    def answers(
        self,
        truths: Sequence[Shown],
        count: int,
        *,
        temperature: float,
        change: Callable[[int], str] = lambda n: "",
        question: Callable[[int], str] | None = None,
    ) -> Iterator[tuple[Shown, list[str]]]:
        """`count` answers of the model to each prompt; `change` and `question` may differ by its number.

        A prompt shows one picture or a sequence; its answers share it: it is read once. Samples are drawn by the seed
        and the prompt's number.
        """
        for start in range(0, len(truths), BATCH):
            chosen = truths[start : start + BATCH]
            numbers = range(start, start + len(chosen))
            prompts = [
                self._prompt(shown, question(n) if question else self.question, change(n), count)
                for n, shown in zip(numbers, chosen, strict=True)
            ]
            longest = max(len(_sequence(shown)) for shown in chosen)
            sampling = Sampling(longest * self.max_tokens, temperature, seed=self.seed * 1_000_003 + start)
            for shown, answers in zip(chosen, self.engine.sampled(prompts, sampling=sampling), strict=True):
                yield shown, [self.plain(answer) for answer in answers]

    def plain(self, answer: str) -> str:
        """The answer, or nothing if a row cannot hold it: there special tokens are letters, or a picture's place."""
        if not any(token in answer for token in ("<image>", *self.engine.specials)):
            return answer
        self.unheld.append(answer)
        return ""

    def _prompt(self, shown: Truth | tuple[Truth, ...], question: str, change: str, count: int) -> Sample:
        pictures = (Media("image", Ref(self.name(each), path=each.image, change=change)) for each in _sequence(shown))
        turn = Turn("user", (*pictures, Text(question)))
        return Sample(Node((turn,), tuple(Node(()) for _ in range(count)) if count > 1 else ()))


def _sequence(shown: Truth | tuple[Truth, ...]) -> tuple[Truth, ...]:
    return shown if isinstance(shown, tuple) else (shown,)
