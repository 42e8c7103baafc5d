"""Rows that an objective cannot learn from are met where steps are planned: dropped, counted, named by file and row."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import picture
from quintet.components.lora import Lora
from quintet.data.contrast import Contrast
from quintet.data.drops import Drops
from quintet.data.pipeline import Planner, StepPlan
from quintet.data.sources import open_source
from quintet.errors import TrainingError
from quintet.training.objectives.preference import Preference
from quintet.training.objectives.reward import Reward
from quintet.training.planning import planner
from quintet.training.stage import Rate, Stage
from systems import Small

PAIR = {"image": "a.png", "prompt": "What is here?", "chosen": "A red circle.", "rejected": "A blue square is here."}
GRADED = {"image": "a.png", "question": "What is here?", "chosen": "A circle.", "rejected": "A dog.", "id": 1}
TREE = {
    "image": "a.png",
    "prompt": "Describe.",
    "completions": [{"response": f"It is {n}.", "score": n, "type": "a"} for n in (3, 2, 1)],
}
MARKED = {
    "id": 5, "image": "a.png", "tag": "closed", "question": "<image>\nWhat is here?",
    "correct_answer": "A cup.", "correct_answer_masked": "A <MASK>cup</MASK>.",
    "hallucinated_answer": "A plate.", "hallucinated_answer_masked": "A <MASK>plate</MASK>.",
}  # fmt: skip
SWIFT = {
    "messages": [{"role": "user", "content": "<image>What is here?"}, {"role": "assistant", "content": "A cup."}],
    "images": ["a.png"], "rejected_response": "A plate.",
}  # fmt: skip
TALK = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Ho."}]}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, str]] = {
    "severity": (
        GRADED | {"chosen_score": 0.0, "rejected_score": 2.0}, PAIR,
        {"preference": Preference(terms={"severity": 1.0})}, "no-number", "no 'severity'",
    ),
    "the better answer's severity": (
        GRADED | {"chosen_score": 0.5, "rejected_score": 2.0}, GRADED | {"rejected_score": 2.0},
        {"preference": Preference(terms={"severity": 1.0}, won_weight="severity")}, "no-number", "no 'severity'",
    ),
    "a picture to make worse": (
        PAIR, {key: value for key, value in PAIR.items() if key != "image"},
        {"preference": Preference(terms={"unseen": 1.0}), "contrast": Contrast()}, "no-answer", "without a picture",
    ),
    "two answers that differ": (
        PAIR, TREE, {"preference": Preference(gamma=5.0), "differences": True}, "not-two", "3 answers are compared",
    ),
    "marks for gamma": (MARKED, PAIR, {"preference": Preference(gamma=5.0)}, "no-marks", "set differences=true"),
    "a reward's margin": (
        SWIFT | {"margin": 2.0}, SWIFT,
        {"objective": "reward", "reward": Reward(margin=True)}, "no-number", "no 'margin'",
    ),
    "phrases": (MARKED, PAIR, {"preference": Preference(terms={"phrases": 1.0})}, "no-phrases", "no phrase is marked"),
}  # fmt: skip
"""What a term needs → a row that has it, one that has not, the stage, the fault, what is said."""


@pytest.fixture(scope="module")
def small() -> Small:
    return Small("llava15")


def planned(small: Small, folder: Path, good: Mapping[str, Any], bad: Mapping[str, Any], **stage: Any) -> Planner:
    """Nineteen rows that can be learnt from and, as the eighth, one that cannot."""
    picture(0).save(folder / "a.png")
    rows = [bad if n == 7 else good for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"objective": "preference", "train": {"llm": Rate(lr=1e-4, lora=Lora(rank=2))}, "batch": 20} | stage
    made: Stage = replace(small.recipe.stages[1], **given)
    source = open_source(folder / "rows.jsonl", root=folder)
    return planner(small.model, made, source, small.processor.tokenizer, seed=0)


@pytest.mark.parametrize(("good", "bad", "stage", "fault", "said"), CASES.values(), ids=CASES)
def test_a_row_without_what_a_term_needs_is_dropped_and_named(
    good: dict[str, Any], bad: dict[str, Any], stage: dict[str, Any], fault: str, said: str,
    small: Small, tmp_path: Path,
) -> None:  # fmt: skip
    plan = planned(small, tmp_path, good, bad, **stage).step(0)
    assert [(error.fault, error.row) for error in plan.dropped] == [(fault, 8)]
    assert "rows.jsonl, row 8" in str(plan.dropped[0])
    assert said in str(plan.dropped[0])
    assert len(_samples(plan)) == 19
    drops = Drops(limit=0.5, rows=20)
    drops.take(plan)
    assert drops.faults == {fault: 1}
    with pytest.raises(TrainingError, match=rf"101 of 120 samples were dropped \(1 {fault}, 100 other\).*row 8"):
        Drops(limit=0.01, rows=200, seen=100, faults={"other": 100}).take(plan)


def test_answers_that_none_of_which_is_better_are_no_pair(small: Small, tmp_path: Path) -> None:
    """Conversations have no answers to compare; a stage that compares does not count them as learnt."""
    plans = planned(small, tmp_path, TALK, TALK, preference=Preference())
    with pytest.raises(TrainingError, match="no answer is better than another one"):
        plans.step(0)


def _samples(plan: StepPlan) -> list[object]:
    return [tokens for group in plan.micro for row in group for tokens in row]
