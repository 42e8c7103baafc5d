"""An alignment that was killed goes on bit for bit: DPO with a kept reference, PPO with what it had drawn. About 40 s.

Runs die in a nursery (`tests/nursery.py`): before changes on the disk, which are those of pairs, references, rollouts
and checkpoints, and before micro-batches.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nursery import DIED, Nursery, Outcome, nursery_of
from quintet.data.scenes import World, make_scenes
from quintet.lab.pairs import Work, build
from quintet.lab.run import Job, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

METHODS: dict[str, dict[str, Any]] = {
    "llava_hound": {"sets": ["stages.dpo.steps=4", "stages.dpo.micro=1", "stages.dpo.packing=false"]},
    "llava_rlhf": {"sets": ["stages.ppo.steps=6", "stages.ppo.rollouts.prompts=4"], "reward": "truth"},
}
"""Whole weights learn in the first, so that the reference is kept on disk; the second draws answers three times."""


@pytest.fixture(scope="module", params=METHODS)
def nursery(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp(request.param)
    scenes = make_scenes(folder / "scenes", 24, 0, World())
    train(Job(recipe="llava15", scale="tiny", out=folder / "sft", scenes=scenes))
    job = {"recipe": request.param, "start": str(folder / "sft"), "scenes": str(scenes)} | METHODS[request.param]
    if request.param == "llava_hound":
        build("truth", Work(scenes=scenes, rows=12), scenes / "pairs.jsonl")
        job["data"] = {"dpo": str(scenes / "pairs.jsonl")}
    with nursery_of(job, folder) as made:
        yield made


def test_killed_at_random_moments_it_is_equal_to_the_last_bit(nursery: Nursery, tmp_path: Path) -> None:
    """Lives that are each cut at a random moment of what is left, until one ends."""
    whole = tmp_path / "whole"
    assert nursery.live(whole) == 0
    counts = json.loads((whole / "counts").read_text())
    outcome = Outcome.of(whole)
    assert len({row["step"] for row in outcome.lines}) == len(outcome.lines) > 3
    moments = random.Random(0)
    deaths = {"write": 0, "forward": 0}
    for chain in range(2):
        folder = tmp_path / f"chain{chain}"
        for life in range(12):
            kind = ("write", "forward")[life % 2]
            code = nursery.live(folder, at=(kind, moments.randint(1, max(1, counts[kind] // 2))))
            if code == 0:
                break
            assert code == DIED, f"life {life} of chain {chain} ended with {code}"
            deaths[kind] += 1
        else:
            assert nursery.live(folder) == 0
        assert Outcome.of(folder) == outcome, f"chain {chain}"
    assert min(deaths.values()) >= 1, deaths


def test_killed_before_any_change_of_what_it_keeps_it_is_equal(nursery: Nursery, tmp_path: Path) -> None:
    """Before every fourth of the first forty: in those pairs, references and the first rollouts are written."""
    whole = tmp_path / "whole"
    assert nursery.live(whole) == 0
    outcome, counts = Outcome.of(whole), json.loads((whole / "counts").read_text())
    for n in range(1, min(40, counts["write"]) + 1, 4):
        folder = tmp_path / str(n)
        assert nursery.live(folder, at=("write", n)) == DIED
        assert nursery.live(folder) == 0, f"killed at change {n}"
        assert Outcome.of(folder) == outcome, f"killed at change {n}"
