"""What a comparison says of its scores: paired intervals over seeds, judged again, and what differed. About 5 s."""

from pathlib import Path
from typing import Any

import compare_fixtures
import numpy as np
import pytest

from quintet.errors import CheckpointError
from quintet.evaluation.bootstrap import interval, percentiles, resampled
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.table import Judged, _statistics, judge
from quintet.lab.differs import differing, recipe_differs, said
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale
from quintet.recipes._templates import MINIGPT_V2, VICUNA_V1
from quintet.values import Region, Sample

scenes = compare_fixtures.scenes


# ---- statistics --------------------------------------------------------------------------------------------------
def shares(right: "slice | np.ndarray", n: int = 100) -> np.ndarray:
    sums = np.zeros((n, 2))
    sums[right, 0], sums[:, 1] = 1, 1
    return sums


def value(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_one_run_has_the_interval_of_an_evaluation() -> None:
    sums = shares(slice(30))
    assert percentiles(resampled([[sums]], value)[0]) == interval(sums, value)


def test_a_difference_is_paired_item_by_item() -> None:
    """70 and 62 of 100 right, the 62 among the 70. Alone the intervals overlap; paired, 8 items differ and all one way:
    0.08 ± 1.96·√(0.08·0.92/100) = 0.027 … 0.133."""
    one, two = resampled([[shares(slice(62))], [shares(slice(70))]], value, resamples=4000)
    assert percentiles(one)[1] > percentiles(two)[0]
    assert percentiles(two - one) == pytest.approx((0.027, 0.133), abs=0.011)


def test_seeds_that_disagree_widen_the_interval() -> None:
    """The same mean of 0.5: two equal seeds, and one that has 0.1 with one that has 0.9."""
    equal, unequal = resampled([[shares(slice(50))] * 2, [shares(slice(10)), shares(slice(90))]], value)
    assert percentiles(equal)[1] < 0.62
    assert percentiles(unequal)[1] > 0.85
    assert unequal.mean() == pytest.approx(0.5, abs=0.03)


def test_a_control_is_beaten_only_where_intervals_do_not_touch() -> None:
    task = scenes_task("scenes.vqa", Path())
    result = {
        "score": 0.0,
        "metric": "exact match",
        "n": 100,
        "counts": {"items": 100},
        "controls": {"majority": 0.3},
        "measures": {},
        "seconds": 1,
    }
    judged = {
        name: {0: Judged(shares(slice(own)), shares(slice(100 - control, 100)), result)}
        for name, own, control in (("clear", 80, 40), ("close", 50, 45), ("below", 20, 60))
    }
    scores, between = _statistics(task, judged)
    assert {name: score["beats_shuffled"] for name, score in scores.items()} == {
        "clear": True, "close": False, "below": False,
    }  # fmt: skip
    assert scores["clear"]["shuffled"]["score"] == 0.4
    assert between["clear"]["close"][0] == pytest.approx(-0.3)
    lower, _ = _statistics(scenes_task("scenes.chair", Path()), {"a": {0: replaced(0.1, 0.6, result)}})
    assert lower["a"]["beats_shuffled"]


def replaced(own: float, control: float, result: dict[str, Any]) -> Judged:
    """CHAIR's sums: wrong mentions and all mentions in the first two columns."""
    made = [np.zeros((100, 7)) for _ in range(2)]
    for sums, wrong in zip(made, (own, control), strict=True):
        sums[: round(100 * wrong), 0], sums[:, 1] = 1, 1
    return Judged(made[0], made[1], result)


def test_answers_are_judged_again_to_the_score_that_was_written(scenes: Path, tmp_path: Path) -> None:
    """A model that always says yes, and that with shuffled pictures."""
    task = scenes_task("scenes.pope", scenes)
    asked = Asked(task, {item.id: item for item in task.items()}, 20)
    assert judge(tmp_path, asked, VICUNA_V1) is None

    def yes(samples: list[Sample]) -> list[str]:
        return ["yes"] * len(samples)

    result = evaluate(yes, task, limit=20, out=tmp_path)
    found = judge(tmp_path, asked, VICUNA_V1)
    assert found is not None
    assert float(task.metric.value(found.own.sum(axis=0))) == result.score
    assert found.shuffled is not None
    assert float(task.metric.value(found.shuffled.sum(axis=0))) == result.controls["shuffled"]
    place = tmp_path / "eval" / "scenes.pope.jsonl"
    place.write_text(place.read_text().replace('"output": "yes"', '"output": "no"'))
    with pytest.raises(CheckpointError, match="delete it"):
        judge(tmp_path, asked, VICUNA_V1)


def test_boxes_are_judged_again_as_the_recipe_spells_them(scenes: Path, tmp_path: Path) -> None:
    task = scenes_task("scenes.grounding", scenes)
    asked = Asked(task, {item.id: item for item in task.items()}, 10)
    truths = {(item.media[0].ref.name, item.prompt): item.truth for item in asked.items.values()}

    def right(samples: list[Sample]) -> list[str]:
        parts = [sample.root.turns[0].parts for sample in samples]
        boxes = [Region("box", tuple(truths.get((p[0].ref.name, p[1].text), (0.0, 0.0, 0.1, 0.1)))) for p in parts]  # type: ignore[union-attr]
        return [MINIGPT_V2.regions.format([box]) for box in boxes]

    def read(prompt: Sample, text: str) -> list[Region]:
        return MINIGPT_V2.read_regions(text, prompt.media())

    result = evaluate(right, task, read=read, limit=10, out=tmp_path)
    assert result.score == 1
    found = judge(tmp_path, asked, MINIGPT_V2)
    assert found is not None
    assert float(task.metric.value(found.own.sum(axis=0))) == 1
    with pytest.raises(CheckpointError, match="delete it"):
        judge(tmp_path, asked, VICUNA_V1)


# ---- what differed -----------------------------------------------------------------------------------------------
def test_what_differs_is_named_by_its_path() -> None:
    one, two = (at_scale(load_recipe(name)[1], "tiny") for name in ("llava", "llava15"))
    found = recipe_differs(one, two)
    assert found["model.encoders.image.image.fit"] == ("crop", "pad")
    assert "model.connectors.image: Linear → Mlp" in said(found)
    assert not any(path.startswith("paper") or (path.endswith(".name") and "data" in path) for path in found)
    assert recipe_differs(one, one) == {}


def test_tokens_that_are_added_stand_in_one_place() -> None:
    """Those of a region format are added by the template: Kosmos-2's boxes are tokens."""
    differs = recipe_differs(load_recipe("llava")[1], load_recipe("kosmos2")[1])
    paths = [path for path in differs if "added" in path]
    assert paths
    assert not any("regions.added" in path for path in paths)


def test_parts_of_different_classes_differ_as_wholes() -> None:
    one, two = {"type": "m:A.Config", "x": 1}, {"type": "m:B.Config", "x": 1}
    assert differing({"part": one}, {"part": two}) == {"part": (one, two)}
    assert differing({"stages": [1]}, {"stages": [1, 2]}) == {"stages.1": ("absent", 2)}
