"""Captions found by pictures and pictures by captions: what is right, what is counted, and the control. About 5 s."""

from pathlib import Path
from typing import Any

import pytest

from quintet.data.scenes import World, make_scenes
from quintet.evaluation.metrics.recall import DIRECTIONS, Recall
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.retrieval import retrieval_items
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.values import Media, Sample, Text


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("retrieval") / "scenes"
    make_scenes(out, 24, 0, World())
    return out


def sees(scenes: Path, split: str) -> Any:
    """A ranker that reads the truth of the picture that it is shown."""
    said = {i.media[0].ref.name: i.truth["right"] for i in retrieval_items(scenes, split) if i.kind == DIRECTIONS[0]}

    def read(sample: Sample) -> tuple[bool, str, str]:
        """Whether the picture is the query, its name, and the caption."""
        first, second = (part for turn in sample.turns() for part in turn.parts)
        text = second if isinstance(first, Media) else first
        assert isinstance(text, Text)
        return isinstance(first, Media), sample.media()[0].ref.name, text.text

    def rank(samples: list[Sample]) -> list[str]:
        answers = []
        pairs = [(*read(sample), sample.origin.id) for sample in samples]
        for by_picture, name, text, _ in pairs:
            others = [pair for pair in pairs if pair[0] == by_picture]
            if by_picture:
                ranked = sorted({t for _, _, t, _ in others}, key=lambda t: t not in said[name])
            else:
                ranked = [place for *_, place in sorted(others, key=lambda pair: text not in said[pair[1]])]
            answers.append("\n".join(ranked))
        return answers

    return rank


def test_who_sees_finds_everything_and_nothing_with_the_pictures_shuffled(scenes: Path) -> None:
    task = scenes_task("scenes.retrieval", scenes, split="train")
    result = evaluate(sees(scenes, "train"), task)
    assert (result.score, result.kinds) == (1.0, dict.fromkeys(DIRECTIONS, 1.0))
    shuffled = result.controls["shuffled"]
    assert shuffled is not None
    assert shuffled < 0.1
    assert result.controls["majority"] is not None
    assert result.controls["majority"] < 0.2


def test_a_caption_is_right_for_every_picture_of_which_the_same_is_said(tmp_path: Path) -> None:
    """Two pictures of one small square without a digit or a word: the same sentence, and one candidate for both."""
    world = World(max_objects=1, digit=0.0, word=0.0)
    make_scenes(tmp_path / "scenes", 200, 0, world)
    items = retrieval_items(tmp_path / "scenes", "train")
    shared = [i for i in items if i.kind == DIRECTIONS[1] and len(i.truth["right"]) > 1]
    assert shared, "of 864 sentences some are said twice"
    for item in shared:
        places = [i for i in items if i.kind == DIRECTIONS[1] and i.origin.id in item.truth["right"]]
        assert {i.prompt for i in places} == {item.prompt}
        others = [i for i in items if i.kind == DIRECTIONS[1] and i.origin.id not in item.truth["right"]]
        assert item.prompt not in {i.prompt for i in others}


def test_order_of_sentences_does_not_make_another_caption(scenes: Path) -> None:
    for item in retrieval_items(scenes, "train"):
        if item.kind == DIRECTIONS[0]:
            assert item.prompt in item.truth["right"]


def test_recall_counts_the_first_right_name() -> None:
    metric = Recall()
    names = [f"n{i}" for i in range(10)]
    truths = [
        {"direction": d, "right": r} for d, r in zip(DIRECTIONS * 2, (["n0"], ["n4", "x"], ["n9"], ["y"]), strict=True)
    ]
    judged = metric.judge(["\n".join(names)] * 4, truths)
    assert [how["rank"] for how in judged.how] == [1, 5, 10, None]
    total = judged.sums.sum(0)
    assert float(metric.value(total)) == 0.25
    assert metric.measures(total) == {
        "image to text R@1": 0.5,
        "image to text R@5": 0.5,
        "image to text R@10": 1.0,
        "text to image R@1": 0.0,
        "text to image R@5": 0.5,
        "text to image R@10": 0.5,
    }
    assert metric.judge([""], truths[:1]).how == [{"correct": False, "rank": None}]
