"""The builders by name, and the file that one of them fills."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from quintet.errors import ConfigError, DataError, nearest
from quintet.lab.pairs import known, own, prompts, worse
from quintet.lab.pairs.work import Work

__all__ = ["BUILDERS", "JUDGED", "build", "fill"]

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


JUDGED = ("rated", "proxy", "claims")
"""Those that ask a judge."""


def build(name: str, work: Work, out: Path) -> int:
    """Writes the rows of a builder to a file of JSON lines, whole or not at all; how many there are.

    Raises:
        ConfigError: no such builder.
        DataError: no row came out.
    """
    if name not in BUILDERS:
        raise ConfigError(f"no pairs {name!r}{nearest(name, BUILDERS)}")
    return fill(BUILDERS[name](work), work, out)


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
            "(`quintet data pairs truth`), or a file of yours (--data)",
        )
    aside.replace(out)
    return count
