"""Rows of a source on one page, with their pictures: `quintet data view --html`."""

import random
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from quintet.data.sources import Reading, Source
from quintet.lab.page import page, picture, write_page
from quintet.values import Media, Node, Text, Turn

__all__ = ["pick", "spoken", "standing", "words", "write_sheet"]

_MOST = 600
"""Characters of a row that are shown as they stand."""


def pick(source: Source, *, n: int, seed: int | None = None, row: int | None = None) -> list[int]:
    """Which rows to look at, from 0: the first n, n by lot with a seed, or n from a row (counted from 1) on."""
    if seed is not None:
        return sorted(random.Random(seed).sample(range(len(source)), min(n, len(source))))
    start = 0 if row is None else row - 1
    return list(range(start, min(start + n, len(source))))


def write_sheet(source: Source, indices: Sequence[int], out: Path) -> Path:
    """Writes the rows to `out`, faulty ones with their faults."""
    cards = "".join(_card(source, index) for index in indices)
    title = f"{source.name}: {len(indices):,} of {len(source):,} rows"
    return write_page(out, page(title, f"<h1>{escape(title)}</h1><div class=samples>{cards}</div>"))


def _card(source: Source, index: int) -> str:
    reading = source.read(index)
    media = [part for _, turn in spoken(reading) for part in turn.parts if isinstance(part, Media)]
    shown = "".join(picture(medium.ref).html() for medium in media if medium.ref.name)
    said = "".join(f"<p><b>{escape(by)}</b>{escape(words(turn))}</p>" for by, turn in spoken(reading))
    faults = "".join(
        f"<p class=verdict>✗ {escape(fault.fault)}: {escape(fault.message)}</p>" for fault in reading.faults
    )
    said += f"<p><code>{escape(standing(source, index, reading))}</code></p>" if reading.faults else ""
    name = f" · {reading.origin.id}" if reading.origin.id else ""
    return (
        f'<figure class="sample{" wrong" if reading.faults else ""}">{shown}<div class="said turns">'
        f"<div class=kind>row {reading.origin.row}{escape(name)}</div>{said}{faults}</div></figure>"
    )


def standing(source: Source, index: int, reading: Reading) -> str:
    """A faulty row as it stands in its file, where nobody says anything in what could be understood of it."""
    if not reading.faults or any(words(turn) for _, turn in spoken(reading)):
        return ""
    text = source.text(index)
    return text if len(text) <= _MOST else f"{text[:_MOST]} … ({len(text):,} characters)"


def spoken(reading: Reading) -> Iterator[tuple[str, Turn]]:
    """Every turn and who says it; with an answer that is compared go its score and its name."""
    for tree in (Node(reading.turns, reading.children), *reading.others):
        for node in tree.walk():
            for turn in node.turns:
                answer = node.answer if turn is node.turns[-1] else None
                score = f" {answer.score:g}" if answer and answer.score is not None else ""
                yield f"{turn.role}{score}{f' {answer.name}' if answer and answer.name else ''}", turn


def words(turn: Turn) -> str:
    """What a turn says, with its pictures by name and regions by their numbers."""
    said = ""
    for part in turn.parts:
        if isinstance(part, Text):
            said += part.text
        elif isinstance(part, Media):
            said += f"▣ {part.ref.name} "
        else:
            said += f"▢ {', '.join(f'{x:g}' for x in part.points)} "
    return said
