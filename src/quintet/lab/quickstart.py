"""The whole arc on a laptop: make a world, connect eyes to language, tune, measure, look, talk."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quintet.data.scenes import World, make_scenes, read_truth
from quintet.errors import ConfigError
from quintet.evaluation.run import Result, evaluate
from quintet.evaluation.tasks.catalogue import find_task
from quintet.lab.report import write_report
from quintet.lab.run import Job, train
from quintet.serving.engine import Engine
from quintet.training.hardware import prepare_cpu
from quintet.training.loop import Progress, Settings
from quintet.values import Media, Node, Ref, Sample, Text, Turn

__all__ = ["TASKS", "Quickstart", "Said", "quickstart"]

TASKS = {
    "scenes.vqa": 800,
    "scenes.pope": 900,
    "scenes.digits": 200,
    "scenes.ocr": 200,
    "scenes.grounding": 200,
    "scenes.chair": 100,
    "scenes.caption": 100,
}
"""Task → items asked, each twice (with its own picture and with another's)."""


@dataclass(frozen=True)
class Said:
    """A question about a held-out picture, what the model said, and the truth."""

    picture: Path
    question: str
    answer: str
    truth: str


@dataclass(frozen=True)
class Quickstart:
    """What came out."""

    run: Path
    report: Path
    seconds: dict[str, float]
    scores: dict[str, Result] = field(default_factory=dict)
    said: tuple[Said, ...] = ()


def quickstart(
    out: Path,
    *,
    pictures: int = 5000,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
    count: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Quickstart:
    """Runs the arc of LLaVA-1.5 at starter scale into `out`; a run that was stopped goes on where it was.

    `note` is told of each chapter, `progress` of each training step, `count(what, done, total)` of everything else.
    """
    prepare_cpu()
    spent: dict[str, float] = {}
    begun = time.monotonic()

    def chapter(name: str) -> None:
        nonlocal begun
        spent[name], begun = time.monotonic() - begun, time.monotonic()

    data, run = out / "scenes", out / "run"
    others = [p.name for p in out.iterdir() if p.name not in ("scenes", "run")] if out.is_dir() else []
    if others:
        raise ConfigError(f"{out} holds something else ({', '.join(others[:3])}); name another --out")
    if not (data / "scenes.json").exists():
        note(f"Making {pictures:,} pictures with captions, questions and exact answers")
        make_scenes(data, pictures, seed, World(), progress=lambda done, total: count("pictures", done, total))
    chapter("data")
    note("Training LLaVA-1.5 at starter scale: first the connector, then connector and LLM")
    job = Job(recipe="llava15", out=run, scale="starter", scenes=data, resume=(run / "recipe.json").exists(),
              settings=Settings(seed=seed), note=note)  # fmt: skip
    train(job, progress=progress)
    chapter("training")
    engine = Engine.open(run)
    scores: dict[str, Result] = {}
    for name, limit in TASKS.items():
        note(f"Measuring {name} on held-out pictures, and again with the pictures shuffled")
        task = find_task(name, data=data, split="test")
        scores[name] = evaluate(
            lambda samples: engine.answer(samples), task, read=engine.processor.regions, limit=limit, batch_size=200,
            seed=seed, out=run,
            progress=lambda done, total, name=name: count(name, done, total),
        )  # fmt: skip
    chapter("evaluation")
    report = write_report(run, pictures=data)
    said = tuple(_talk(engine, data))
    chapter("report and talk")
    return Quickstart(run, report, spent, scores, said)


def _talk(engine: Engine, data: Path, pictures: int = 3) -> list[Said]:
    """A few questions of different kinds about the first held-out pictures."""
    asked = []
    for truth in read_truth(data / "test.truth.jsonl")[:pictures]:
        kinds = {q.kind: q for q in truth.questions}
        for kind in ("count", "object", "digit", "word", "place")[:3]:
            if kind in kinds:
                asked.append((truth.image, kinds[kind]))
    samples = [prompt(image, q.text) for image, q in asked]
    answers = engine.answer(samples)
    return [Said(image, q.text, answer, q.answer) for (image, q), answer in zip(asked, answers, strict=True)]


def prompt(image: Path, question: str) -> Sample:
    """One question about one picture."""
    media = Media("image", Ref(image.name, image))
    return Sample(Node((Turn("user", (media, Text(question))),)))
