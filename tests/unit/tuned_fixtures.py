"""Two dozen Scenes, and a tiny model that was tuned on them, for whatever goes on from one."""

from pathlib import Path

import pytest

from quintet.data.scenes import make_scenes
from quintet.data.scenes.world import World
from quintet.lab.run import Job, train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("tuned") / "scenes", 24, 0, World())


@pytest.fixture(scope="module")
def run(scenes: Path) -> Path:
    out = scenes.parent / "run"
    train(Job(recipe="llava15", scale="tiny", out=out, scenes=scenes))
    return out
