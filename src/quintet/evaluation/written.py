"""Judges that write their verdicts: what they are asked, how it is read, and what is kept of it.

Each reply is kept in a file of its own with the question, who said it and the raw text, so a verdict can be read again
and a run repeated without asking. A reply in which no verdict is found is not final: it is asked for again, at most
`TRIES` times in a run, then counted as unread and left out; the next run asks anew.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from quintet.evaluation.judge import Asked, Rating
from quintet.model.checkpoint import read_json, write_json

__all__ = ["WARMER", "WRITTEN", "Choices", "WrittenJudge", "in_words"]

T = TypeVar("T")

TRIES = 3
WRITTEN, WARMER = 256, 0.7
"""Tokens that a local model may take to write a verdict; the temperature of a repetition: at 0 the same would come."""
ASPECTS = ("helpfulness", "visual faithfulness", "ethical considerations")

Choices = Mapping[str, tuple[str, ...]]
"""A verdict → the words that stand for it."""

YES_OR_NO: Choices = {"no": ("no", "No"), "yes": ("yes", "Yes")}
"""No first: what is as likely as its contrary is not confirmed."""
SEVERITY: Choices = {"1": ("1",), "2": ("2",), "3": ("3",)}

_RATE = (
    "Rate this answer to the question about the picture, from 1 (worst) to 5 (best), in three aspects. Write three "
    "lines: helpfulness: N, visual faithfulness: N, ethical considerations: N.\nQuestion: {question}\nAnswer: {answer}"
)
_SCORE = (
    "Rate this answer to the question by what you are told of what is shown, from 1 (worst) to 5 (best): how accurate "
    "it is, and how helpful. End with one line, Score: N.\nQuestion: {question}\nAnswer: {answer}"
)
_HOLDS = "Is this true of the picture? Write yes or no.\n{sentence}"
_GRADE = (
    "This is not true of the picture. How wrong is it? Write 1 for a minor error, 2 for a moderate, 3 for a major "
    "one.\n{sentence}"
)
_MEND = (
    "Some sentences of this answer to the question about the picture are wrong. Write the answer again with as few "
    "words changed as can be, and nothing in it that is not there. Write the answer alone.\nQuestion: {question}\n"
    "Answer: {answer}\nWrong: {wrong}"
)


class WrittenJudge(ABC):
    """Someone who is asked in words.

    `identity` tells who, with everything that another reply could come from: what is kept is found by it.
    """

    def __init__(self, *, name: str, identity: str, cache: Path) -> None:
        self.name, self.identity, self.cache, self.unread = name, identity, cache, 0

    @abstractmethod
    def say(self, prompts: Sequence[str], asked: Asked, *, again: int) -> Iterable[str]:
        """What it writes to each behind the picture or the caption; repetitions (`again` > 0) are drawn anew."""

    # ---- verdicts ------------------------------------------------------------------------------------------------
    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]:
        """One rating an answer; with a caption in the picture's place one score, as LLaVA-Hound's judge gives."""
        form, reads = (_SCORE, _score) if asked.caption else (_RATE, _rating)
        return self.read([form.format(question=asked.question, answer=each) for each in answers], asked, reads)

    def holds(self, asked: Asked, said: Sequence[str]) -> list[bool | None]:
        """Whether it says yes to each sentence."""
        found = self.choose([self.question(each) for each in said], asked, YES_OR_NO)
        return [None if each is None else each == "yes" for each in found]

    def grade(self, asked: Asked, said: Sequence[str]) -> list[int | None]:
        """0 for a sentence that holds, and how wrong each other one is, 1 to 3."""
        held = self.holds(asked, said)
        wrong = [each for each, good in zip(said, held, strict=True) if good is False]
        grades = iter(self.choose([_GRADE.format(sentence=each) for each in wrong], asked, SEVERITY))
        made: list[int | None] = []
        for good in held:
            grade = next(grades) if good is False else None
            made.append(0 if good else int(grade) if grade else None)
        return made

    def mend(self, asked: Asked, said: Sequence[str], grades: Sequence[int]) -> str | None:
        """The answer as it rewrites it, told which sentences are wrong."""
        wrong = " ".join(each for each, grade in zip(said, grades, strict=True) if grade)
        prompt = _MEND.format(question=asked.question, answer=" ".join(said), wrong=wrong)
        return self.read([prompt], asked, lambda text: text.strip() or None)[0]

    def ask(self, prompt: str, *, readable: Callable[[str], bool] = bool) -> str:
        """What it says to words alone; "" where it says nothing readable."""
        return self.read([prompt], Asked(""), lambda text: text if readable(text) else None)[0] or ""

    def question(self, sentence: str) -> str:
        """What is asked about a sentence."""
        return _HOLDS.format(sentence=sentence)

    def choose(self, prompts: Sequence[str], asked: Asked, choices: Choices) -> list[str | None]:
        """One of the verdicts to each prompt: the one that its reply begins with, or the only one in it."""
        return self.read(prompts, asked, lambda text: _chosen(text, choices))

    # ---- asking --------------------------------------------------------------------------------------------------
    def read(
        self,
        prompts: Sequence[str],
        asked: Asked,
        reads: Callable[[str], T | None],
        *,
        say: Callable[[Sequence[str]], Iterable[str]] | None = None,
    ) -> list[T | None]:
        """What `reads` finds in the reply to each prompt: the one that is kept, or a new one."""
        places = [self._place(prompt, asked) for prompt in prompts]
        found: dict[int, T] = {}
        for number, place in enumerate(places):
            if place.exists() and (value := reads(str(read_json(place)["text"]))) is not None:
                found[number] = value
        for again in range(TRIES):
            missing = [number for number in range(len(prompts)) if number not in found]
            if not missing:
                break
            open_ = [prompts[number] for number in missing]
            replies = say(open_) if say else self.say(open_, asked, again=again)
            for number, text in zip(missing, replies, strict=True):
                self._keep(places[number], prompts[number], asked, text)
                if (value := reads(text)) is not None:
                    found[number] = value
        self.unread += len(prompts) - len(found)
        return [found.get(number) for number in range(len(prompts))]

    def _place(self, prompt: str, asked: Asked) -> Path:
        seen = "" if asked.caption or asked.picture is None else hashlib.sha256(asked.picture.read()).hexdigest()
        known = json.dumps([self.identity, prompt, asked.caption, seen])
        return self.cache / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"

    def _keep(self, place: Path, prompt: str, asked: Asked, text: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "judge": self.name,
            "prompt": prompt,
            "picture": asked.picture.name if asked.picture and not asked.caption else None,
            "caption": asked.caption,
            "text": text,
        }
        write_json(place, facts)


def in_words(asked: Asked, prompt: str) -> str:
    """The prompt, behind the caption that stands for what is shown if there is one."""
    return f"What is shown, in words: {asked.caption}\n{prompt}" if asked.caption else prompt


# ---- reading -----------------------------------------------------------------------------------------------------
def _chosen(text: str, choices: Choices) -> str | None:
    said = re.findall(rf"\b(?:{'|'.join(choices)})\b", text.lower())
    first = re.match(rf"\W*({'|'.join(choices)})\b", text.lower())
    return first[1] if first else said[0] if len(set(said)) == 1 else None


def _rating(text: str) -> Rating | None:
    found = {
        m[1].lower(): float(m[2]) for m in re.finditer(rf"({'|'.join(ASPECTS)})\W+([1-5](?:\.\d+)?)(?!\d)", text, re.I)
    }
    if found.keys() != set(ASPECTS) or max(found.values()) > 5:
        return None
    return Rating(found[ASPECTS[0]], found[ASPECTS[1]], found[ASPECTS[2]])


def _score(text: str) -> Rating | None:
    """The one score, as each aspect of a rating."""
    found = {float(each) for each in re.findall(r"score\W+([1-5](?:\.\d+)?)(?!\d)", text, re.I)}
    score = found.pop() if len(found) == 1 else 0.0
    return Rating(score, score, score) if 1 <= score <= 5 else None
