"""Every fault of a row of preferences by its name, row and field; and no JSON value that does worse. About 4 s."""

import random
from pathlib import Path
from typing import Any

import pytest
from preference_rows import BAD, FOUR, GOOD, MESSAGES, QUESTION, ROWS, message, rated, row, source, turn

from quintet.data.check import check
from quintet.data.sources.base import Faults
from quintet.data.sources.preferences import read_preferences
from quintet.data.sources.root import Root
from quintet.errors import DataError

ELSE = [message("user", "<image>Who is there?"), message("assistant", BAD)]
JUDGED = {"user": QUESTION, "model": GOOD, "rating": "4", "critique NLF": "Right."}


def unrated(*ratings: str | None) -> list[dict[str, Any]]:
    """Four completions, the last with these ratings."""
    last = rated("Last.", *map(str, ratings))
    for note, rating in zip(last["annotations"].values(), ratings, strict=True):
        note["Rating"] = rating
    return [*FOUR[:3], last]


def judged(**more: Any) -> list[dict[str, Any]]:
    made = JUDGED | more
    return [JUDGED, {key: value for key, value in made.items() if value is not None}]


AT = "completions[3].annotations.Helpfulness.Rating"
BAD_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "the same answers": (row("rlaif-v", rejected=GOOD), "same-answer", "rejected"),
    "the same, as messages": (row("trl", rejected=row("trl")["chosen"]), "same-answer", "rejected[0]"),
    "the same about the same picture": (row("ms-swift", rejected_response=None, rejected_images=["a.png"]),
                                        "same-answer", "messages[1]"),
    "all completions the same": (row("bpo", completions=[{"score": n, "response": GOOD} for n in (0, 1)]),
                                 "same-answer", "completions"),
    "another blank": (row("povid", rejected_conversations=[*row("povid")["conversations"][:1],
                                                           turn("gpt", GOOD.replace(" ", "\n"))]),
                      "same-words", "rejected_conversations[1]"),
    "a blank at the end": (row("rlhf-v", text='{"question": "Q?", "chosen": "A", "rejected": "A "}'),
                           "same-words", "text.rejected"),
    "invisible characters": (row("rlaif-v", rejected=GOOD.replace(" ", "\u200b ")), "same-words", "rejected"),
    "an answer of nothing that is seen": (row("rlaif-v", rejected="\u200b\ufeff"), "empty-answer", "rejected"),
    "an empty answer": (row("rlaif-v", chosen=" "), "empty-answer", "chosen"),
    "an empty answer in JSON": (row("rlhf-v", text='{"question": "Q?", "chosen": "A", "rejected": ""}'),
                                "empty-answer", "text.rejected"),
    "an empty answer as turn": (row("llama-factory", rejected=turn("gpt", "")), "empty-answer", "rejected.value"),
    "no message": (row("trl", chosen=[]), "empty-answer", "chosen"),
    "no picture there": (row("rlaif-v", image="none.png"), "missing-file", "image"),
    "no picture of the id": (row("hsa-dpo", id="none"), "missing-file", "image"),
    "no folder of frames": (row("llava-hound", video="none"), "missing-file", "video"),
    "a file for a folder": (row("llava-hound", video="a.png"), "missing-file", "video"),
    "a folder that leaves the root": (row("llava-hound", video="../.."), "outside-root", "video"),
    "no frames": (row("llava-hound", video="empty"), "no-frames", "video"),
    "a preference of three": (row("llava-rlhf", preference=3), "bad-preference", "preference"),
    "a preference in words": (row("llava-rlhf", preference="2"), "bad-preference", "preference"),
    "a preference that is true": (row("llava-rlhf", preference=True), "bad-preference", "preference"),
    "no preference": (row("llava-rlhf", preference=None), "bad-preference", "preference"),
    "a score that is no number": (row("bpo", completions=[{"score": "high", "response": GOOD},
                                                          {"score": 0, "response": BAD}]),
                                  "bad-score", "completions[0].score"),
    "no score": (row("bpo", completions=[{"response": GOOD}, {"score": 0, "response": BAD}]),
                 "bad-score", "completions[0].score"),
    "a severity below 0": (row("hsa-dpo", rejected_score=-1), "bad-score", "rejected_score"),
    "a margin in words": (row("ms-swift", margin="wide"), "bad-score", "margin"),
    "a rating in words": (row("vlfeedback", completions=unrated("four", "1", "1")), "bad-rating", AT),
    "a rating of six": (row("vlfeedback", completions=unrated("6", "1", "1")), "bad-rating", AT),
    "a rating of nothing": (row("vlfeedback", completions=unrated("nan", "1", "1")), "bad-rating", AT),
    "no rating": (row("vlfeedback", completions=unrated(None, "1", "1")), "no-rating", AT),
    "no annotations": (row("vlfeedback", completions=[*FOUR[:3], {"model": "m", "response": "Last."}]), "no-rating",
                       "completions[3].annotations"),
    "equal ratings": (row("vlfeedback", completions=[rated(f"{n}.", "3", "4", "5") for n in range(4)]),
                      "no-preference", "completions[0].response"),
    "one answer": (row("vlfeedback", completions=FOUR[:1]), "no-preference", "completions"),
    "a rating of five in four": (row("lvlm-nlf", interaction=judged(rating="5")), "bad-rating",
                                 "interaction[1].rating"),
    "a critique without rating": (row("lvlm-nlf", interaction=judged(rating=None)), "no-rating",
                                  "interaction[1].rating"),
    "an answer without rating": (row("lvlm-nlf", interaction=judged(rating=None, **{"critique NLF": None})),
                                 "no-rating", "interaction[1].rating"),
    "a rating without answer": (row("lvlm-nlf", interaction=judged(model=None)), "missing-key", "interaction[1]"),
    "no interaction": (row("lvlm-nlf", interaction=[]), "no-answer", "interaction"),
    "two prompts": (row("stic", rejected=ELSE), "two-prompts", "rejected[1]"),
    "two prompts, POVID": (row("povid", rejected_conversations=[turn("human", "<image>Who?"), turn("gpt", BAD)]),
                           "two-prompts", "rejected_conversations[1]"),
    "two prompts, ms-swift": (row("ms-swift", rejected_messages=ELSE), "two-prompts", "rejected_messages[1]"),
    "another prompt besides": (row("stic", prompt="Who is there?"), "two-prompts", "prompt"),
    "no prompt": (row("trl", prompt=None), "missing-key", "prompt"),
    "a spelt conversation": (row("mdpo", prompt=f"{row('mdpo')['prompt']} Yes.</s>USER: And? ASSISTANT:"),
                             "rendered-prompt", "prompt"),
    "two places for a picture": (row("rlaif-v", question="<image><image>What?"), "image-count", "image"),
    "two pictures for a place": (row("llama-factory", images=["a.png", "b.png"]), "image-count", "images"),
    "no place for the other picture": (row("ms-swift", rejected_images=["a.png", "b.png"]), "image-count",
                                       "rejected_images"),
    "a place and no picture": (row("trl, plain", image=None, prompt="<image>What?"), "image-count", "prompt"),
    "a path that leaves the root": (row("mdpo", img_path="../x.png"), "outside-root", "img_path"),
    "another path that leaves": (row("ms-swift", rejected_images=["/etc/passwd"]), "outside-root",
                                  "rejected_images[0]"),
    "an address": (row("trl", images=["https://x/a.png"]), "remote-media", "images[0]"),
    "tags that do not close": (row("halva", correct_answer_masked="A <MASK>cup and a spoon."), "bad-mark",
                               "correct_answer_masked"),
    "an empty phrase": (row("halva", correct_answer_masked="A <MASK> </MASK>cup and a spoon."), "bad-mark",
                        "correct_answer_masked"),
    "other words than the plain": (row("halva", correct_answer="Nothing."), "bad-mark", "correct_answer_masked"),
    "a phrase too few": (row("halva", correct_answer_masked="A <MASK>cup</MASK> and a spoon."), "phrase-count",
                         "hallucinated_answer_masked"),
    "JSON that breaks off": (row("rlhf-v", text='{"question": "Q?", "chosen": "A"'), "invalid-json", "text"),
    "a key that is not known": (row("rlaif-v", chosne="x"), "unknown-key", "chosne"),
    "a key inside that is not known": (row("bpo", completions=[{"score": 1, "response": GOOD, "skore": 2},
                                                               {"score": 0, "response": BAD}]),
                                       "unknown-key", "completions[0].skore"),
    "two keys for pictures": (row("trl", image="a.png"), "wrong-type", "images"),
    "half a letter": (row("lvlm-nlf", interaction=judged(**{"critique NLF": "\ud83d"})), "wrong-type",
                      "interaction[1].critique NLF"),
    "a picture in an answer": (row("rlaif-v", chosen="<image>A cup."), "image-place", "chosen"),
    "a list for text": (row("rlaif-v", question=["What?"]), "wrong-type", "question"),
    "a weight that no float holds": (row("ms-swift", messages=[MESSAGES[0], MESSAGES[1] | {"weight": 10**400}]),
                                     "wrong-type", "messages[1].weight"),
    "an unknown role": (row("ms-swift", messages=[message("me", "<image>What?"), MESSAGES[1]]), "unknown-role",
                        "messages[0].role"),
}  # fmt: skip


def test_every_fault_is_named_with_its_row_and_field(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    good = row("rlaif-v")
    opened = source(tmp_path, good, *(each for each, _, _ in BAD_ROWS.values()), good)
    report = check(tmp_path / "pairs.jsonl")
    found = {(fault.row, fault.fault, fault.field) for fault in report.faults}
    for n, (what, (_, fault, field)) in enumerate(BAD_ROWS.items()):
        here = [each for each in found if each[0] == n + 2]
        assert (n + 2, fault, field) in here, (what, here)
    assert (report.rows, report.faulty, report.good) == (len(opened), len(BAD_ROWS), 2)
    for n in range(1, len(opened) - 1):
        for error in opened.read(n).faults:
            assert error.file == str(tmp_path / "pairs.jsonl")
            assert error.row == n + 1


@pytest.mark.parametrize("what", ["the same answers", "a rating of six", "two pictures for a place", "two prompts"])
def test_a_fault_alone_is_the_only_one(tmp_path: Path, what: str) -> None:
    bad, fault, field = BAD_ROWS[what]
    opened = source(tmp_path, bad)
    assert [(error.fault, error.field) for error in opened.read(0).faults] == [(fault, field)]
    with pytest.raises(DataError, match="row 1"):
        opened.sample(0)


def test_what_is_wrong_with_the_prompt_is_said_once(tmp_path: Path) -> None:
    reading = source(tmp_path, row("vlfeedback", prompt="\ud83d<image>", img_path="../x.png")).read(0)
    assert [(e.fault, e.field) for e in reading.faults] == [
        ("outside-root", "img_path"), ("not-unicode", "prompt"), ("image-count", "img_path"),
    ]  # fmt: skip


def test_both_answers_are_looked_at(tmp_path: Path) -> None:
    reading = source(tmp_path, row("rlaif-v", chosen="", rejected=3)).read(0)
    assert [(e.fault, e.field) for e in reading.faults] == [("empty-answer", "chosen"), ("wrong-type", "rejected")]


def test_the_message_of_a_count_names_the_rows_own_key(tmp_path: Path) -> None:
    [fault] = source(tmp_path, row("mdpo", prompt="<image><image>What?")).read(0).faults
    assert "2 <image> in the text, 1 pictures in `img_path`" in fault.message


# ---- any value in any place --------------------------------------------------------------------------------------
def anything(rng: random.Random, depth: int = 2) -> Any:
    """A JSON value that somebody might have written there."""
    plain = [
        None, True, False, 0, 1, 2, -3, 10**400, 0.5, 1e308, "", " ", "\n", "4", "N/A", "nan", "1e999", "²", "\ud83d",
        "a.png", "v", "..", ".", "/", "\0", "x" * 5000, "<image>", "<video><video>", "<MASK>a</MASK>", "{", "[]",
        '{"question": 1, "chosen": [], "rejected": {}}', "https://x", "data:image/png;base64,!", GOOD, QUESTION,
    ]  # fmt: skip
    if depth and rng.random() < 0.5:
        keys = ("from", "value", "role", "content", "type", "text", "image", "response", "score", "annotations",
                "Rating", "Helpfulness", "user", "model", "rating", "bytes", "path", "loss", "weight", "")  # fmt: skip
        if rng.random() < 0.5:
            return {key: anything(rng, depth - 1) for key in rng.sample(keys, rng.randrange(4))}
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return rng.choice(plain)


def spoilt(value: Any, rng: random.Random) -> Any:
    """The value with something else in one place, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        return value | {key: spoilt(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        n = rng.randrange(len(value))
        return [*value[:n], spoilt(value[n], rng), *value[n + 1 :]]
    return anything(rng)


@pytest.mark.parametrize("name", ROWS)
def test_no_value_in_any_place_does_worse_than_a_fault(tmp_path: Path, name: str) -> None:
    """Two hundred rows each, spoilt once or twice; 1,000 of each were tried when this was written."""
    source(tmp_path, row(name))
    rng, root = random.Random(name), Root.at(tmp_path)
    faulty = 0
    for n in range(200):
        bad = spoilt(row(name), rng)
        for _ in range(rng.randrange(2)):
            bad = spoilt(bad, rng)
        faults = Faults("fuzz", n + 1)
        told = read_preferences(bad, faults, root=root)
        assert all(isinstance(error, DataError) and error.row == n + 1 and error.file for error in faults.found)
        assert bool(faults.found) != bool(told.children), bad
        faulty += bool(faults.found)
    assert 20 < faulty < 200
