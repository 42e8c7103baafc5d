"""AMBER and MMHal-Bench from their own files, and by its name whatever benchmark of hallucination has files.

AMBER      `query/query_all.json`: rows of `id, image, query`; `annotations.json`: of `id, type, truth`, descriptions
           with `hallu`; `relation.json`: object → other words for it; `safe_words.txt`: a word a line
MMHal      `response_template.json`: rows of `question_type, image_id, image_src, image_content, question, gt_answer`
CHAIR, Object HalBench   in `coco_files.py`
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from quintet.data.sources.root import Root
from quintet.data.sources.rows import parse, read_text
from quintet.errors import ConfigError, DataError, nearest
from quintet.evaluation.metrics.amber import Amber, Denials
from quintet.evaluation.metrics.nouns import Lexicon
from quintet.evaluation.metrics.rated import Rater, rated_by
from quintet.evaluation.task import Item, Task
from quintet.evaluation.tasks.coco_files import Coco, chair_task, objhal_task
from quintet.evaluation.tasks.row import Row, rows
from quintet.evaluation.tasks.scenes_mmhal import TYPES
from quintet.values import Media, Text

__all__ = ["FILES", "AmberFiles", "amber_questions_task", "amber_task", "files_task", "mmhal_task"]

FILES = {
    "chair": "COCO's captions and instances files in one folder, what descriptions make up",
    "objhal": "Object HalBench's questions, COCO's captions and instances files beside them",
    "amber": "AMBER's folder `data`, what descriptions make up",
    "amber_questions": "AMBER's folder `data`, its questions of yes and no",
    "mmhal": "MMHal-Bench's questions, rated by a judge",
}
"""Name → what its data is."""

_NO_JUDGE = (
    "mmhal's answers are rated by a judge, and none is given; name one, --judge: the folder of a run or of a model of "
    "transformers, or the address of an endpoint that speaks OpenAI's protocol. scenes.mmhal is rated from the exact "
    "truth and needs none"
)

_DESCRIPTION = "generative"
_QUESTIONS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute-state",
    "discriminative-attribute-number": "attribute-number",
    "discriminative-attribute-action": "attribute-action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""AMBER's types of questions → kinds. Relations that do not hold have a type of their own there."""


def files_task(name: str, *, data: Path, images: Path, judge: Rater | None) -> Task:
    """The task of `FILES` of that name.

    Raises:
        ConfigError: answers are rated by a judge, and there is none.
        DataError: the files are not there, or not what the task reads.
    """
    if name == "chair":
        return chair_task(Coco.at(data), images=images)
    if name == "objhal":
        return objhal_task(
            _one(data, "*halbench*.jsonl"), Coco.at(data.parent if data.is_file() else data), images=images
        )
    if name == "mmhal":
        if judge is None:
            raise ConfigError(_NO_JUDGE)
        return mmhal_task(_one(data, "*response_template*.json", "*mmhal*.json"), images=images, judge=judge)
    files = AmberFiles.at(data, "generative" if name == "amber" else "discriminative")
    return (amber_task if name == "amber" else amber_questions_task)(files, images=images)


# ---- AMBER -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AmberFiles:
    """Where AMBER's files are; without associations or safe words a word stands for itself, and none is safe."""

    queries: Path
    annotations: Path
    associations: Path | None
    safe_words: Path | None

    @staticmethod
    def at(data: Path, half: str) -> "AmberFiles":
        """Those of the repository, of its folder `data`, or of a file of queries; `half` is its name in the files'.

        Raises:
            DataError: there are no annotations, or no queries of that half.
        """
        places = (data, data / "data") if data.is_dir() else (data.parent, data.parent.parent)
        base = next((place for place in places if (place / "annotations.json").is_file()), None)
        if base is None:
            raise DataError("missing-file", "no annotations.json of AMBER's here", file=str(data))
        names = [f"{folder}query_{part}.json" for folder in ("query/", "") for part in ("all", half)]
        queries = [base / name for name in names if (base / name).is_file()] if data.is_dir() else [data]
        if not queries:
            raise DataError("missing-file", f"no {names[0]} here, and no {names[1]}", file=str(base))
        given = [path if (path := base / name).is_file() else None for name in ("relation.json", "safe_words.txt")]
        return AmberFiles(queries[0], base / "annotations.json", *given)


def amber_task(files: AmberFiles, *, images: Path) -> Task:
    """The descriptions: CHAIR, with Cover, Hal and Cog; each sums over the set.

    Mentions are the words of the benchmark's lexicon (all in its associations and annotations), by `metrics.nouns`.
    """
    associated = _associations(files.associations) if files.associations else {}
    notes = _notes(files.annotations)
    described = [note for note in notes.values() if note.text("type") == _DESCRIPTION]
    listed = (word for note in described for key in ("truth", "hallu") for word in _words(note, key))
    known = frozenset(listed).union(associated, *associated.values())
    safe = _lines(files.safe_words) if files.safe_words else ()
    metric = Amber(Lexicon(known).nouns, associated=associated, safe=safe)
    return Task("amber", "1", metric, partial(_descriptions, files.queries, notes, Root.at(images)))


def amber_questions_task(files: AmberFiles, *, images: Path) -> Task:
    """The questions: F1 of no. As in the released script an answer is `Yes` or `No` to the letter, or it is wrong."""
    return Task("amber_questions", "1", Denials(), partial(_questions, files, Root.at(images)))


def _descriptions(queries: Path, notes: Mapping[str, Row], root: Root) -> Iterator[Item]:
    for row in rows(queries):
        note = _note(row, notes)
        if note.text("type") == _DESCRIPTION:
            truth = {"objects": _words(note, "truth"), "expected": _words(note, "hallu"), "captions": []}
            yield _amber_item(row, root, truth, "all")


def _questions(files: AmberFiles, root: Root) -> Iterator[Item]:
    notes = _notes(files.annotations)
    for row in rows(files.queries):
        note = _note(row, notes)
        if note.text("type") == _DESCRIPTION:
            continue
        kind, answer = _QUESTIONS[note.text("type")], note.text("truth")
        if answer not in ("yes", "no"):
            raise note.fault("bad-label", f"{answer!r}; expected yes or no", field="truth")
        yield _amber_item(row, root, {"answer": answer, "dimension": kind.split("-")[0]}, kind)


def _note(row: Row, notes: Mapping[str, Row]) -> Row:
    """What is known of a query."""
    note = notes.get(row.name("id"))
    if note is None:
        raise row.fault("unequal-counts", f"{row.data['id']!a:.80} has no annotation", field="id")
    if (kind := note.text("type")) not in (known := [_DESCRIPTION, *_QUESTIONS]):
        raise note.fault("unknown-type", f"no type {kind!r}{nearest(kind, known)}", field="type")
    return note


def _amber_item(row: Row, root: Root, truth: dict[str, Any], kind: str) -> Item:
    key = row.name("id")
    return Item(f"{key:0>6}", (row.picture(root, "image"), Text(row.text("query"))), truth, kind, row.origin(key))


def _notes(file: Path) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows(file):
        if (key := row.name("id")) in found:
            raise row.fault("duplicate-id", f"the id {key} is used twice", field="id")
        found[key] = row
    return found


def _words(row: Row, key: str) -> list[str]:
    """A list of words, in lower case."""
    found = row.list(key)
    if not all(isinstance(word, str) and word for word in found):
        raise row.fault("wrong-type", f"expected a list of words, found {found!a:.80}", field=key)
    return [word.lower() for word in found]


def _associations(file: Path) -> dict[str, list[str]]:
    """Object → other words for it, in lower case."""
    try:
        data = parse(read_text(file)[0])
    except DataError as error:
        raise error.at(file=str(file)) from None
    if not isinstance(data, dict):
        raise DataError("wrong-type", f"expected an object, found {type(data).__name__}", file=str(file))
    row = Row(data, file, 1)
    return {name.lower(): _words(row, name) for name in data}


def _lines(file: Path) -> list[str]:
    return [word.lower() for line in read_text(file)[0].splitlines() if (word := line.strip())]


# ---- MMHal -------------------------------------------------------------------------------------------------------
def mmhal_task(file: Path, *, images: Path, judge: Rater) -> Task:
    """The mean rating of a judge, the hallucination rate beside it; kinds are the eight types of questions.

    Pictures are published as addresses: they are looked for under their last part, then under `<image_id>.jpg`.
    """
    return Task("mmhal", "1", rated_by(judge), partial(_mmhal, file, Root.at(images)))


def _mmhal(file: Path, root: Root) -> Iterator[Item]:
    for row in rows(file):
        if (kind := row.text("question_type")) not in TYPES:
            raise row.fault("unknown-type", f"no type {kind!r}{nearest(kind, TYPES)}", field="question_type")
        content = row.list("image_content")
        if not all(isinstance(word, str) for word in content):
            raise row.fault("wrong-type", f"expected a list of texts, found {content!a:.80}", field="image_content")
        question = row.text("question")
        truth = {"question": question, "answer": row.text("gt_answer"), "content": content}
        key = f"{row.number:04d}"
        yield Item(key, (_downloaded(row, root), Text(question)), truth, kind, row.origin(row.name("image_id")))


def _downloaded(row: Row, root: Root) -> Media:
    """The picture by the name that its address ends in; by its id if there is no such file but one of that name."""
    names = {"image_src": row.text("image_src").rsplit("/", 1)[-1], "image_id": f"{row.name('image_id')}.jpg"}
    here = next((key for key, name in names.items() if (root.folder / name).is_file()), "image_src")
    try:
        return Media("image", root.ref(names[here]))
    except DataError as error:
        raise error.at(file=str(row.file), row=row.number, field=here) from None


def _one(data: Path, *patterns: str) -> Path:
    """The file itself, or the first of a folder that fits a pattern."""
    if not data.is_dir():
        return data
    found = [path for pattern in patterns for path in sorted(data.glob(pattern))]
    if not found:
        raise DataError("missing-file", f"no {' or '.join(patterns)} here", file=str(data))
    return found[0]
