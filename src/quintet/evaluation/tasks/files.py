"""Tasks over files in the field's formats: POPE, VQAv2 pairs, COCO captions, and plain questions with answers.

What is wrong in a file is refused with its row and field: an evaluation drops nothing. Pictures are named here and
opened by the model side; their names cannot leave the folder of pictures.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from quintet.data.sources.annotations import CocoCaptions, Vqa
from quintet.data.sources.root import Root
from quintet.errors import DataError
from quintet.evaluation.metrics.cider import Cider
from quintet.evaluation.metrics.exact import ExactMatch
from quintet.evaluation.metrics.metric import Metric
from quintet.evaluation.metrics.pope import Pope
from quintet.evaluation.metrics.vqa import VqaAccuracy
from quintet.evaluation.task import Item, Task
from quintet.evaluation.tasks.row import rows
from quintet.values import Media, Origin, Text

__all__ = ["CAPTION_PROMPT", "caption_task", "pope_task", "questions_task", "vqav2_task"]

CAPTION_PROMPT = "Describe the picture briefly."

_SETTINGS = ("random", "popular", "adversarial")


def pope_task(files: Sequence[Path], *, images: Path) -> Task:
    """POPE from its own files, JSON lines of `question_id, image, text, label`; F1.

    A file whose name says random, popular or adversarial is that kind. Of several files with a random one the score
    is of that one, as in Scenes; LLaVA's tables print the mean of the three kinds.
    """
    headline = "random" if len(files) > 1 and "random" in map(_setting, files) else ""
    return Task("pope", "1", Pope(), partial(_pope, tuple(files), Root.at(images)), headline)


def vqav2_task(source: Vqa, *, suffix: str = "") -> Task:
    """VQAv2 (or OKVQA); soft accuracy with the official normalisation; kinds are answer types.

    `suffix` follows every question (LLaVA-1.5 asks for a single word or phrase).
    """
    return Task("vqav2", "1", VqaAccuracy(), partial(_vqav2, source, suffix))


def caption_task(source: CocoCaptions, *, prompt: str = CAPTION_PROMPT) -> Task:
    """COCO captions, all captions of a picture being its references; CIDEr-D."""
    return Task("caption", "1", Cider(), partial(_captions, source, prompt))


def questions_task(file: Path, *, images: Path, soft: bool = False, name: str = "vqa") -> Task:
    """Rows of `question` and `answer` or `answers`, with `image`, `id` and `kind` where there are any.

    Exact match with any of the answers; with `soft`, VQA soft accuracy over them, as for TextVQA and VizWiz.
    """
    metric: Metric = VqaAccuracy() if soft else ExactMatch()
    return Task(name, "1", metric, partial(_questions, file, Root.at(images)))


def _pope(files: tuple[Path, ...], root: Root) -> Iterator[Item]:
    for file in files:
        kind = _setting(file)
        for row in rows(file):
            label = row.text("label").strip().lower()
            if label not in ("yes", "no"):
                raise row.fault("bad-label", f"{row.data['label']!r}; expected yes or no", field="label")
            key = row.name("question_id")
            parts = row.picture(root, "image"), Text(row.text("text"))
            yield Item(f"{kind}/{key:0>9}", parts, label, kind, row.origin(key))


def _setting(file: Path) -> str:
    return next((setting for setting in _SETTINGS if setting in file.name), "all")


def _questions(file: Path, root: Root) -> Iterator[Item]:
    for row in rows(file):
        answers = row.list("answers") if "answers" in row.data else [row.text("answer")]
        if not answers or not all(isinstance(each, str) and each.strip() for each in answers):
            raise row.fault("empty-answer", "every answer must be a text that is not empty", field="answers")
        pictures: tuple[Media, ...] = (row.picture(root, "image"),) if "image" in row.data else ()
        kind = row.text("kind") if "kind" in row.data else "all"
        key = row.name("id") if "id" in row.data else f"{row.number:09d}"
        yield Item(key, (*pictures, Text(row.text("question"))), answers, kind, row.origin(key))


def _vqav2(source: Vqa, suffix: str) -> Iterator[Item]:
    for index in range(len(source)):
        sample, truth = source.sample(index), source.truth(index)
        if not truth.answers:
            message = f"question {truth.question_id} has no `answers`; soft accuracy needs those of several people"
            raise DataError("missing-answer", message, file=source.annotations_file, field="answers")
        [question] = [part.text for part in sample.root.turns[0].parts if isinstance(part, Text)]
        parts = (*sample.media(), Text(question + suffix))
        kind = truth.answer_type or "all"
        yield Item(f"{truth.question_id:0>12}", parts, list(truth.answers), kind, sample.origin)


def _captions(source: CocoCaptions, prompt: str) -> Iterator[Item]:
    references: dict[str, list[str]] = {}
    first: dict[str, tuple[Media, Origin]] = {}
    for index in range(len(source)):
        sample = source.sample(index)
        [medium] = sample.media()
        [caption] = [part.text for part in sample.root.turns[1].parts if isinstance(part, Text)]
        references.setdefault(medium.ref.name, []).append(caption)
        first.setdefault(medium.ref.name, (medium, sample.origin))
    for image in source.names.values():
        if (name := image.get("file_name")) not in references:
            message = f"picture {name!r} has no caption; delete it from `images` or caption it"
            raise DataError("missing-answer", message, file=source.file, field="images")
    for name, (medium, origin) in first.items():
        yield Item(name, (medium, Text(prompt)), references[name], "all", origin)
