"""A comparison read against another of its recipes: all pairs were judged, so nothing is run again."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from quintet.errors import ConfigError, nearest
from quintet.lab.differs import ABSENT, differing

__all__ = ["against"]

Differs = Mapping[str, Any]
"""Path of a setting → its values in the baseline and in the recipe."""


def against(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The content of `compare.json` with the recipe `name` as its baseline.

    Paired differences are there for every pair; what differs in settings is put together from what differs from the
    old baseline.

    Raises:
        ConfigError: it has no such recipe.
    """
    rows = {row["recipe"]: row for row in found["rows"]}
    if name not in rows:
        raise ConfigError(f"no {name!r} in this comparison{nearest(name, rows)}")
    base = rows[name]["differs"]
    new = [row | {"differs": _between(base, row["differs"])} for row in found["rows"]]
    return dict(found) | {"baseline": name, "rows": new}


def _between(one: Differs, two: Differs) -> dict[str, list[Any]]:
    """What differs between two recipes, from what differs between a third and each of them."""
    made: dict[str, list[Any]] = {}
    for path in _outermost(one, two):
        third = (one if path in one else two)[path][0]
        pairs = differing(_value(one, path, third), _value(two, path, third), path)
        made |= {at: list(pair) for at, pair in pairs.items()}
    return made


def _outermost(one: Differs, two: Differs) -> Iterator[str]:
    """Paths that lie in no other's value."""
    third = {path: pair[0] for path, pair in {**one, **two}.items()}
    for path, value in third.items():
        steps = path.split(".")
        outer = [at for depth in range(1, len(steps)) if (at := ".".join(steps[:depth])) in third]
        if not any(_steps(third[at], path[len(at) + 1 :], new=value == ABSENT) for at in outer):
            yield path


def _value(differs: Differs, path: str, third: Any) -> Any:
    """What a recipe has at a path, where the third has `third`."""
    if path in differs:
        return differs[path][1]
    value = copy.deepcopy(third)
    gone: list[list[Any]] = []
    for at, (was, own) in differs.items():
        steps = _steps(third, at[len(path) + 1 :], new=was == ABSENT) if at.startswith(f"{path}.") else []
        if not steps:
            continue
        if own == ABSENT:
            gone.append(steps)
        elif isinstance(inside := _at(value, steps[:-1]), list) and was == ABSENT:
            inside.append(own)
        else:
            inside[steps[-1]] = own
    for *way, last in reversed(gone):  # from the end: a list's later members are where they were
        del _at(value, way)[last]
    return value


def _steps(value: Any, path: str, *, new: bool) -> list[Any]:
    """The keys on the way to a place in a value, none if it has no such place; a `new` one is not there yet.

    Keys may hold dots themselves: `connectors.image` is beside `connectors` among the parts that a stage trains, not
    in it.

    >>> _steps({"train": {"connectors.image": {"lr": [1.0]}}}, "train.connectors.image.lr.0", new=False)
    ['train', 'connectors.image', 'lr', 0]
    """
    head, _, rest = path.partition(".")
    if isinstance(value, list):
        here = [(int(head), rest)] if head.isdigit() and int(head) < len(value) else []
        last = int(head) if head.isdigit() and not rest else None
    elif isinstance(value, dict):
        here = [(key, path[len(key) + 1 :]) for key in value if path == key or path.startswith(f"{key}.")]
        last = None if "type" in value else path  # a config has the keys that it has
    else:
        return []
    for key, rest in here:
        if not rest:
            return [key]
        if deeper := _steps(value[key], rest, new=new):
            return [key, *deeper]
    return [last] if new and last is not None else []


def _at(value: Any, way: list[Any]) -> Any:
    for step in way:
        value = value[step]
    return value
