"""A small data set and a small comparison on it, and someone who remembers what a comparison tells."""

from pathlib import Path
from typing import Any

import pytest

from quintet.data.scenes import make_scenes
from quintet.lab.compare import Comparison

TASKS = {"scenes.vqa": 6, "scenes.pope": 6}


class Quiet:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counted: list[tuple[str, int, int]] = []
        self.done: list[tuple[float, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def runs(self, done: float, total: int) -> None:
        self.done.append((done, total))

    def count(self, what: str, done: int, total: int) -> None:
        self.counted.append((what, done, total))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("compare") / "scenes", 24, seed=3, splits={"val": 2, "test": 8})


def comparison(scenes: Path, out: Path, **more: Any) -> Comparison:
    settings: dict[str, Any] = {"recipes": ("llava", "llava15"), "scale": "tiny", "precision": "fp32", "tasks": TASKS}
    settings |= {"scenes": scenes, "out": out}
    return Comparison(**(settings | more))
