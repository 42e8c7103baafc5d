"""A user's own conversations as a test: every answer in them is a question's truth.

Each question is asked by itself, after the pictures that came before it in its conversation; earlier words are not
repeated. So a question that leans on an earlier answer ("and the other one?") is not fairly asked here.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from quintet.data.sources.base import Source
from quintet.evaluation.metrics.exact import ExactMatch
from quintet.evaluation.task import Item, Task
from quintet.values import Media, Node, Part, Text, Turn

__all__ = ["conversations_task"]


def conversations_task(source: Source, *, name: str = "vqa") -> Task:
    """The questions of a source (any format that can be trained on) with exact match; kinds are 'first' and 'later'.

    Raises, when items are read:
        DataError: a row has a fault; `quintet data check` lists all of them.
    """
    return Task(name, "1", ExactMatch(), partial(_items, source))


def _items(source: Source) -> Iterator[Item]:
    for index in range(len(source)):
        sample = source.sample(index)
        for asked, item in enumerate(_path(sample.root, (), ""), start=1):
            kind = "first" if asked == 1 else "later"
            yield replace(item, id=f"{index:09d}/{asked:04d}", kind=kind, origin=sample.origin)


def _path(node: Node, seen: tuple[Media, ...], system: str) -> Iterator[Item]:
    """Questions of a node and what is below it, depth first; `seen` are the media shown above it."""
    said: tuple[Part, ...] = ()
    for turn in node.turns:
        if turn.role == "system":
            system = _words(turn)
        elif turn.role == "user":
            said += turn.parts
        elif turn.role == "assistant":  # a document asks nothing
            if turn.weight > 0:  # an answer that is not learnt is context, and no truth
                yield Item("", (*seen, *said), _words(turn), system=system)
            seen, said = seen + _media(said), ()
    for child in node.children:
        # What was said and not answered here belongs to every branch's first question.
        branch = Node((Turn("user", said), *child.turns), child.children) if said else child
        yield from _path(branch, seen, system)


def _media(parts: tuple[Part, ...]) -> tuple[Media, ...]:
    return tuple(part for part in parts if isinstance(part, Media))


def _words(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text)).strip()
