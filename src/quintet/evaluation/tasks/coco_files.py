"""CHAIR and Object HalBench: descriptions of COCO's pictures, whose objects are known from two sides.

The truth of a picture is what its instances file outlines and what its captions, written by people, name. COCO's own
files are read, all of a folder together: `instances_val2014.json` with `captions_val2014.json`, and those of train.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quintet.data.sources.root import Root
from quintet.data.sources.rows import parse, read_text
from quintet.errors import DataError
from quintet.evaluation.metrics.chair import Chair
from quintet.evaluation.metrics.coco import CLASSES, coco_mentions, coco_words
from quintet.evaluation.metrics.objhal import ObjectHal
from quintet.evaluation.task import Item, Task
from quintet.evaluation.tasks.row import Row, rows
from quintet.values import Media, Ref, Text

__all__ = ["CHAIR_PROMPT", "Coco", "chair_task", "objhal_task"]

CHAIR_PROMPT = "Describe this image in detail."

_KINDS = ("instances", "captions")
_NAMED = re.compile(r"\.(?:jpe?g|png|webp|bmp)$", re.IGNORECASE)


@dataclass(frozen=True)
class Coco:
    """The annotation files of one or more splits."""

    instances: tuple[Path, ...]
    captions: tuple[Path, ...]

    @staticmethod
    def at(data: Path) -> "Coco":
        """All files of a folder (or of `annotations` in it); of a file, it and the one of the other kind beside it.

        Raises:
            DataError: files of a kind are not there.
        """
        folder = data if data.is_dir() else data.parent
        folder = inner if (inner := folder / "annotations").is_dir() else folder
        end = "*.json" if data.is_dir() else re.sub(rf"^(?:{'|'.join(_KINDS)})", "", data.name)
        found = {kind: tuple(sorted(folder.glob(kind + end))) for kind in _KINDS}
        for kind, files in found.items():
            if not files:
                message = f"no {kind}{end} here; the truth is in COCO's instances and captions, both are needed"
                raise DataError("missing-file", message, file=str(folder))
        return Coco(found["instances"], found["captions"])


@dataclass(frozen=True)
class _Pictured:
    """A picture: its name, where it is listed, its captions, and the names of its objects."""

    name: str
    entry: Row
    captions: list[str] = field(default_factory=list)
    objects: set[str] = field(default_factory=set)

    def truth(self) -> dict[str, Any]:
        return {"objects": sorted(self.objects), "captions": self.captions}


@dataclass(frozen=True)
class _Entry(Row):
    """An element of one of the lists of a COCO file; faults name the list."""

    of: str = ""

    def fault(self, fault: str, message: str, *, field: str) -> DataError:
        return super().fault(fault, message, field=f"{self.of}[{self.number - 1}].{field}")


def chair_task(coco: Coco, *, images: Path, prompt: str = CHAIR_PROMPT) -> Task:
    """Descriptions of all pictures of the files; CHAIR-i with CHAIR-s, recall and length.

    The usual protocol asks about 500 pictures of val2014 with up to 512 new tokens: files of val, and a limit of 500.
    """
    return Task("chair", "1", Chair(coco_mentions), partial(_chair, coco, Root.at(images), prompt))


def objhal_task(file: Path, coco: Coco, *, images: Path) -> Task:
    """Object HalBench, JSON lines of `image_id, question, image`; the response rate of objects made up.

    `image` is the picture itself in base64, as published, or a name, also as `image_path`; without either the picture
    has the name that COCO's files give it. Any number of questions a picture are asked.
    """
    return Task("objhal", "1", ObjectHal(coco_words), partial(_objhal, file, coco, Root.at(images)))


def _chair(coco: Coco, root: Root, prompt: str) -> Iterator[Item]:
    for key, each in _pictured(coco).items():
        parts = each.entry.picture(root, "file_name"), Text(prompt)
        yield Item(f"{key:0>12}", parts, each.truth(), "all", each.entry.origin(key))


def _objhal(file: Path, coco: Coco, root: Root) -> Iterator[Item]:
    known = _pictured(coco)
    for row in rows(file):
        each = known.get(row.name("image_id").lstrip("0"))
        if each is None:
            message = f"picture {row.data['image_id']!a:.80} is not in {', '.join(p.name for p in coco.captions)}"
            raise row.fault("unequal-counts", message, field="image_id")
        question = row.text("question")
        key = f"{row.number:06d}"
        yield Item(key, (_picture(row, root, each), Text(question)), each.truth(), "all", row.origin(key))


def _picture(row: Row, root: Root, each: _Pictured) -> Media:
    if "image_path" in row.data:
        return row.picture(root, "image_path")
    if "image" not in row.data:
        return each.entry.picture(root, "file_name")
    value = row.text("image")
    if _NAMED.search(value) or value.startswith("data:"):
        return row.picture(root, "image")
    try:
        return Media("image", Ref(each.name, data=base64.b64decode(value, validate=True)))
    except (binascii.Error, ValueError):
        message = f"{value[:40]!a}… is neither the name of a picture nor one in base64"
        raise row.fault("bad-image", message, field="image") from None


# ---- COCO's files ------------------------------------------------------------------------------------------------
def _pictured(coco: Coco) -> dict[str, _Pictured]:
    """The pictures by id, in the files' order."""
    found: dict[str, _Pictured] = {}
    for file in coco.captions:
        data = _object(file)
        for entry in _entries(data, "images", file):
            key = entry.name("id")
            if key in found:
                raise entry.fault("duplicate-id", f"the id {key} is listed twice", field="id")
            found[key] = _Pictured(entry.text("file_name"), entry)
        for entry in _entries(data, "annotations", file):
            each = _of(entry, found)
            each.captions.append(entry.text("caption"))
            each.objects.update(coco_mentions(each.captions[-1]))
    for each in found.values():
        if not each.captions:
            message = f"picture {each.name!r} has no caption; delete it from `images` or caption it"
            raise each.entry.fault("missing-answer", message, field="id")
    outlined: set[str] = set()
    for file in coco.instances:
        data = _object(file)
        classes = dict(_classes(data, file))
        outlined.update(entry.name("id") for entry in _entries(data, "images", file))
        for entry in _entries(data, "annotations", file):
            name = classes.get(entry.name("category_id"))
            if name is None:
                message = f"there is no category {entry.data['category_id']!a:.80} in this file"
                raise entry.fault("missing-key", message, field="category_id")
            _of(entry, found).objects.add(name)
    for key, each in found.items():
        if key not in outlined:
            message = f"picture {each.name!r} is in no instances file; put those of its split beside its captions"
            raise each.entry.fault("unequal-counts", message, field="id")
    return found


def _of(entry: Row, found: dict[str, _Pictured]) -> _Pictured:
    if (each := found.get(entry.name("image_id"))) is None:
        message = f"picture {entry.data['image_id']!a:.80} is in `images` of no captions file"
        raise entry.fault("missing-key", message, field="image_id")
    return each


def _classes(data: dict[str, Any], file: Path) -> Iterator[tuple[str, str]]:
    for entry in _entries(data, "categories", file):
        if entry.text("name") not in CLASSES:
            message = (
                f"{entry.data['name']!a:.80} is none of COCO's {len(CLASSES)} objects, which mentions are read for"
            )
            raise entry.fault("unknown-class", message, field="name")
        yield entry.name("id"), entry.text("name")


def _object(file: Path) -> dict[str, Any]:
    try:
        data = parse(read_text(file)[0])
    except DataError as error:
        raise error.at(file=str(file)) from None
    if not isinstance(data, dict):
        raise DataError("wrong-type", f"expected an object, found {type(data).__name__}", file=str(file))
    return data


def _entries(data: dict[str, Any], key: str, file: Path) -> Iterator[_Entry]:
    entries = data.get(key)
    if not isinstance(entries, list):
        message = f"`{key}` must be a list; found {type(entries).__name__}"
        raise DataError("missing-key", message, file=str(file), field=key)
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            message = f"expected an object, found {type(entry).__name__}"
            raise DataError("wrong-type", message, file=str(file), row=number, field=f"{key}[{number - 1}]")
        yield _Entry(entry, file, number, key)
