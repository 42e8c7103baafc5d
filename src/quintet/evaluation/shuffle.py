"""The control that takes a model's eyes away: every item keeps its question and gets another item's media.

A score that survives it was never read off the picture.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from quintet.evaluation.task import Item
from quintet.values import Media, Ref

__all__ = ["shuffled"]


def shuffled(items: Sequence[Item], *, seed: int) -> dict[int, Item]:
    """Index → the item with another's media, for each item that has media and whose media are not everybody's.

    Media go round in one cycle through all distinct ones of a kind and number (one picture, two pictures, a video …),
    so no item keeps its own, and questions on one picture stay together on another. The cycle is drawn by `seed`
    from the media, not from the order of the items. Two names with equal bytes count as different media.
    """
    groups: dict[tuple[str, ...], dict[Hashable, tuple[Media, ...]]] = {}
    for item in items:
        if item.media:
            groups.setdefault(_kinds(item), {})[_key(item.media)] = item.media
    after: dict[tuple[str, ...], dict[Hashable, tuple[Media, ...]]] = {}
    for kinds, media in sorted(groups.items()):
        keys = sorted(media, key=repr)
        order = np.random.default_rng(seed).permutation(len(keys))
        after[kinds] = {keys[i]: media[keys[j]] for i, j in zip(order, np.roll(order, -1), strict=True)}
    return {
        i: item.showing(after[_kinds(item)][_key(item.media)])
        for i, item in enumerate(items)
        if item.media and len(after[_kinds(item)]) > 1
    }


def _kinds(item: Item) -> tuple[str, ...]:
    return tuple(medium.kind for medium in item.media)


def _key(media: tuple[Media, ...]) -> Hashable:
    return tuple(_place(medium.ref) for medium in media)


def _place(ref: Ref) -> Hashable:
    return (ref.name, str(ref.path), ref.offset, ref.length, ref.data)
