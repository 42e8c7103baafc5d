"""Preferences as published become trees: the prompt once, a branch for each answer. About 4 s."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preference_rows import (
    BAD,
    FOUR,
    GOOD,
    MESSAGES,
    QUESTION,
    ROWS,
    branches,
    message,
    rated,
    row,
    said,
    shown,
    source,
)
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.data.check import check
from quintet.data.sources import Mix, detect, open_source
from quintet.data.sources.preference_layouts import FRAMES, LAYOUTS, layout_of
from quintet.errors import DataError
from quintet.lab.rows import write_rows
from systems import tiny

PROMPT = [("user", f"[a.png]{QUESTION}")]
PAIR = [(1.0, "", {}, GOOD), (0.0, "", {}, BAD)]
EXPECTED: dict[str, tuple[list[Any], list[Any]]] = {
    **{name: (PROMPT, PAIR) for name in ROWS},
    "llava-rlhf": (PROMPT, PAIR[::-1]),
    "llava-rlhf-prompts": (PROMPT, [(None, "", {"caption_type": 3.0, "length_bonus": 0.5}, GOOD)]),
    "hsa-dpo": ([("user", f"[a.jpg]{QUESTION}")],
                [(1.0, "", {"severity": 0.2}, GOOD), (0.0, "", {"severity": 1.8}, BAD)]),
    "halva": (PROMPT, [(1.0, "", {}, "A {1: cup} and a {2: spoon}."),
                       (0.0, "", {}, "A {1: red plate} and a {2: knife}.")]),
    "llava-hound": ([("user", f"[v/c01_1.jpeg][v/c01_2.jpeg][v/c01_10.jpeg]{QUESTION}")], PAIR),
    "ms-swift": (PROMPT, [(1.0, "", {"margin": 0.5}, GOOD), (0.0, "", {"margin": 0.5}, BAD)]),
    "bpo": ([("user", f"{QUESTION}[a.png]")],
            [(1.0, "gt", {}, GOOD), (0.0, "llm-hal", {}, BAD), (0.0, "mllm-hal", {}, "A plate.")]),
    "vlfeedback": (PROMPT, [(5.0, "", {}, "Fine."), (4.0, "", {}, "Good."), (3.0, "", {}, "So so."),
                            (7 / 3, "", {}, "Bad.")]),
    "lvlm-nlf": ([("user", f"[000000151112.png]{QUESTION}{{feedback:  Rating 2. It is no knife.}}")],
                 [(2.0, "", {}, BAD)]),
}  # fmt: skip


# ---- layouts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ROWS)
def test_a_row_as_published_is_a_tree(tmp_path: Path, name: str) -> None:
    opened = source(tmp_path, row(name), row(name))
    assert opened.read(1).faults == ()
    assert shown(opened.sample(1)) == EXPECTED[name]
    assert opened.sample(1).others == ()
    assert opened.sample(1).origin.row == 2
    assert opened.sample(1).origin.id == str(ROWS[name].get("id", ""))


def test_every_layout_has_a_row_here() -> None:
    assert {layout_of(each) for each in ROWS.values()} == set(LAYOUTS)


def test_feedback_goes_on_in_the_branch_of_its_answer(tmp_path: Path) -> None:
    [first] = source(tmp_path, row("lvlm-nlf")).sample(0).root.children
    [second] = first.children
    assert said(second.turns) == [
        ("user", "Look at its shape.{feedback:  Rating 4. All is right.}"),
        ("assistant", GOOD),
    ]
    assert second.answer is not None
    assert (second.answer.score, second.children) == (4.0, ())


def test_a_picture_of_coco_is_also_found_by_its_number(tmp_path: Path) -> None:
    opened = source(tmp_path, row("lvlm-nlf", image_id=151112), row("lvlm-nlf", image_id="151112"))
    assert [opened.sample(n).media()[0].ref.name for n in (0, 1)] == ["000000151112.jpg"] * 2


@pytest.mark.parametrize("words", [{"rejected_response": None}, {"rejected_response": BAD}])
def test_another_picture_is_a_second_tree(tmp_path: Path, words: dict[str, Any]) -> None:
    """ms-swift's `rejected_images`: with the winner's words it is mDPO's pair, and has the name that its loss asks."""
    sample = source(tmp_path, row("ms-swift", rejected_images=["b.png"], margin=None, **words)).sample(0)
    same = words["rejected_response"] is None
    assert shown(sample) == (PROMPT, PAIR[:1])
    [other] = sample.others
    assert said(other.turns) == [("user", f"[b.png]{QUESTION}")]
    assert branches(other) == [(0.0, "unseen", {}, GOOD) if same else (0.0, "", {}, BAD)]


def test_a_video_gives_a_stated_number_of_frames_evenly(tmp_path: Path) -> None:
    opened = source(tmp_path, row("llava-hound", video="long", prompt=f"<video>\n{QUESTION}"))
    (tmp_path / "long").mkdir()
    for n in range(80):
        (tmp_path / "long" / f"{n}.jpg").touch()
    names = [medium.ref.name for medium in opened.sample(0).media()]
    assert FRAMES == 8
    assert names == [f"long/{5 + 10 * n}.jpg" for n in range(8)]
    assert said(opened.sample(0).root.turns)[0][1].endswith(f"]{QUESTION}")


def test_answers_of_the_same_words_are_one_and_unrated_ones_none(tmp_path: Path) -> None:
    """By hand: "Fine." has 5 and, with another blank, 4; its mean is 4.5. The answer that is "N/A" is left out."""
    completions = [*FOUR[:2], rated("Fine. ", "3", "5", "4"), rated("Who knows.", "N/A", "5", "5")]
    reading = source(tmp_path, row("vlfeedback", completions=completions)).read(0)
    assert [(child.answer.score, said(child.turns)[0][1]) for child in reading.children if child.answer] == [
        (4.5, "Fine."), (4.0, "Good."),
    ]  # fmt: skip
    assert {"completions[] (said twice)", "completions[] (unrated)"} <= set(reading.ignored)


@pytest.mark.parametrize("prompt", [QUESTION, [message("user", QUESTION)]])
def test_a_prompt_may_also_begin_both_answers(tmp_path: Path, prompt: Any) -> None:
    opened = source(tmp_path, row("stic", prompt=prompt))
    assert shown(opened.sample(0)) == (PROMPT, PAIR)


def test_a_system_message_and_earlier_turns_are_shared(tmp_path: Path) -> None:
    before = [message("system", "Be short."), message("user", "<image>Hello."), message("assistant", "Hi.")]
    messages = [*before, message("user", QUESTION), MESSAGES[1]]
    opened = source(tmp_path, row("ms-swift", messages=messages))
    assert [role for role, _ in shown(opened.sample(0))[0]] == ["system", "user", "assistant", "user"]
    assert [words for *_, words in branches(opened.sample(0).root)] == [GOOD, BAD]


# ---- files -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
def test_files_of_preferences_are_told_by_their_first_rows(tmp_path: Path, name: str) -> None:
    for key in ROWS:
        source(tmp_path, row(key), row(key), name=name)
        assert detect(tmp_path / name) == "preferences", key


@pytest.mark.parametrize("name", ["rlaif-v", "rlhf-v", "trl", "vlfeedback", "llava-rlhf", "ms-swift, messages"])
def test_a_table_of_preferences_reads_as_the_file_does(tmp_path: Path, name: str) -> None:
    opened = source(tmp_path, row(name))
    pq.write_table(pa.Table.from_pylist([row(name)] * 3), tmp_path / "pairs.parquet")
    table = open_source(tmp_path / "pairs.parquet")
    assert len(table) == 3
    assert table.sample(2).root == opened.sample(0).root


def test_a_table_may_have_completions_by_column_and_pictures_as_bytes(tmp_path: Path) -> None:
    """VLFeedback's card declares a sequence of objects, which parquet has as an object of lists."""
    opened = source(tmp_path, row("vlfeedback"))
    columns = {key: [each[key] for each in FOUR] for key in ("model", "response", "annotations")}
    image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    made = row("vlfeedback", completions=columns, img_path=None, image=image)
    pq.write_table(pa.Table.from_pylist([made]), tmp_path / "pairs.parquet")
    sample = open_source(tmp_path / "pairs.parquet").sample(0)
    assert branches(sample.root) == branches(opened.sample(0).root)
    assert sample.media()[0].ref.data == image["bytes"]


def test_conversations_are_still_conversations(tmp_path: Path) -> None:
    said_ = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    assert source(tmp_path, {"image": "a.png", "conversations": said_}).read(0).children == ()
    assert detect(tmp_path / "pairs.jsonl") == "llava"
    source(tmp_path, {"messages": MESSAGES, "images": ["a.png"]})
    assert detect(tmp_path / "pairs.jsonl") == "messages"


@pytest.mark.parametrize("found", [{"text": "words"}, {"text": '{"question": 1}'}, {"prompt": "a", "completion": "b"}])
def test_a_row_without_comparison_is_no_preference(tmp_path: Path, found: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Tried"):
        source(tmp_path, found)


def test_what_is_nearly_a_layout_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nearest layouts of preferences: rlaif-v \(lacks rejected\)"):
        source(tmp_path, row("rlaif-v", rejected=None))
    [fault] = source(tmp_path, row("rlaif-v"), row("rlaif-v", rejected=None)).read(1).faults
    assert (fault.fault, fault.row) == ("unknown-layout", 2)
    assert "rlaif-v (lacks rejected)" in fault.message
    # One that is also nearly something else is a fault of its row, not of the file.
    [fault] = source(tmp_path, row("llama-factory"), row("llama-factory", rejected=None)).read(1).faults
    assert (fault.fault, fault.row) == ("unknown-layout", 2)
    assert "llama-factory (lacks rejected)" in fault.message


def test_a_file_of_preferences_and_conversations_is_refused(tmp_path: Path) -> None:
    said_ = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]}
    with pytest.raises(DataError, match="two formats"):
        source(tmp_path, row("trl"), said_)


# ---- what is made of them ----------------------------------------------------------------------------------------
def test_answers_go_through_a_template_and_come_out_as_branches(tmp_path: Path) -> None:
    processor = tiny("llava15")[2]
    opened = source(
        tmp_path, row("vlfeedback"), row("halva"), row("lvlm-nlf"), row("ms-swift", rejected_images=["b.png"])
    )
    tokens = processor.tokens(opened.sample(0))
    assert [answer.score for _, answer in tokens.answers] == [5.0, 4.0, 3.0, 7 / 3]
    for node, _ in tokens.answers:
        assert float(tokens.weight[tokens.enter == node].sum()) > 0
    assert len(tokens.items) == 1
    halva = processor.tokens(opened.sample(1))
    assert halva.mark is not None
    for node, _ in halva.answers:
        assert {1, 2} <= set(halva.mark[halva.enter == node].tolist())
    feedback = processor.tokens(opened.sample(2))
    assert [answer.score for _, answer in feedback.answers] == [2.0, 4.0]
    assert "Rating 2." in processor.text(feedback.ids.tolist())
    beside = processor.tokens(opened.sample(3))
    assert [answer.score for _, answer in beside.answers] == [1.0, 0.0]
    assert [item.ref.name for item in beside.items] == ["a.png", "b.png"]


def test_a_mixture_keeps_the_second_tree(tmp_path: Path) -> None:
    opened = source(tmp_path, row("ms-swift", rejected_images=["b.png"]))
    assert Mix([opened], sizes=[2]).sample(1).others == opened.sample(0).others != ()


def test_what_is_seen_of_a_row_are_its_answers_too(tmp_path: Path) -> None:
    source(tmp_path, row("ms-swift", rejected_response=None, rejected_images=["b.png"]))
    for extra in ([], ["--html", str(tmp_path / "sheet.html")]):
        result = CliRunner().invoke(app, ["data", "view", str(tmp_path / "pairs.jsonl"), *extra])
        assert result.exit_code == 0, result.output
        text = (tmp_path / "sheet.html").read_text() if extra else result.output
        assert text.count(GOOD) == 2
        assert "assistant 0 unseen" in text
        assert "assistant 1" in text


def test_preferences_are_not_written_as_conversations(tmp_path: Path) -> None:
    opened = source(tmp_path, row("trl"))
    with pytest.raises(DataError, match="unsupported-part"):
        write_rows(opened, tmp_path / "out.jsonl")


def test_check_counts_good_rows_and_looks_at_every_picture(tmp_path: Path) -> None:
    opened = source(tmp_path, *(row(name, id=n) for n, name in enumerate(ROWS) if name != "hsa-dpo"),
                    row("ms-swift", rejected_images=["none.png"]))  # fmt: skip
    report = check(tmp_path / "pairs.jsonl")
    assert [(fault.row, fault.fault, fault.field) for fault in report.faults] == [
        (len(opened), "missing-file", "image")
    ]
    assert report.good == len(opened) - 1
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "pairs.jsonl"), "--json"])
    assert (result.exit_code, json.loads(result.output)["counts"]) == (1, {"missing-file": 1})
