"""RUN/: whole checkpoints only, the newest two, and metrics that are rewound to where the run goes on. Under 1 s."""

import json
from pathlib import Path
from typing import Any

import pytest

from quintet.errors import CheckpointError
from quintet.training.folder import Metrics, RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    return folder


def write(run: RunFolder, stage: str, step: int) -> None:
    aside = run.aside(f"{stage}-{step:07d}")
    (aside / "state").mkdir()
    (aside / "state" / "weights").write_text(f"{stage} {step}")
    run.commit(aside, {"stage": stage, "step": step})


def names(run: RunFolder) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir())


def test_the_newest_two_of_a_stage_are_kept(run: RunFolder) -> None:
    for step in (2, 4, 10, 6):
        write(run, "a", step)
    write(run, "b", 1)
    assert names(run) == ["a-0000006", "a-0000010", "b-0000001"]
    latest = run.latest("a")
    assert latest is not None
    assert (latest.step, (latest.path / "state" / "weights").read_text()) == (10, "a 10")


def test_a_checkpoint_that_was_not_finished_does_not_count(run: RunFolder) -> None:
    write(run, "a", 1)
    (run.aside("a-0000002") / "state").mkdir()
    (run.checkpoints / "a-0000003").mkdir()
    latest = run.latest("a")
    assert latest is not None
    assert latest.step == 1
    assert run.latest("c") is None


def test_what_an_unfinished_one_left_is_not_mixed_into_the_next(run: RunFolder) -> None:
    (run.aside("a-0000001") / "stray").touch()
    write(run, "a", 1)
    assert not (run.checkpoints / "a-0000001" / "stray").exists()


def test_the_same_step_written_again_replaces_the_old_one(run: RunFolder) -> None:
    for _ in range(2):
        write(run, "a", 1)
    assert names(run) == ["a-0000001"]


def test_a_finished_stage_forgets_its_own_checkpoints_and_no_others(run: RunFolder) -> None:
    for stage in ("a", "a-b"):
        write(run, stage, 1)
        run.aside(f"{stage}-0000002")
    run.forget("a")
    assert names(run) == [".a-b-0000002", "a-b-0000001"]


def test_a_stage_is_finished_when_it_says_so(run: RunFolder) -> None:
    run.stage("a").mkdir(parents=True)
    (run.stage("a") / "trained.safetensors").touch()
    assert not run.finished("a")
    (run.stage("a") / "stage.json").touch()
    assert run.finished("a")


# ---- metrics -----------------------------------------------------------------------------------------------------
def rows(*found: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"stage": stage, "step": step} for stage, step in found]


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "deep" / "metrics.jsonl")
    metrics.write({"stage": "a", "step": 1})
    assert Metrics.read(metrics.path) == rows(("a", 1))
    metrics.close()


def test_rewinding_drops_later_steps_of_the_stage_and_the_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = rows(("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3))
    path.write_text("".join(json.dumps(row) + "\n" for row in before) + '{"stage": "b", "st')
    metrics = Metrics(path)
    metrics.rewind("b", 1)
    metrics.write({"stage": "b", "step": 2, "again": True})
    metrics.close()
    assert Metrics.read(path) == [*before[:3], {"stage": "b", "step": 2, "again": True}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rewinding_nothing_is_nothing(tmp_path: Path) -> None:
    Metrics(tmp_path / "none.jsonl").rewind("a", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_metrics_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is .* the folder of a run"):
        Metrics.read(tmp_path / "metrics.jsonl")
