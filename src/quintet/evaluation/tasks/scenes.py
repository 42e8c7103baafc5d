"""The tasks of Scenes: what is asked is beside the pictures, in `<split>.truth.jsonl`.

scenes.vqa        ten kinds of questions, exact match          scenes.caption    short captions, CIDEr-D
scenes.digits     handwritten digits, exact match                 scenes.chair      objects made up in long captions
scenes.ocr        written words, ANLS                             scenes.grounding  boxes, IoU ≥ 0.5
scenes.pope       yes or no, F1 on the random setting; popular and adversarial as kinds
scenes.referring  what is in a box or at a point, exact match
scenes.retrieval  captions by pictures and pictures by captions, R@1; R@5 and R@10 as measures
scenes.fewshot    after 0, 2 and 4 solved examples from the training split, exact match; with made-up names, which the
                  examples alone explain (`quintet.data.scenes.pages`), as kinds `names-2` and `names-4`
scenes.amber, scenes.amber_questions, scenes.mmhal, scenes.objhal: what is made up (`scenes_hallucination.py`)
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from quintet.data.scenes import BRIEF, DETAILED, Question, Scene, Truth, caption, objects_of, read_truth
from quintet.data.scenes.questions import REGION
from quintet.data.sources import open_source
from quintet.errors import DataError
from quintet.evaluation.metrics.anls import Anls
from quintet.evaluation.metrics.boxes import BoxAccuracy
from quintet.evaluation.metrics.chair import Chair
from quintet.evaluation.metrics.cider import Cider
from quintet.evaluation.metrics.exact import ExactMatch
from quintet.evaluation.metrics.metric import Metric
from quintet.evaluation.metrics.pope import Pope
from quintet.evaluation.metrics.recall import Recall
from quintet.evaluation.task import Item, Task
from quintet.evaluation.tasks.retrieval import retrieval_items
from quintet.evaluation.tasks.scenes_hallucination import HALLUCINATION, Asked
from quintet.evaluation.tasks.scenes_rating import named_mentions
from quintet.values import Media, Origin, Part, Ref, Region, Text

__all__ = ["NAMES", "names_in", "scenes_task"]

FEWSHOT = "scenes.fewshot"
REFERRING = "scenes.referring"

_NUM_REFERENCES = 5  # captions a picture, as in COCO; objects come in a random order in each

_Maker = Callable[[Truth], Iterator[tuple[str, str | Question, object, str]]]
"""One picture → what is asked about it: id within the picture, prompt (a question if it has regions), truth, kind."""


def scenes_task(name: str, folder: Path, *, split: str = "test") -> Task:
    """A task of `NAMES` over one split of a Scenes folder."""
    if name == RETRIEVAL:
        return Task(name, "1", Recall(), partial(retrieval_items, Path(folder), split), together=True)
    if name == FEWSHOT:
        return Task(name, "1", ExactMatch(), partial(_fewshot, Path(folder), split), learnt_from="interleaved")
    if name in HALLUCINATION:
        metric, of_split = HALLUCINATION[name]
        return Task(name, "1", metric, partial(_of_split, Path(folder), split, of_split))
    metric, make, headline = _TASKS[name]
    learnt_from = "regions" if name == REFERRING else ""
    return Task(name, "1", metric, partial(_items, Path(folder), split, make), headline, learnt_from=learnt_from)


def names_in(folder: Path) -> list[str]:
    """The tasks that a folder of Scenes has the data of: few-shot contexts came with layout 3."""
    return [name for name in NAMES if name != FEWSHOT or any(folder.glob("*_fewshot.json"))]


def _items(folder: Path, split: str, make: _Maker) -> list[Item]:
    def of_split(truths: Sequence[Truth]) -> Iterator[Asked]:
        for index, truth in enumerate(truths):
            for asked in make(truth):
                yield index, *asked

    return _of_split(folder, split, of_split)


def _of_split(folder: Path, split: str, make: Callable[[Sequence[Truth]], Iterator[Asked]]) -> list[Item]:
    path = folder / f"{split}.truth.jsonl"
    if not path.is_file():
        message = f"no Scenes of split {split!r} here; make them with `quintet data make scenes --out {folder}`"
        raise DataError("missing-file", message, file=str(path))
    truths = read_truth(path)
    return [
        Item(
            f"{truths[index].image.stem}/{key}",
            _parts(truths[index], folder, prompt),
            right,
            kind,
            Origin(str(path), index + 1, key),
        )
        for index, key, prompt, right, kind in make(truths)
    ]


def _fewshot(folder: Path, split: str) -> Iterator[Item]:
    path = folder / f"{split}_fewshot.json"
    if not path.is_file():
        message = f"no few-shot contexts of split {split!r} here; they come with Scenes of layout 3: make them anew"
        raise DataError("missing-file", message, file=str(path))
    source = open_source(path)
    for index in range(len(source)):
        sample = source.sample(index)
        *context, question, answer = sample.root.turns
        [truth] = [part.text for part in answer.parts if isinstance(part, Text)]
        name = sample.origin.id
        yield Item(name, question.parts, truth, name.split("/")[0], sample.origin, context=tuple(context))


def _parts(truth: Truth, folder: Path, prompt: str | Question) -> tuple[Part, ...]:
    name = truth.image.relative_to(folder).as_posix()
    picture = Media("image", Ref(name, path=truth.image))
    return (picture, Text(prompt)) if isinstance(prompt, str) else (picture, *_words(prompt))


def _words(question: Question) -> Iterator[Part]:
    """The question with its regions in place."""
    regions = iter(question.regions)
    for piece in re.split(f"({REGION})", question.text):
        if piece == REGION:
            points = next(regions)
            yield Region("points" if len(points) == 2 else "box", points)
        elif piece:
            yield Text(piece)


def _asked(questions: list[Question], prefix: str = "") -> Iterator[tuple[str, str, object, str]]:
    for i, question in enumerate(questions):
        yield f"{prefix}{question.kind}-{i}", question.text, question.answer, question.kind


def _vqa(truth: Truth) -> Iterator[tuple[str, str, object, str]]:
    return _asked(truth.questions)


def _only(kind: str, truth: Truth) -> Iterator[tuple[str, str, object, str]]:
    return _asked([question for question in truth.questions if question.kind == kind])


def _pope(truth: Truth) -> Iterator[tuple[str, str, object, str]]:
    for rule, questions in truth.pope.items():
        for i, question in enumerate(questions):
            yield f"{rule}-{i}", question.text, question.answer, rule


def _grounding(truth: Truth) -> Iterator[tuple[str, str, object, str]]:
    for i, question in enumerate(truth.grounding):
        thing = truth.scene.objects[question.about[0]]
        # The exact box: the answer's text is rounded to hundredths.
        yield f"box-{i}", question.text, list(thing.box), thing.size


def _referring(truth: Truth) -> Iterator[tuple[str, Question, object, str]]:
    for i, question in enumerate(truth.referring):
        yield f"{question.kind}-{i}", question, question.answer, question.kind.removeprefix("referring-")


def _caption(truth: Truth) -> Iterator[tuple[str, str, object, str]]:
    yield "caption", BRIEF[0], _references(truth.scene, truth.image.stem, "short"), "all"


def _chair(truth: Truth) -> Iterator[tuple[str, str, object, str]]:
    objects = sorted(f"{colour} {shape}" for colour, shape in objects_of(truth.scene))
    captions = _references(truth.scene, truth.image.stem, "long")
    yield "caption", DETAILED[0], {"objects": objects, "captions": captions}, "all"


def _references(scene: Scene, seed: str, style: Literal["short", "long"]) -> list[str]:
    made = (caption(scene, random.Random(f"{seed}/{i}"), style) for i in range(_NUM_REFERENCES))
    return list(dict.fromkeys(made))


_TASKS: dict[str, tuple[Metric, _Maker, str]] = {
    "scenes.vqa": (ExactMatch(), _vqa, ""),
    "scenes.pope": (Pope(), _pope, "random"),
    "scenes.caption": (Cider(), _caption, ""),
    "scenes.chair": (Chair(named_mentions), _chair, ""),
    "scenes.grounding": (BoxAccuracy(), _grounding, ""),
    REFERRING: (ExactMatch(), _referring, ""),
    "scenes.ocr": (Anls(), partial(_only, "word"), ""),
    "scenes.digits": (ExactMatch(), partial(_only, "digit"), ""),
}

RETRIEVAL = "scenes.retrieval"
"""For models whose connector matches captions with pictures."""

NAMES = (*_TASKS, *HALLUCINATION, RETRIEVAL, FEWSHOT)
