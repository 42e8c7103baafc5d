"""Tasks by name, as the command line asks for them: `quintet eval RUN --tasks scenes.vqa,vqa --data my.json`."""

from pathlib import Path

from quintet.data.sources import CocoCaptions, Source, Vqa, open_source
from quintet.errors import ConfigError, DataError, nearest
from quintet.evaluation.metrics.rated import Rater
from quintet.evaluation.task import Task
from quintet.evaluation.tasks.conversations import conversations_task
from quintet.evaluation.tasks.files import caption_task, pope_task, questions_task, vqav2_task
from quintet.evaluation.tasks.hallucination_files import FILES, files_task
from quintet.evaluation.tasks.row import rows
from quintet.evaluation.tasks.scenes import NAMES, scenes_task

__all__ = ["TASKS", "find_task"]

_OF_FILES = {
    "vqa": "questions or conversations of your own, exact match",
    "vqa.soft": "questions with several people's answers, VQA soft accuracy",
    "vqav2": "VQAv2's or OKVQA's questions file, its annotations beside it",
    "pope": "a POPE file, or a folder of them",
    "caption": "a COCO caption file, CIDEr-D",
    **FILES,
}

TASKS = {name: "a folder of Scenes" for name in NAMES} | _OF_FILES
"""Every task's name and what its data is."""


def find_task(
    name: str, *, data: Path, images: Path | None = None, split: str = "test", judge: Rater | None = None
) -> Task:
    """The task of that name on `data`.

    Pictures are named from the folder `images`, by default the data's own. `split` is of Scenes only, `judge` of tasks
    whose answers no rule can rate (MMHal-Bench).

    Raises:
        ConfigError: no task has this name, or it needs a judge and there is none.
        DataError: the data is not what the task reads.
    """
    if name in NAMES:
        return scenes_task(name, data, split=split)
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}{nearest(name, TASKS)}")
    folder = images if images is not None else data if data.is_dir() else data.parent
    if name in FILES:
        return files_task(name, data=data, images=folder, judge=judge)
    if name == "pope":
        return pope_task(_pope_files(data), images=folder)
    if name in ("vqa", "vqa.soft") and _holds_questions(data):
        return questions_task(data, images=folder, soft=name == "vqa.soft", name=name)
    source = open_source(data, root=folder)
    if name == "vqa":
        return conversations_task(source)
    if name == "vqav2" and isinstance(source, Vqa):
        return vqav2_task(source)
    if name == "caption" and isinstance(source, CocoCaptions):
        return caption_task(source)
    raise _other(name, source)


def _holds_questions(file: Path) -> bool:
    """Whether the file is rows of `question` and `answer`, told by the first."""
    if file.suffix not in (".json", ".jsonl"):
        return False
    try:
        first = next(rows(file), None)
    except DataError:
        return False  # no rows of JSON: `open_source` says what it is, or what is wrong
    return first is not None and "question" in first.data and bool(first.data.keys() & {"answer", "answers"})


def _pope_files(data: Path) -> list[Path]:
    found = [data] if data.is_file() else sorted(data.glob("*pope*.json*"))
    if not found:
        raise DataError("missing-file", "no POPE file here (a name with 'pope', .json or .jsonl)", file=str(data))
    return found


def _other(name: str, source: Source) -> DataError:
    message = f"{name} reads {TASKS[name]}; this is of another format"
    return DataError("unknown-format", message, file=source.file)
