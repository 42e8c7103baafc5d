"""Rows whose answers have scores or ratings of their own: BPO, VLFeedback, LVLM_NLF.

In `completions`, answers of the same words are one, with the mean of their scores: models agree, judges do not always.
An answer that is rated "N/A" is left out, as VLFeedback's own script does. Both are noted.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from quintet.answers import Answer
from quintet.data.sources.keys import unread
from quintet.data.sources.preference_rows import Path, Pictures, Row, Saying, Taking, Told, said
from quintet.data.sources.root import is_text
from quintet.errors import DataError
from quintet.values import Part, Text

__all__ = ["FEEDBACK", "PRAISE", "bpo", "condition", "lvlm_nlf", "vlfeedback"]

ASPECTS = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
"""Of an answer of VLFeedback; its score is the plain mean of their ratings, 1 to 5."""
FEEDBACK = "feedback"
"""The mark of the words that say how good the next answer is: what LVLM_NLF's answers are conditioned on."""
PRAISE = "All of it is there."
"""The critique of an answer that nothing is wrong with, where we write one."""


def condition(rating: float, critique: str) -> str:
    """The feedback on an answer as words behind its question: what DRESS' answers are learnt under and asked with.

    >>> condition(4, PRAISE)
    ' Rating 4. All of it is there.'
    """
    return f" Rating {rating:g}. {critique.strip()}".rstrip()


def vlfeedback(at: Taking) -> Told:
    """Four models' answers, each with ratings as text."""
    found: list[Saying] = []
    notes: list[str] = []
    for where, one in _completions(at, frozenset({"model", "response", "annotations"})):
        held = one.get("annotations")
        if not isinstance(held, dict):
            what = "has no `annotations`" if held is None else f"has annotations that are no object but {held!a:.40}"
            message = f"an answer {what}: ratings of {', '.join(ASPECTS)}; rate it or leave it out"
            at.faults.add("no-rating", message, field=f"{where}.annotations")
            continue
        ratings = [_rating(at, held, aspect, f"{where}.annotations") for aspect in ASPECTS]
        known = [rating for rating in ratings if rating is not None]
        if len(known) < len(ratings):
            notes.append("completions[] (unrated)")
        else:
            answer = Answer(sum(known) / len(known))
            found.append(said(one.get("response"), f"{where}.response", answer=answer))
    return _compared(at, found, notes)


def bpo(at: Taking) -> Told:
    """The true answer and altered ones; `type` says how each was made."""
    found: list[Saying] = []
    for where, one in _completions(at, frozenset({"score", "response", "type"})):
        score = at.number(one.get("score"), f"{where}.score", fault="bad-score")
        name = one.get("type") or ""
        if not isinstance(name, str):
            at.faults.add("wrong-type", f"`type` is text, not {type(name).__name__}", field=f"{where}.type")
            name = ""
        found.append(said(one.get("response"), f"{where}.response", answer=Answer(score, name=name)))
    return _compared(at, found, [])


def lvlm_nlf(at: Taking) -> Told:
    """One conversation: what the user asks and then advises, and answers that are rated and criticised."""
    shown = _coco(at.row.get("image_id"))
    sayings: list[Saying] = []
    for n, entry in enumerate(at.listed("interaction")):
        where = f"interaction[{n}]"
        if not isinstance(entry, dict):
            at.faults.add("wrong-type", f"an entry is an object, not {type(entry).__name__}", field=where)
            continue
        entry = {key: value for key, value in entry.items() if value is not None}
        unread(entry, at.faults, known=frozenset({"user", "model", "rating", "critique NLF"}), where=where)
        if "user" in entry:
            words = entry["user"] if sayings else shown.before(entry["user"])
            sayings.append(said(words, f"{where}.user", by="human"))
        if "model" in entry:
            score, words = _judged(at, entry, where)
            if sayings:
                sayings[-1] = replace(sayings[-1], marked=partial(_with, words=words))
            sayings.append(said(entry["model"], f"{where}.model", answer=Answer(score)))
        elif entry.keys() & {"rating", "critique NLF"}:
            at.faults.add("missing-key", "a judgement without the answer that it is of, `model`", field=where)
    if not any(saying.answer for saying in sayings):
        raise DataError("no-answer", "there is no answer of a model; nothing to learn", field="interaction")
    return Told((Path(tuple(sayings), shown),))


# ---- pieces ------------------------------------------------------------------------------------------------------
def _completions(at: Taking, known: frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each stands, and it; parquet may have the list of objects as an object of lists."""
    held = at.row["completions"]
    if isinstance(held, dict):
        lists = list(held.values())
        if not all(isinstance(each, list) for each in lists) or len({len(each) for each in lists}) != 1:
            raise DataError("wrong-type", "`completions` is an object; expected a list of them", field="completions")
        held = [dict(zip(held, values, strict=True)) for values in zip(*lists, strict=True)]
    for n, one in enumerate(replace(at, row={"completions": held}).listed("completions")):
        if isinstance(one, dict):
            unread(one, at.faults, known=known, where=f"completions[{n}]")
            yield f"completions[{n}]", one
        else:
            message = f"an answer is an object, not {type(one).__name__}"
            at.faults.add("wrong-type", message, field=f"completions[{n}]")


def _rating(at: Taking, held: Row, aspect: str, where: str) -> float | None:
    """1 to 5; None where there is said to be none."""
    note = held.get(aspect)
    value = note.get("Rating") if isinstance(note, dict) else None
    field = f"{where}.{aspect}.Rating"
    if isinstance(value, str) and value.strip().upper() == "N/A":
        return None
    if value is None:
        at.faults.add("no-rating", f"an answer has no rating of {aspect}; rate it or leave it out", field=field)
        return 0.0
    return at.number(value, field, fault="bad-rating", least=1, most=5)


def _compared(at: Taking, found: list[Saying], notes: list[str]) -> Told:
    """The answers without those of the same words, which differ in blanks at most."""
    shown = at.pictures()
    same: dict[Any, list[Saying]] = {}
    for n, one in enumerate(found):
        words = one.turn["value"]
        same.setdefault(" ".join(words.split()) if isinstance(words, str) else n, []).append(one)
    kept: list[Saying] = []
    for alike in same.values():
        scores = [one.answer.score or 0.0 for one in alike if one.answer]
        answer = replace(alike[0].answer or Answer(), score=sum(scores) / len(scores))
        kept.append(replace(alike[0], answer=answer))
        notes += ["completions[] (said twice)"] * (len(alike) > 1)
    if len(kept) < 2 <= len(found):
        raise DataError("same-answer", f"all {len(found)} answers are the same; nothing to prefer", field="completions")
    if len(kept) < 2:
        message = f"{len(kept)} answers with a rating or score; at least two are compared"
        raise DataError("no-preference", message, field="completions")
    asked = said(shown.before(at.row.get("prompt")), "prompt", by="human")
    return Told(tuple(Path((asked, one), shown) for one in kept), notes=tuple(dict.fromkeys(notes)))


def _coco(name: Any) -> Pictures:
    """A picture of COCO by its file's name, or by the number in it."""
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if isinstance(name, str) and name.isascii() and name.isdigit():
        name = f"{name:0>12}.jpg"
    return Pictures() if name is None else Pictures((name,), ("image_id",), "image_id")


def _judged(at: Taking, entry: Row, where: str) -> tuple[float, str]:
    """The rating of an answer, 1 to 4, and what is said of it, as a condition for it."""
    critique = entry.get("critique NLF", "")
    if not isinstance(critique, str) or not is_text(critique):
        at.faults.add("wrong-type", "a critique is text", field=f"{where}.critique NLF")
        critique = ""
    if "rating" not in entry:
        what = "a critique without a rating" if critique else "an answer without a rating"
        at.faults.add("no-rating", f"{what}; rate it 1 to 4 or leave it out", field=f"{where}.rating")
        return 0.0, ""
    rating = at.number(entry["rating"], f"{where}.rating", fault="bad-rating", least=1, most=4)
    return rating, condition(rating, critique)


def _with(parts: tuple[Part, ...], *, words: str) -> tuple[Part, ...]:
    return (*parts, Text(words, mark=FEEDBACK)) if words else parts
