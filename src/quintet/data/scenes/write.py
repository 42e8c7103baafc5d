"""Scenes on disk, in the formats of the field, and their truth beside them.

    OUT/scenes.json                  the world, the seed, versions and counts
    OUT/images/<split>/<hash>.png    named by their pixels: no picture is in two splits, or twice in one
    OUT/<split>.json                 LLaVA conversations; <split>_captions.json: one caption each, to align a connector;
                                     <split>_regions.json: questions that point, and questions where things are;
                                     <split>_ocr.json: questions about what is written, of the pictures that have it;
                                     <split>_text.json: scenes told in words, and the questions: no picture;
                                     <split>_fewshot.json: solved examples, then the question (`pages.py`)
    OUT/<split>_interleaved.jsonl    documents of several pictures in MMC4's layout
    OUT/<split>.truth.jsonl          one `Truth` a line, always written: what an evaluation asks, and the right answers
    OUT/webdataset/<split>/00000.tar key.png, key.txt and key.json, as img2dataset writes them

Everything is written beside OUT and renamed at the end: OUT is whole or not there. Equal arguments give equal bytes.
"""

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from quintet.data.scenes.conversations import conversation, pointing, pretrain, reading, told
from quintet.data.scenes.pages import Shown, contexts, documents
from quintet.data.scenes.pope import Occurrences, pope
from quintet.data.scenes.questions import Question, grounding, questions, referring
from quintet.data.scenes.render import render
from quintet.data.scenes.vocabulary import SPLITS
from quintet.data.scenes.world import Scene, World, sample_scene
from quintet.errors import ConfigError, DataError, nearest

__all__ = ["LAYOUT", "Format", "Truth", "make_scenes", "read_truth", "split_sizes"]

Format = Literal["llava", "webdataset", "both"]

LAYOUT = 5
"""Raised whenever equal arguments would no longer give equal files."""

_SHARD = 1000
_FEWEST = 50
_WORLD = World()
_AS_SIZED: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Truth:
    """One picture of an evaluation: what is in it, and what to ask."""

    image: Path
    scene: Scene
    questions: list[Question]
    grounding: list[Question]
    referring: list[Question]
    pope: dict[str, list[Question]]
    """By rule: `random`, `popular`, `adversarial`."""


@dataclass(frozen=True, slots=True)
class _Made:
    """One picture with what is said about it, on its way from a worker to the files."""

    name: str
    png: bytes
    scene: Scene
    turns: list[Question]
    caption: tuple[str, str]
    questions: list[Question]
    grounding: list[Question]
    referring: list[Question]
    pointing: list[Question]


def make_scenes(
    out: Path,
    n: int,
    seed: int,
    world: World = _WORLD,
    splits: Mapping[str, int] = _AS_SIZED,
    format: Format = "llava",
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Path:
    """Writes `n` pictures to train on and a tenth of it, at least 50, for each of val and test; returns `out`.

    `splits` overrides the size of any split. `out` must not exist or be empty. `progress` gets the pictures done and
    the pictures in all. With `workers` over 1 pictures are made in processes; the files are the same.
    """
    sizes = split_sizes(n) | dict(splits)
    _check(out, sizes, format)
    out = Path(os.path.abspath(out))
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            each = map
            if workers > 1:
                pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
                each = partial(pool.map, chunksize=32)
            _write_all(part, sizes, seed, world, format=format, progress=progress, each=each)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def split_sizes(n: int) -> dict[str, int]:
    """Pictures per split when `n` are to train on.

    >>> split_sizes(6000)
    {'train': 6000, 'val': 600, 'test': 600}
    """
    return {"train": n, "val": max(n // 10, _FEWEST), "test": max(n // 10, _FEWEST)}


def read_truth(path: Path) -> list[Truth]:
    """The lines of a `<split>.truth.jsonl`; image paths are complete.

    Raises:
        DataError: no such file, or a line that cannot be read.
    """
    if not Path(path).is_file():
        raise DataError(
            "missing-file",
            f"{Path(path).parent} holds no {Path(path).name}, so it is no folder of Scenes; `quintet data make scenes "
            "--out FOLDER` makes one",
        )
    return list(_read_truth(Path(path)))


def _read_truth(path: Path) -> Iterator[Truth]:
    with path.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines, start=1):
            try:
                data = json.loads(line)
                yield Truth(
                    image=path.parent / data["image"],
                    scene=Scene.from_json(data["scene"]),
                    questions=[_question(each) for each in data["questions"]],
                    grounding=[_question(each) for each in data["grounding"]],
                    referring=[_question(each) for each in data["referring"]],
                    pope={rule: [_question(each) for each in asked] for rule, asked in data["pope"].items()},
                )
            except (ValueError, KeyError, TypeError) as fault:
                message = f"not a line of Scenes' truth ({fault!r}); make the data again"
                raise DataError("not-truth", message, file=str(path), row=row) from fault


def _question(data: dict[str, Any]) -> Question:
    regions = tuple(map(tuple, data["regions"]))
    return Question(data["kind"], data["text"], data["answer"], tuple(data["about"]), regions)


def _check(out: Path, sizes: Mapping[str, int], format: str) -> None:
    for split, size in sizes.items():
        if split not in SPLITS:
            raise ConfigError(f"no split {split!r}{nearest(split, SPLITS)}")
        if size < 0:
            raise ConfigError(f"split {split!r} has {size} pictures; use 0 or more")
    if format not in (known := ("llava", "webdataset", "both")):
        raise ConfigError(f"no format {format!r}{nearest(format, known)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and not an empty folder; name another one")


def _write_all(
    root: Path,
    sizes: Mapping[str, int],
    seed: int,
    world: World,
    *,
    format: Format,
    progress: Callable[[int, int], None] | None,
    each: Callable[..., Iterator[_Made]],
) -> None:
    """Every split, one after the other; a picture of an earlier split is not taken again."""
    taken: set[str] = set()
    examples: list[Shown] = []
    for split in SPLITS:
        kept: list[_Made] = []
        (root / "images" / split).mkdir(parents=True)
        for made in _distinct(sizes[split], partial(_make, world, seed, split), taken, each):
            (root / _image(split, made.name)).write_bytes(made.png)
            kept.append(replace(made, png=b""))  # a million pictures are files, but not a list
            if progress:
                progress(len(taken), sum(sizes.values()))
        if format != "llava":
            _write_shards(root, split, kept)
        if format != "webdataset":
            _write_json(root / f"{split}.json", [_llava(split, made, made.turns) for made in kept])
            captions = [_llava(split, made, [Question("caption", *made.caption)]) for made in kept]
            _write_json(root / f"{split}_captions.json", captions)
            pointing = [_llava(split, made, made.pointing) for made in kept if made.pointing]
            _write_json(root / f"{split}_regions.json", pointing)
            ocr = random.Random(f"{seed}/{split}/ocr")
            read = [(made, reading(made.scene, ocr)) for made in kept]
            _write_json(root / f"{split}_ocr.json", [_llava(split, made, turns) for made, turns in read if turns])
            text = random.Random(f"{seed}/{split}/text")
            _write_json(root / f"{split}_text.json", [_told(made.name, told(made.scene, text)) for made in kept])
            shown = [Shown(_image(split, made.name), made.scene, made.caption[1], made.questions) for made in kept]
            examples = shown if split == "train" else examples
            rng = partial(random.Random, f"{seed}/{split}/pages")
            _write_lines(root / f"{split}_interleaved.jsonl", documents(shown, rng()))
            _write_json(root / f"{split}_fewshot.json", contexts(shown, examples, rng(), every=split != "train"))
        _write_truth(root / f"{split}.truth.jsonl", split, seed, kept)
    versions = {name: version(name) for name in ("numpy", "pillow", "scikit-learn")}
    facts = {"layout": LAYOUT, "seed": seed, "world": asdict(world), "splits": dict(sizes), "format": format}
    _write_json(root / "scenes.json", facts | {"versions": versions})


def _distinct(
    size: int, make: Callable[[int], _Made], taken: set[str], each: Callable[..., Iterator[_Made]]
) -> Iterator[_Made]:
    """The first `size` pictures that are not in `taken`, which they are added to."""
    missing, start = size, 0
    while missing:
        indices = range(start, start + missing)
        start += missing
        for made in each(make, indices):
            if made.name not in taken:
                taken.add(made.name)
                missing -= 1
                yield made
        if start > 100 * size + 1000:
            raise ConfigError(f"this world has too few different pictures for {size}; add noise or objects")


def _make(world: World, seed: int, split: str, index: int) -> _Made:
    """Picture `index` of a split; its scene is the one that `stream` gives."""
    rng = random.Random(f"{seed}/{split}/{index}")
    scene = sample_scene(world, rng, split)
    picture = render(scene)
    png = io.BytesIO()
    picture.save(png, "png", compress_level=3)  # measured: 4.7 kB in 0.35 ms; level 6: 5.1 kB in 0.61 ms
    return _Made(
        name=hashlib.sha256(picture.tobytes()).hexdigest()[:12],
        png=png.getvalue(),
        scene=scene,
        turns=conversation(scene, rng),
        caption=pretrain(scene, rng),
        questions=questions(scene, rng),
        grounding=grounding(scene, rng),
        # Last: what was there before is drawn as it was.
        referring=referring(scene, rng),
        pointing=pointing(scene, rng),
    )


def _image(split: str, name: str) -> str:
    return f"images/{split}/{name}.png"


def _llava(split: str, made: _Made, turns: list[Question]) -> dict[str, Any]:
    """A row of a LLaVA file; the picture stands before the first question."""
    said = _said(turns, "<image>")
    row = {"id": made.name, "image": _image(split, made.name), "conversations": said}
    regions = [list(region) for each in turns for region in each.regions]
    return row | ({"regions": regions} if regions else {})


def _told(name: str, conversation: tuple[str, list[Question]]) -> dict[str, Any]:
    """A row without a picture; what is told stands where the picture would."""
    words, turns = conversation
    return {"id": name, "conversations": _said(turns, words)}


def _said(turns: list[Question], first: str) -> list[dict[str, str]]:
    said = []
    for i, each in enumerate(turns):
        said.append({"from": "human", "value": each.text if i else f"{first}\n{each.text}"})
        said.append({"from": "gpt", "value": each.answer})
    return said


def _write_truth(path: Path, split: str, seed: int, kept: list[_Made]) -> None:
    seen = Occurrences(made.scene for made in kept)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for made in kept:
            probes = pope(made.scene, seen, random.Random(f"{seed}/{split}/pope/{made.name}"))
            row = {
                "image": _image(split, made.name),
                "scene": made.scene.to_json(),
                "questions": [asdict(each) for each in made.questions],
                "grounding": [asdict(each) for each in made.grounding],
                "referring": [asdict(each) for each in made.referring],
                "pope": {rule: [asdict(each) for each in asked] for rule, asked in probes.items()},
            }
            file.write(json.dumps(row) + "\n")


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8", newline="\n")


def _write_lines(path: Path, rows: Iterable[object]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8", newline="\n")


def _write_shards(root: Path, split: str, kept: list[_Made]) -> None:
    """Tar files of `_SHARD` pictures in img2dataset's layout, with no time, user or order left to chance."""
    folder = root / "webdataset" / split
    folder.mkdir(parents=True)
    for shard in range(-(-len(kept) // _SHARD)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, made in enumerate(kept[shard * _SHARD : (shard + 1) * _SHARD]):
                key = f"{shard:05d}{row:04d}"
                png = (root / _image(split, made.name)).read_bytes()
                _add(tar, f"{key}.png", png)
                _add(tar, f"{key}.txt", made.caption[1].encode())
                _add(tar, f"{key}.json", json.dumps(_facts(key, made, png)).encode())


def _facts(key: str, made: _Made, png: bytes) -> dict[str, Any]:
    return {
        "key": key,
        "caption": made.caption[1],
        "status": "success",
        "width": made.scene.side,
        "height": made.scene.side,
        "sha256": hashlib.sha256(png).hexdigest(),
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
