"""A run that was killed goes on bit for bit: same bytes in RUN/model, same losses, no step missing or doubled.

Runs die in a nursery (`tests/nursery.py`). Four micro-batches make a step, so three of four forwards are in the middle
of an accumulation. About 45 s.
"""

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import picture_rows
from nursery import DIED, Nursery, Outcome, nursery_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETS = (
    "stages.pretrain.batch=4",
    "stages.pretrain.row=64",
    "stages.pretrain.micro=1",
    "stages.pretrain.steps=4",
    "stages.instruct.batch=4",
    "stages.instruct.row=256",
    "stages.instruct.micro=1",
    "stages.instruct.steps=6",
    "stages.instruct.packing=false",
    "stages.pretrain.packing=false",
)
"""Micro-batches of one sample: four of them make a step."""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("data")
    data = picture_rows(folder, 9, text_only=2)
    (folder / "pictures" / "4.png").write_bytes(b"")  # one row that every run must drop, and count once
    with nursery_of(job(data), folder) as made:
        yield made


def job(data: Path) -> dict[str, Any]:
    return {"recipe": "llava15", "sets": SETS, "data": {"pretrain": str(data), "instruct": str(data)}}


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, dict[str, int]]:
    """A run that nothing disturbed, and how many moments of each kind it has."""
    folder = tmp_path_factory.mktemp("whole")
    assert nursery.live(folder) == 0
    return Outcome.of(folder), json.loads((folder / "counts").read_text())


def test_the_undisturbed_run_is_as_the_other_tests_need_it(whole: tuple[Outcome, dict[str, int]]) -> None:
    """4 + 6 steps in order; a row was dropped in it; four forwards a step, less the dropped row's."""
    outcome, counts = whole
    steps = [(row["stage"], row["step"]) for row in outcome.lines]
    assert steps == [("pretrain", n) for n in range(1, 5)] + [("instruct", n) for n in range(1, 7)]
    assert outcome.lines[-1]["dropped"] > 0
    assert counts["forward"] == 40
    assert counts["write"] > 50


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments_and_resumed_until_it_ends_the_run_is_equal_to_the_last_bit(
    nursery: Nursery, whole: tuple[Outcome, dict[str, int]], tmp_path: Path, workers: int
) -> None:
    """A chain of lives, each cut at a random write or micro-batch of what is left; the last one may end."""
    outcome, counts = whole
    moments = random.Random(workers)
    deaths = {"write": 0, "forward": 0}
    for life in range(16):
        kind = ("write", "forward")[life % 2]
        # A third of all moments at most: several lives are needed.
        at = (kind, moments.randint(1, counts[kind] // 3))
        code = nursery.live(tmp_path, at=at, workers=workers)
        if code == 0:
            break
        assert code == DIED, f"life {life} ended with {code}"
        deaths[kind] += 1
    else:
        assert nursery.live(tmp_path, workers=workers) == 0
    assert min(deaths.values()) >= 2, deaths
    assert Outcome.of(tmp_path) == outcome


def test_killed_at_any_change_on_the_disk_the_run_is_equal_to_the_last_bit(
    nursery: Nursery, whole: tuple[Outcome, dict[str, int]], tmp_path: Path
) -> None:
    """Before every single one, each in a run of its own."""
    outcome, counts = whole
    for n in range(1, counts["write"] + 1):
        folder = tmp_path / str(n)
        assert nursery.live(folder, at=("write", n)) == DIED
        assert nursery.live(folder) == 0, f"killed at change {n}"
        assert Outcome.of(folder) == outcome, f"killed at change {n}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_polite_signal_ends_the_step_writes_a_checkpoint_and_the_run_goes_on_equal(
    nursery: Nursery, whole: tuple[Outcome, dict[str, int]], tmp_path: Path, number: int, workers: int
) -> None:
    """Forward 3 is in step 1 of the first stage: no checkpoint is due there, so the signal wrote what is there."""
    assert nursery.live(tmp_path, at=("forward", 3), number=number, workers=workers, save_steps=1000) == 130
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["pretrain-0000001"]
    assert nursery.live(tmp_path, workers=workers) == 0
    assert Outcome.of(tmp_path) == whole[0]


def test_a_signal_in_the_last_step_of_a_stage_is_not_forgotten(
    nursery: Nursery, whole: tuple[Outcome, dict[str, int]], tmp_path: Path
) -> None:
    """Forwards 13 to 16 are step 4 of 4: the stage ends, and the next one must not begin."""
    assert nursery.live(tmp_path, at=("forward", 15), number=signal.SIGTERM) == 130
    assert (tmp_path / "run" / "stages" / "pretrain" / "stage.json").exists()
    assert not (tmp_path / "run" / "stages" / "instruct").exists()
    assert nursery.live(tmp_path) == 0
    assert Outcome.of(tmp_path) == whole[0]


def test_features_that_a_kill_cut_off_are_made_again_equal(
    nursery: Nursery, whole: tuple[Outcome, dict[str, int]], tmp_path: Path
) -> None:
    """The half-filled cache of the first life is what the second one goes on from."""
    folder = tmp_path / "life"
    assert nursery.live(folder, at=("forward", 1), features="on") == DIED
    index = next((folder / "cache" / "features").rglob("*.jsonl"))
    lines = index.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    index.write_text("".join(lines[:5]) + lines[5][:20])
    assert nursery.live(folder, features="on") == 0
    assert Outcome.of(folder) == whole[0]


def test_another_seed_or_other_rows_are_refused(nursery: Nursery, tmp_path: Path) -> None:
    """Equality would prove nothing if a run paid no attention to where it stands."""
    assert nursery.live(tmp_path, at=("forward", 11)) == DIED
    assert nursery.live(tmp_path, seed=1) == 1
    fewer = Nursery(nursery.process, job(picture_rows(tmp_path / "fewer", 3)))
    assert fewer.live(tmp_path) == 1
