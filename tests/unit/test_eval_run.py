"""Running a task: controls, order, batches, limits, faults and files, with answerers that really read the media."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quintet.errors import DataError
from quintet.evaluation.metrics.chair import Chair
from quintet.evaluation.metrics.exact import ExactMatch
from quintet.evaluation.metrics.metric import Metric
from quintet.evaluation.metrics.pope import Pope
from quintet.evaluation.run import Answer, Output, ask, evaluate
from quintet.evaluation.shuffle import shuffled
from quintet.evaluation.task import Item, Task
from quintet.values import Media, Ref, Sample, Text

COLOURS = ("red", "green", "blue")


def picture(name: str, data: bytes | None = None) -> Media:
    return Media("image", Ref(name, data=name.encode() if data is None else data))


def colour_of(data: bytes, question: str) -> str:
    """A function of every byte of the picture and every letter of the question."""
    return COLOURS[hashlib.sha256(data + question.encode()).digest()[0] % 3]


def items(n: int = 60, per_picture: int = 3) -> list[Item]:
    """`n` questions whose right answer is that function, three on each picture, of two kinds."""
    made = []
    for i in range(n):
        medium, question = picture(f"picture-{i // per_picture}"), "what" + "?" * (i % 7) + str(i)
        truth = colour_of(medium.ref.read(), question)
        made.append(Item(f"q{i:03d}", (medium, Text(question)), truth, kind="even" if i % 2 == 0 else "odd"))
    return made


def task_of(made: Sequence[Item], metric: Metric | None = None, headline: str = "") -> Task:
    return Task("toy", "1", metric or ExactMatch(), lambda: made, headline)


def parts_of(sample: Sample) -> tuple[bytes, str]:
    [turn] = sample.turns()
    [medium] = sample.media()
    return medium.ref.read(), next(part.text for part in turn.parts if isinstance(part, Text))


def sees(samples: list[Sample]) -> list[str]:
    return [colour_of(*parts_of(sample)) for sample in samples]


def half_blind(samples: list[Sample]) -> list[str]:
    """Wrong on some prompts, by a function of the prompt."""
    return [c if len(q) % 3 else "red" for c, (_, q) in zip(sees(samples), map(parts_of, samples), strict=True)]


def evaluated(made: Sequence[Item], answer: Answer = half_blind, **settings: int) -> dict:
    result = evaluate(answer, task_of(made), **settings).to_json()
    return {key: value for key, value in result.items() if key != "seconds"}


# ---- scores and controls -----------------------------------------------------------------------------------------
def test_who_sees_is_right_and_falls_to_chance_on_shuffled_media() -> None:
    """Three equally likely answers: chance is 1/3; 300 items, 4 standard errors are 0.11."""
    result = evaluate(sees, task_of(items(300)))
    assert (result.score, result.interval, result.n) == (1, (1, 1), 300)
    assert result.kinds == {"even": 1, "odd": 1}
    shuffled_score = result.controls["shuffled"]
    assert shuffled_score == pytest.approx(1 / 3, abs=0.11)


def test_who_does_not_look_scores_the_same_on_shuffled_media() -> None:
    result = evaluate(lambda samples: ["red"] * len(samples), task_of(items()))
    assert result.controls["shuffled"] == result.score


def test_the_majority_control_is_the_best_constant_answer_of_each_kind() -> None:
    """Kind a: red 2 of 3. Kind b: blue 1 of 1. Three of four right."""
    made = [
        Item(str(i), (picture(str(i)),), truth, kind=kind)
        for i, (kind, truth) in enumerate([("a", "red"), ("a", "red"), ("a", "blue"), ("b", "blue")])
    ]
    result = evaluate(lambda samples: ["green"] * len(samples), task_of(made))
    assert (result.score, result.controls["majority"]) == (0, 0.75)
    assert result.majority_answers == {"a": "red", "b": "blue"}
    assert result.control_kinds["majority"] == pytest.approx({"a": 2 / 3, "b": 1})


def test_the_majority_of_a_measure_where_less_is_better_is_its_lowest() -> None:
    """Captions "a cat" and "a dog" over pictures {cat}, {cat}, {dog}: CHAIR-i 1/3 against 2/3."""
    made = [
        Item(str(i), (picture(str(i)),), {"objects": [name], "captions": [f"a {name}"]})
        for i, name in enumerate(["cat", "cat", "dog"])
    ]
    metric = Chair(lambda text: [word for word in text.split() if word in ("cat", "dog")])
    result = evaluate(lambda samples: ["a dog cat"] * len(samples), task_of(made, metric))
    assert result.score == 0.5
    assert not result.higher_is_better
    assert result.controls["majority"] == pytest.approx(1 / 3)


def test_a_headline_kind_is_scored_alone_and_all_kinds_are_reported() -> None:
    made = [
        Item(f"{kind}{i}", (picture(f"{i}"),), "yes" if i % 2 else "no", kind=kind)
        for kind in ("random", "popular")
        for i in range(10)
    ]
    answers = {item.parts: item.truth for item in made}

    def answer(samples: list[Sample]) -> list[str]:
        return [answers[next(s.turns()).parts] for s in samples]

    result = evaluate(answer, task_of(made, Pope(), headline="random"))
    assert (result.score, result.n, result.kinds) == (1, 10, {"popular": 1, "random": 1})
    assert result.counts["items"] == 20
    assert result.controls["majority"] == pytest.approx(2 / 3)


def test_a_headline_without_items_is_refused() -> None:
    with pytest.raises(DataError, match="no item of kind 'random' among 3"):
        evaluate(sees, task_of(items(3), headline="random"))


# ---- nothing depends on batches and order ------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    assert evaluated(items(), batch_size=batch_size) == evaluated(items(), batch_size=16)


@pytest.mark.parametrize("limit", [None, 25])
def test_the_order_of_the_data_changes_nothing(limit: int | None) -> None:
    made = items()
    mixed = random.Random(3).sample(made, len(made))
    assert evaluated(mixed, limit=limit) == evaluated(made, limit=limit)


def test_answers_return_to_their_items_though_they_are_asked_by_length() -> None:
    made = items()
    lengths: list[int] = []

    def answer(samples: list[Sample]) -> list[str]:
        lengths.extend(len(parts_of(sample)[1]) for sample in samples)
        return [parts_of(sample)[1] for sample in samples]

    outputs = ask(answer, made, batch_size=8)
    assert [output.text for output in outputs] == [item.prompt for item in made]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3, "the order matters here"


def test_a_limit_keeps_the_same_items_for_one_seed_and_others_for_another() -> None:
    def asked(seed: int, limit: int) -> set[str]:
        seen: set[str] = set()

        def answer(samples: list[Sample]) -> list[str]:
            seen.update(parts_of(sample)[1] for sample in samples)
            return [""] * len(samples)

        assert evaluate(answer, task_of(items()), limit=limit, seed=seed).n == limit
        return seen

    assert asked(0, 20) == asked(0, 20)
    assert asked(0, 20) != asked(1, 20)
    assert asked(0, 20) < asked(0, 30), "a larger limit adds items and drops none"


def test_a_limit_above_the_number_of_items_keeps_all() -> None:
    assert evaluated(items(5), limit=100) == evaluated(items(5))


def test_progress_counts_every_prompt() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(sees, task_of(items(10)), batch_size=8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 20), (16, 20), (20, 20)]


# ---- shuffling ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_no_item_keeps_its_media_and_every_medium_is_used_as_often_as_others_let_it(seed: int) -> None:
    made = items()
    swapped = shuffled(made, seed=seed)
    assert swapped.keys() == set(range(len(made)))
    for i, item in swapped.items():
        assert item.media != made[i].media
        assert replace(item, parts=made[i].parts) == made[i], "only the media change"
    assert {item.media for item in swapped.values()} == {item.media for item in made}


def test_who_gets_whose_media_does_not_depend_on_the_order_of_the_items() -> None:
    made = items()
    forth = {item.id: item for item in shuffled(made, seed=0).values()}
    back = {item.id: item for item in shuffled(made[::-1], seed=0).values()}
    assert forth == back
    assert forth != {item.id: item for item in shuffled(made, seed=1).values()}


def test_media_go_to_items_with_as_many_of_the_same_kind() -> None:
    def video(name: str) -> Media:
        return Media("video", Ref(name, data=name.encode()))

    made = [
        Item("a", (picture("1"), Text("x"), picture("2")), ""),
        Item("b", (Text("y"), picture("3"), picture("4")), ""),
        Item("c", (picture("5"),), ""),
        Item("d", (video("6"),), ""),
        Item("e", (video("7"),), ""),
        Item("f", (Text("no media"),), ""),
    ]
    swapped = shuffled(made, seed=0)
    assert swapped.keys() == {0, 1, 3, 4}, "the only single picture and the text have nobody to take from"
    assert swapped[0].parts == (picture("3"), Text("x"), picture("4"))
    assert swapped[3].media == (video("7"),)


def test_items_on_one_picture_cannot_be_shuffled_and_say_so() -> None:
    made = [replace(item, parts=(picture("one"), *item.parts[1:])) for item in items(6)]
    result = evaluate(sees, task_of(made))
    assert result.controls["shuffled"] is None
    assert result.counts["shuffled"] == 0


# ---- faults ------------------------------------------------------------------------------------------------------
def failing(broken: str) -> Callable[[list[Sample]], Iterator[str]]:
    def answer(samples: list[Sample]) -> list[str]:
        for sample in samples:
            if parts_of(sample)[0] == broken.encode():
                raise DataError("truncated", "the picture ends early", file=broken)
        return sees(samples)

    return answer


def test_an_unreadable_picture_costs_its_own_questions_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = items(12)
    result = evaluate(failing("picture-2"), task_of(made), batch_size=5, out=tmp_path)
    assert (result.n, result.score) == (12, 9 / 12)
    assert result.counts == {"items": 12, "empty": 3, "failed": 3, "shuffled": 12}
    lines = [json.loads(line) for line in (tmp_path / "eval/toy.jsonl").read_text().splitlines()]
    failed = [line for line in lines if "fault" in line]
    assert [line["id"] for line in failed] == ["q006", "q007", "q008"]
    assert failed[0]["fault"] == "picture-2: the picture ends early"
    assert failed[0]["scored"]["correct"] is False
    assert caplog.messages[-1] == "toy: 3 of 12 answers are empty; 3 could not be asked"


def test_empty_answers_are_counted_and_stay(caplog: pytest.LogCaptureFixture) -> None:
    result = evaluate(lambda samples: ["  "] * len(samples), task_of(items(4)))
    assert (result.counts["empty"], result.counts["failed"], result.n, result.score) == (4, 0, 4, 0)
    assert caplog.messages == ["toy: 4 of 4 answers are empty"]


def test_too_few_answers_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="3 answers to 4 prompts"):
        ask(lambda samples: ["x"] * (len(samples) - 1), items(4), batch_size=4)


def test_ids_must_differ_and_something_must_be_asked() -> None:
    with pytest.raises(DataError, match="'q000' is used twice"):
        task_of(items(1) * 2).items()
    with pytest.raises(DataError, match="nothing to ask"):
        task_of([]).items()


# ---- what is given to the model and what is written --------------------------------------------------------------
def test_a_prompt_is_one_user_turn_after_the_datas_own_system_message() -> None:
    item = Item("a", (picture("1"), Text("what?")), "x", system="be brief")
    assert [turn.role for turn in item.sample().turns()] == ["system", "user"]
    assert [turn.role for turn in replace(item, system="").sample().turns()] == ["user"]


def test_the_result_file_has_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    made = items(30)
    result = evaluate(half_blind, task_of(made), out=tmp_path)
    data = json.loads((tmp_path / "eval/toy.json").read_text())
    assert data == result.to_json()
    assert data.keys() >= {"score", "interval", "n", "controls", "kinds", "version", "seconds"}
    assert data["controls"].keys() == {"majority", "shuffled"}
    assert data["interval"][0] <= data["score"] <= data["interval"][1]


def test_every_item_has_a_line_that_says_how_it_was_scored(tmp_path: Path) -> None:
    made = items(9)
    result = evaluate(half_blind, task_of(made), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "eval/toy.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [item.id for item in made]
    assert sum(line["scored"]["correct"] for line in lines) / len(lines) == result.score
    outputs = half_blind([item.sample() for item in made])
    for line, item, output in zip(lines, made, outputs, strict=True):
        assert (line["output"], line["truth"], line["kind"], line["prompt"]) == (
            output,
            item.truth,
            item.kind,
            item.prompt,
        )
        assert line["media"] == [item.media[0].ref.name] != line["shuffled"]["media"]


def test_writing_leaves_nothing_but_the_two_files_and_replaces_older_ones(tmp_path: Path) -> None:
    for limit in (9, 6):
        evaluate(sees, task_of(items(12)), limit=limit, out=tmp_path)
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["toy.json", "toy.jsonl"]
    ids = [json.loads(line)["id"] for line in (tmp_path / "eval/toy.jsonl").read_text().splitlines()]
    assert len(ids) == 6
    assert ids == sorted(ids)


def test_other_data_has_another_fingerprint() -> None:
    made = items(6)
    other = [replace(made[0], truth="something else"), *made[1:]]
    assert evaluated(made)["items_sha256"] != evaluated(other)["items_sha256"]


def test_an_output_is_kept_raw() -> None:
    [output] = ask(lambda samples: ["  Red.\n"], items(1), batch_size=1)
    assert output == Output("  Red.\n")
