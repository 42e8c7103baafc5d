"""Sources that stand in annotation files of their own make: COCO captions, and VQAv2's pairs of files.

A row is one annotation. COCO's five captions a picture are five rows: a picture without words is the question, the
caption is the answer. For VQAv2 the answer learnt is `multiple_choice_answer`; the ten answers of people stay with the
row for the metric (`Vqa.truth`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.data.sources.base import Faults, Reading, Source
from quintet.data.sources.conversation import NOWHERE, identity
from quintet.data.sources.keys import unread
from quintet.data.sources.root import Root, is_text
from quintet.data.sources.rows import parse, read_text
from quintet.errors import DataError
from quintet.values import Media, Origin, Ref, Text, Turn

__all__ = ["CocoCaptions", "Vqa", "VqaTruth"]

_CAPTION = frozenset({"id", "image_id", "caption"})
_QUESTION = frozenset({"question_id", "image_id", "question"})
_ANNOTATION = frozenset(
    ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers", "confidence")
)


class CocoCaptions(Source):
    """`captions_<split>.json`: `images[]{id, file_name}` and `annotations[]{id, image_id, caption}`."""

    def __init__(self, path: Path, *, root: Path, name: str = "") -> None:
        data = _object(path)
        self.file, self.name, self.root = str(path), name or path.name, Root.at(root)
        self.rows = _list(data, "annotations", path)
        self.names = _by_id(_list(data, "images", path), "id", path, field="images")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Reading:
        faults = Faults(self.file, index + 1)
        row = self.rows[index]
        if not isinstance(row, dict):
            return _not_an_object(row, faults)
        image = self.names.get(_key(row.get("image_id")))
        if image is None:
            message = f"picture {row.get('image_id')!a:.80} is not in `images`"
            faults.add("missing-key", message, field=f"annotations[{index}].image_id")
        ref = _ref(self.root, image.get("file_name"), faults, "images.file_name") if image else NOWHERE
        answer = _words(row, "caption", faults, "empty-answer")
        turns = (Turn("user", (Media("image", ref),)), Turn("assistant", (Text(answer),)))
        ignored = unread(row, faults, known=_CAPTION)
        return Reading(Origin(self.file, index + 1, identity(row, faults)), turns, tuple(faults.found), ignored)


@dataclass(frozen=True)
class VqaTruth:
    """What the metric needs of a question: the answers of ten people, and the two kinds that scores are split by."""

    question_id: str
    answers: tuple[str, ...]
    question_type: str = ""
    answer_type: str = ""


class Vqa(Source):
    """VQAv2 and OKVQA: a file of questions and a file of annotations, joined by `question_id`.

    Pictures are `COCO_<subtype>_<12 digits>.jpg` under `root`, in the folder `<subtype>` if there is one.
    """

    def __init__(self, questions: Path, annotations: Path, *, root: Path, name: str = "") -> None:
        data = _object(questions)
        self.file, self.name, self.root = str(questions), name or questions.name, Root.at(root)
        self.rows = _list(data, "questions", questions)
        self.subtype = data.get("data_subtype")
        self.annotations_file = str(annotations)
        notes = _list(_object(annotations), "annotations", annotations)
        self.notes = _by_id(notes, "question_id", annotations, field="annotations")
        asked = {_key(row.get("question_id")) for row in self.rows if isinstance(row, dict)}
        self.loose = tuple(
            DataError(
                "unequal-counts", f"no question has the id {key}", file=str(annotations), row=i + 1, field="question_id"
            )
            for i, key in enumerate(self.notes)
            if key not in asked
        )
        folder = self.root.folder / str(self.subtype)
        self.folder = f"{self.subtype}/" if isinstance(self.subtype, str) and folder.is_dir() else ""

    def __len__(self) -> int:
        return len(self.rows)

    def truth(self, index: int) -> VqaTruth:
        """The answers of people to the question of this row.

        Raises:
            DataError: the row has a fault.
        """
        self.sample(index)
        row = self.rows[index]
        note = self.notes[_key(row["question_id"])]
        answers = tuple(each["answer"] for each in note.get("answers") or ())
        kinds = (str(note.get("question_type", "")), str(note.get("answer_type", "")))
        return VqaTruth(str(row["question_id"]), answers, *kinds)

    def read(self, index: int) -> Reading:
        faults = Faults(self.file, index + 1)
        row = self.rows[index]
        if not isinstance(row, dict):
            return _not_an_object(row, faults)
        asked = identity(row, faults, key="question_id")
        if row.get("question_id") is None:
            faults.add("missing-key", "a question has no `question_id`", field="question_id")
        question = _words(row, "question", faults, "empty-question")
        ref = self._image(row, faults)
        answer = self._answer(row, faults)
        turns = (Turn("user", (Media("image", ref), Text(question))), Turn("assistant", (Text(answer),)))
        ignored = unread(row, faults, known=_QUESTION)
        return Reading(Origin(self.file, index + 1, asked), turns, tuple(faults.found), ignored)

    def _image(self, row: dict[str, Any], faults: Faults) -> Ref:
        image = row.get("image_id")
        if not isinstance(image, int) or isinstance(image, bool) or image < 0:
            faults.add("wrong-type", f"`image_id` is a whole number, not {image!a:.80}", field="image_id")
            return NOWHERE
        if not isinstance(self.subtype, str):
            faults.add(
                "missing-key", "the file has no `data_subtype`, which pictures are named by", field="data_subtype"
            )
            return NOWHERE
        return _ref(self.root, f"{self.folder}COCO_{self.subtype}_{image:012d}.jpg", faults, "image_id")

    def _answer(self, row: dict[str, Any], faults: Faults) -> str:
        note = self.notes.get(_key(row.get("question_id")))
        if note is None:
            message = f"question {row.get('question_id')!a:.80} has no annotation in {self.annotations_file}"
            faults.add("unequal-counts", message, field="question_id")
            return ""
        unread(note, faults, known=_ANNOTATION, where="annotation")
        if "image_id" in note and note["image_id"] != row.get("image_id"):
            message = f"question is about {row.get('image_id')!a:.80}, its annotation about {note['image_id']!a:.80}"
            faults.add("image-count", message, field="image_id")
        answers = note.get("answers") or []
        if not isinstance(answers, list) or not all(
            isinstance(a, dict) and isinstance(a.get("answer"), str) for a in answers
        ):
            faults.add("wrong-type", "`answers` is a list of objects with an `answer`", field="answers")
        return _words(note, "multiple_choice_answer", faults, "empty-answer")


# ---- reading -----------------------------------------------------------------------------------------------------
def _object(path: Path) -> dict[str, Any]:
    text, _ = read_text(path)
    try:
        data = parse(text)
    except DataError as error:
        raise error.at(file=str(path)) from None
    if not isinstance(data, dict):
        raise DataError("wrong-type", f"expected an object, found {type(data).__name__}", file=str(path))
    return data


def _list(data: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list):
        raise DataError(
            "missing-key", f"`{key}` must be a list; found {type(value).__name__}", file=str(path), field=key
        )
    return value


def _by_id(rows: list[Any], key: str, path: Path, *, field: str) -> dict[str, dict[str, Any]]:
    """Rows by id. What they are joined by must be there, and once; so the file is refused otherwise."""
    made: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(rows):
        value = _key(row.get(key)) if isinstance(row, dict) else ""
        if not value or value in made:
            fault, what = ("duplicate-id", "stands twice") if value else ("missing-key", "is missing or no id")
            raise DataError(fault, f"`{key}` of {field}[{i}] {what}", file=str(path), field=f"{field}[{i}].{key}")
        made[value] = row
    return made


def _key(value: object) -> str:
    """An id as text; '' if it is none. 7 and '7' are the same id, as in the published files."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def _not_an_object(row: object, faults: Faults) -> Reading:
    faults.add("wrong-type", f"a row is an object, not {type(row).__name__}")
    return Reading(Origin(faults.file, faults.row), faults=tuple(faults.found))


def _ref(root: Root, name: object, faults: Faults, field: str) -> Ref:
    try:
        return root.ref(name)
    except DataError as error:
        faults.take(error, field=field)
        return NOWHERE


def _words(row: dict[str, Any], key: str, faults: Faults, empty: str) -> str:
    value = row.get(key)
    if value is None:
        faults.add("missing-key", f"there is no `{key}`", field=key)
    elif not isinstance(value, str):
        faults.add("wrong-type", f"`{key}` is text, not {type(value).__name__}", field=key)
    elif not is_text(value):
        faults.add("not-unicode", f"half a surrogate pair stands in `{key}`", field=key)
    elif not value.strip():
        faults.add(empty, f"`{key}` is empty; write one or delete the row", field=key)
    else:
        return value.strip()
    return ""
