"""Finding captions by pictures and pictures by captions, among those that are asked together.

An item is a query and a candidate, in this order: (picture, caption) asks for captions, (caption, picture) for
pictures. What is found is named: a caption by its words, so equal captions are one candidate; a picture by the place
where it stands, the id of its item's origin. With the media shuffled, places hold other pictures and every right name
is wrong but by chance.

The number of candidates is the number of pictures that are asked about: with a limit there are fewer, and it is easier.
"""

import random
from collections import defaultdict
from pathlib import Path

from quintet.data.scenes import Scene, caption, read_truth
from quintet.errors import DataError
from quintet.evaluation.metrics.recall import DIRECTIONS
from quintet.evaluation.task import Item
from quintet.values import Media, Origin, Ref, Text

__all__ = ["retrieval_items", "said_of"]


def said_of(scene: Scene, seed: str) -> tuple[str, tuple[str, ...]]:
    """A long caption of the scene, and what it says: its sentences in an order of their own."""
    text = caption(scene, random.Random(f"{seed}/retrieval"), "long")
    return text, tuple(sorted(text.removesuffix(".").split(". ")))


def retrieval_items(folder: Path, split: str) -> list[Item]:
    """Two items a picture of Scenes.

    A caption is right for every picture of which the same is said: the same sentences in any order. One that is true
    but says less, or more, is of another picture.
    """
    path = folder / f"{split}.truth.jsonl"
    if not path.is_file():
        message = f"no Scenes of split {split!r} here; make them with `quintet data make scenes --out {folder}`"
        raise DataError("missing-file", message, file=str(path))
    truths = list(read_truth(path))
    said = [said_of(truth.scene, truth.image.stem) for truth in truths]
    captions: dict[tuple[str, ...], list[str]] = defaultdict(list)
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for truth, (text, key) in zip(truths, said, strict=True):
        places[key].append(truth.image.stem)
        if text not in captions[key]:
            captions[key].append(text)
    items: list[Item] = []
    for row, (truth, (text, key)) in enumerate(zip(truths, said, strict=True), start=1):
        stem = truth.image.stem
        shown = Media("image", Ref(truth.image.relative_to(folder).as_posix(), path=truth.image))
        parts = ((shown, Text(text)), (Text(text), shown))
        for direction, pair, right in zip(DIRECTIONS, parts, (captions[key], places[key]), strict=True):
            known = {"direction": direction, "right": right}
            items.append(Item(f"{stem}/{direction}", pair, known, direction, Origin(str(path), row, stem)))
    return items
