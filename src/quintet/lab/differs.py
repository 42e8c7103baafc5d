"""What differs between two configs, setting by setting."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from quintet.recipes._recipe import Recipe

__all__ = ["ABSENT", "differing", "recipe_differs", "said"]

ABSENT = "absent"


def differing(one: Any, two: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Path → the two values, where two pieces of JSON differ.

    Configs of different classes differ as wholes: their settings mean different things. A list's members are compared
    place by place; what only one side has is `absent` on the other.

    >>> differing({"a": 1, "b": [1, 2]}, {"a": 2, "b": [1]})
    {'a': (1, 2), 'b.1': (2, 'absent')}
    """
    return dict(_walk(one, two, path))


def recipe_differs(one: Recipe, two: Recipe) -> dict[str, tuple[Any, Any]]:
    """What differs between two recipes besides their papers and the names of their stages and published data."""
    return differing(_facts(one), _facts(two))


def said(differences: Mapping[str, Any]) -> list[str]:
    """The differences in words, one each: `model.fusion: TokenFusion → CrossAttention`."""
    return [f"{path}: {_short(one)} → {_short(two)}" for path, (one, two) in differences.items()]


def _facts(recipe: Recipe) -> dict[str, Any]:
    data = recipe.to_json()
    for stage, has in zip(data["stages"], recipe.stages, strict=True):
        del stage["name"]
        stage["data"] = stage["data"]["kind"]
        # The tokens of a region format are those of the template too: all of them in one place.
        stage["template"]["added"] = list(has.template.added_tokens)
        stage["template"]["regions"].pop("added", None)
    return {"model": data["model"], "stages": data["stages"]}


def _walk(one: Any, two: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(one, list) and isinstance(two, list):
        one, two = dict(enumerate(one)), dict(enumerate(two))
    if isinstance(one, dict) and isinstance(two, dict) and one.get("type") == two.get("type"):
        for key in dict.fromkeys((*one, *two)):
            at = f"{path}.{key}" if path else str(key)
            yield from _walk(one.get(key, ABSENT), two.get(key, ABSENT), at)
    elif one != two:
        yield path, (one, two)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        # A config by its class, `quintet.components.connectors.mlp:Mlp.Config` as Mlp.
        kind = str(value.get("type", "")).rpartition(":")[2].split(".")[0]
        return kind or "{" + ", ".join(map(str, value)) + "}"
    # Texts whose spaces matter in quotes, the rest as it is.
    if isinstance(value, float):
        return f"{value:.6g}"  # 0.005, of which a scale's factors have made 0.004999999999999999
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) and value != value.strip() else str(value)
    text = text or '""'
    return text if len(text) <= 32 else f"{text[:31]}…"
