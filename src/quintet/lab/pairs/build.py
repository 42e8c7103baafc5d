"""The builders by name, and the file that one of them fills."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from quintet.errors import ConfigError, DataError, nearest
from quintet.evaluation.judge import Judge
from quintet.lab.pairs import known, own, prompts, worse
from quintet.lab.pairs.work import Work

__all__ = ["BUILDERS", "JUDGED", "build", "fill", "unheld", "unread"]

BUILDERS: Mapping[str, Callable[[Work], Iterator[dict[str, Any]]]] = {
    "truth": known.truth,
    "injected": known.injected,
    "phrases": known.phrases,
    "rated": own.rated,
    "proxy": own.proxy,
    "claims": own.by_claims,
    "corrected": own.corrected,
    "graded": own.graded,
    "feedback": own.feedback,
    "imagined": worse.imagined,
    "described": worse.described,
    "biased": worse.biased,
    "questions": prompts.questions,
    "descriptions": prompts.descriptions,
    "preferred": prompts.preferred,
}
"""`Data.pairs` → what makes the rows."""

JUDGED = ("rated", "proxy", "claims", "corrected", "graded", "feedback")
"""Those that ask a judge. `preferred` goes by the truth alone; the others compare nothing that could be judged."""


def build(name: str, work: Work, out: Path) -> int:
    """Writes the rows of a builder to a file of JSON lines, whole or not at all; how many there are.

    What its judge said that could not be read is counted in `work.judge.unread`.

    Raises:
        ConfigError: no such builder.
        DataError: no row came out.
    """
    if name not in BUILDERS:
        raise ConfigError(f"no pairs {name!r}{nearest(name, BUILDERS)}")
    return fill(BUILDERS[name](work), work, out)


def unread(judge: Judge, before: int = 0) -> str:
    """What is said of verdicts that could not be read since there were `before`; "" of none."""
    count = judge.unread - before
    if not count:
        return ""
    return f"; {count:,} replies of {judge.name} held no verdict, and what they were about was left out"


def unheld(work: Work) -> str:
    """What is said of answers that no row can hold; "" of none."""
    if not work.unheld:
        return ""
    return f"; {len(work.unheld):,} answers held special tokens, which rows of text cannot, and were left out"


def fill(rows: Iterator[dict[str, Any]], work: Work, out: Path) -> int:
    """Writes at most as many rows as the work has, whole or not at all; how many there are.

    Raises:
        DataError: there is none.
    """
    aside, count = out.with_name(f".{out.name}.{os.getpid()}"), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            for count, row in enumerate(islice(rows, work.rows), start=1):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                work.progress(count, work.rows)
    except BaseException:
        aside.unlink()
        raise
    if not count:
        aside.unlink()
        raise DataError(
            "no-rows",
            f"no pair could be made of {len(work.truths):,} pictures: of none is one answer better than another. A "
            "model that does not talk yet has no answers to compare; tune it longer, take pairs from the truth "
            "(`quintet data pairs truth`), or a file of yours (--data)" + unread(work.judge) + unheld(work),
        )
    aside.replace(out)
    return count
