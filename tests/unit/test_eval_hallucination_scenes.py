"""Scenes' tasks of hallucination: what is asked is true, and what honest, silent, blind and lying answerers score."""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintet.data.scenes import OBJECTS, Occurrences, Truth, caption, make_scenes, read_truth
from quintet.data.scenes.vocabulary import PLACES
from quintet.data.scenes.world import Object
from quintet.evaluation.run import Answer, Result, evaluate
from quintet.evaluation.task import Item
from quintet.evaluation.tasks.catalogue import TASKS, find_task
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.evaluation.tasks.scenes_hallucination import HALLUCINATION, PROMPTS, expected
from quintet.evaluation.tasks.scenes_mmhal import TYPES
from quintet.evaluation.tasks.scenes_rating import rate
from quintet.values import Sample, Text

Knows = Callable[[Truth, str], str]
"""The whole truth of a picture and a question → an answer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("hal") / "scenes", 1, 7, splits={"val": 0, "test": 64})


@pytest.fixture(scope="module")
def truths(folder: Path) -> dict[str, Truth]:
    return {truth.image.stem: truth for truth in read_truth(folder / "test.truth.jsonl")}


def answers_by(truths: dict[str, Truth], knows: Knows) -> Answer:
    """Finds the picture by its bytes, so that shuffled media change what is known."""
    by_bytes = {hashlib.sha256(truth.image.read_bytes()).hexdigest(): truth for truth in truths.values()}

    def answer(samples: list[Sample]) -> list[str]:
        found = []
        for sample in samples:
            [medium] = sample.media()
            [turn] = sample.turns()
            question = next(part.text for part in turn.parts if isinstance(part, Text))
            found.append(knows(by_bytes[hashlib.sha256(medium.ref.read()).hexdigest()], question))
        return found

    return answer


def run(name: str, folder: Path, truths: dict[str, Truth], knows: Knows) -> Result:
    return evaluate(answers_by(truths, knows), scenes_task(name, folder))


def describes(truth: Truth, question: str) -> str:
    return caption(truth.scene, random.Random(0), "long")


def says(text: str) -> Knows:
    return lambda truth, question: text


EVERYTHING = ", ".join(OBJECTS)


# ---- all of them -------------------------------------------------------------------------------------------------
def test_they_are_found_by_name(folder: Path) -> None:
    assert set(HALLUCINATION) == {f"scenes.{name}" for name in ("amber", "amber_questions", "mmhal", "objhal")}
    for name in HALLUCINATION:
        assert name in TASKS
        assert find_task(name, data=folder).name == name


@pytest.mark.parametrize("name", HALLUCINATION)
def test_the_same_is_asked_at_every_load_and_truths_are_json(folder: Path, name: str) -> None:
    one, two = scenes_task(name, folder).items(), scenes_task(name, folder).items()
    assert one == two
    assert json.loads(json.dumps([item.truth for item in one])) == [item.truth for item in one]
    assert {item.origin.file for item in one} == {str(folder / "test.truth.jsonl")}


@pytest.mark.parametrize("name", HALLUCINATION)
def test_the_order_of_items_changes_no_score(folder: Path, name: str) -> None:
    task = scenes_task(name, folder)
    items = task.items()
    said = {
        item.id: ("no", "There is a red star.", "", "red", "a small blue circle here")[i % 5]
        for i, item in enumerate(items)
    }
    mixed = random.Random(3).sample(items, len(items))
    one, two = (task.score(these, [said[item.id] for item in these]) for these in (items, mixed))
    assert (one.score, one.kinds, one.measures) == (two.score, two.kinds, two.measures)


# ---- scenes.amber ------------------------------------------------------------------------------------------------
def test_a_true_description_makes_nothing_up_and_covers_all(folder: Path, truths: dict[str, Truth]) -> None:
    result = run("scenes.amber", folder, truths, describes)
    assert (result.score, result.interval, result.higher_is_better) == (0, (0, 0), False)
    found = result.measures
    assert (found["cover"], found["hal"], found["cog"], found["cog_listed"]) == (1, 0, 0, 0)
    assert result.controls["shuffled"] > 0.5
    assert result.controls["majority"] > 0.5


def test_silence_and_everything_get_what_ambers_definitions_say(folder: Path, truths: dict[str, Truth]) -> None:
    """Of 48 names as many are made up as are not there; five are expected."""
    silent = run("scenes.amber", folder, truths, says(""))
    assert (silent.score, silent.measures["cover"], silent.measures["hal"]) == (0, 0, 0)
    everything = run("scenes.amber", folder, truths, says(EVERYTHING))
    there = sum(len({each.name for each in truth.scene.objects}) for truth in truths.values())
    assert everything.score == pytest.approx(1 - there / (48 * len(truths)))
    found = everything.measures
    assert (found["cover"], found["hal"], found["cog_listed"]) == (1, 1, 1)
    assert found["cog"] == pytest.approx(5 / 48)


def test_expected_is_what_goes_most_often_with_what_is_there(truths: dict[str, Truth]) -> None:
    """Counted again by hand: for each absent object the pictures it shares with every object there, summed."""
    seen = Occurrences(truth.scene for truth in truths.values())
    pictures = [{each.name for each in truth.scene.objects} for truth in truths.values()]
    for truth in truths.values():
        there = {each.name for each in truth.scene.objects}
        shared = {name: sum(name in p and one in p for p in pictures for one in there) for name in OBJECTS}
        listed = expected(truth.scene, seen)
        assert len(listed) == 5
        assert there.isdisjoint(listed)
        rest = [shared[name] for name in OBJECTS if name not in there and name not in listed]
        assert min(shared[name] for name in listed) >= max(rest)


# ---- scenes.amber_questions --------------------------------------------------------------------------------------
def holds(truth: Truth, question: str) -> bool:
    """Reads the question by rules of its own, from the scene alone."""
    things = truth.scene.objects
    if found := re.fullmatch(r"Is there an? (\w+ \w+) in the picture\?", question):
        return any(each.name == found[1] for each in things)
    if found := re.fullmatch(r"Is the number of objects (\d+)\?", question):
        return len(things) == int(found[1])
    where = "|".join(sorted(PLACES, key=len, reverse=True))
    if found := re.fullmatch(rf"Is the (.+?) (?:at|on|in) the ({where})\?", question):
        return one(truth, found[1]).place == found[2]
    if found := re.fullmatch(r"Is the (.+) (left of|right of|above|below|higher than|lower than) the (.+)\?", question):
        said = found[2].removesuffix(" of")
        (x, y), (u, v) = one(truth, found[1].removesuffix(" to the")).centre, one(truth, found[3]).centre
        return {"left": x < u, "right": x > u, "above": y < v, "higher than": y < v}.get(said, y > v)
    found = re.fullmatch(r"Is the (.+) (\w+)\?", question)
    assert found, question
    thing = one(truth, found[1])
    return found[2] in (thing.colour, thing.size)


def one(truth: Truth, phrase: str) -> Object:
    """The only object that a phrase fits: `small red object`, `circle`, `object at the top left`."""
    words, _, place = phrase.partition(" the ")
    words = words.rsplit(" ", 1)[0] if place else words
    fits = [
        each
        for each in truth.scene.objects
        if (not place or each.place == place)
        and all(word in (each.size, each.colour, each.shape, "object") for word in words.split())
    ]
    assert len(fits) == 1, (phrase, truth.scene.objects)
    return fits[0]


def test_every_answer_is_what_the_scene_says(folder: Path, truths: dict[str, Truth]) -> None:
    for item in scenes_task("scenes.amber_questions", folder).items():
        truth = truths[item.id.split("/")[0]]
        assert item.truth["answer"] == ("yes" if holds(truth, item.prompt) else "no"), (item.prompt, truth.scene)


def test_each_kind_has_as_many_yes_as_no_on_every_picture(folder: Path) -> None:
    items = scenes_task("scenes.amber_questions", folder).items()
    counts = Counter((item.id.split("/")[0], item.kind, item.truth["answer"]) for item in items)
    assert all(counts[picture, kind, "yes"] == counts[picture, kind, "no"] == 1 for picture, kind, _ in counts)
    kinds = {"existence", "attribute-colour", "attribute-size", "attribute-number", "relation-place", "relation-side"}
    assert {item.kind for item in items} == kinds
    assert {item.truth["dimension"] for item in items} == {"existence", "attribute", "relation"}


def test_what_does_not_exist_is_asked_of_what_one_would_expect(folder: Path, truths: dict[str, Truth]) -> None:
    seen = Occurrences(truth.scene for truth in truths.values())
    for item in scenes_task("scenes.amber_questions", folder).items():
        if item.kind == "existence" and item.truth["answer"] == "no":
            scene = truths[item.id.split("/")[0]].scene
            assert any(name in item.prompt for name in expected(scene, seen))


@pytest.mark.parametrize(
    ("text", "f1", "accuracy", "unread"),
    [("yes", 0, 0.5, 0), ("No.", 2 / 3, 0.5, 0), ("", 0, 0, 1), (EVERYTHING, 0, 0, 1)],
)
def test_one_answer_to_every_question(
    folder: Path, truths: dict[str, Truth], text: str, f1: float, accuracy: float, unread: float
) -> None:
    result = run("scenes.amber_questions", folder, truths, says(text))
    assert result.score == pytest.approx(f1)
    assert result.kinds == pytest.approx(dict.fromkeys(result.kinds, f1))
    assert (result.measures["accuracy"], result.measures["unread"]) == (accuracy, unread)
    assert result.controls["majority"] == pytest.approx(2 / 3)


def test_who_knows_all_denies_what_is_false_alone(folder: Path, truths: dict[str, Truth]) -> None:
    known = {
        (item.media[0].ref.name, item.prompt): item.truth["answer"]
        for item in scenes_task("scenes.amber_questions", folder).items()
    }

    def knows(truth: Truth, question: str) -> str:
        return known.get((truth.image.relative_to(folder).as_posix(), question), "yes")

    result = run("scenes.amber_questions", folder, truths, knows)
    assert (result.score, result.interval) == (1, (1, 1))
    assert result.controls["shuffled"] < 0.5


# ---- scenes.objhal -----------------------------------------------------------------------------------------------
def test_eight_wordings_are_asked_in_turn(folder: Path) -> None:
    items = scenes_task("scenes.objhal", folder).items()
    assert len(PROMPTS) == len(set(PROMPTS)) == 8
    assert Counter(item.prompt for item in items) == dict.fromkeys(PROMPTS, 8)


def test_silence_and_everything_get_what_object_halbench_says(folder: Path, truths: dict[str, Truth]) -> None:
    """Two words are too few to mention anything; all 48 names make something up in every picture."""
    honest = run("scenes.objhal", folder, truths, describes)
    assert (honest.score, honest.measures["mention_rate"], honest.measures["recall"]) == (0, 0, 1)
    short = run("scenes.objhal", folder, truths, says("red star"))
    assert (short.score, short.measures["speaking"], short.measures["recall"], short.measures["words"]) == (0, 0, 0, 2)
    everything = run("scenes.objhal", folder, truths, says(EVERYTHING))
    there = sum(len({each.name for each in truth.scene.objects}) for truth in truths.values())
    assert (everything.score, everything.measures["recall"]) == (1, 1)
    assert everything.measures["mention_rate"] == pytest.approx(1 - there / (48 * len(truths)))


# ---- scenes.mmhal ------------------------------------------------------------------------------------------------
def test_a_picture_is_asked_the_type_asked_least_that_it_can_answer(folder: Path, truths: dict[str, Truth]) -> None:
    """64 pictures, eight types: eight each, but for one or two where a type does not fit."""
    items = scenes_task("scenes.mmhal", folder).items()
    counts = Counter(item.kind for item in items)
    assert set(counts) == set(TYPES)
    assert len(items) == len(truths)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_reference_answers_are_right_and_silence_is_honest(folder: Path) -> None:
    """A bare right answer is a 5, a whole description a 6; nothing said is a 3."""
    task = scenes_task("scenes.mmhal", folder)
    items = task.items()
    right = task.score(items, [item.truth["answer"] for item in items])
    assert right.kinds == {kind: 6 if kind == "holistic" else 5 for kind in TYPES}
    assert right.measures["hallucination_rate"] == 0
    silent = task.score(items, [""] * len(items))
    assert (silent.score, silent.measures["hallucination_rate"]) == (3, 0)


def test_false_premises_are_false_and_only_a_denial_is_right(folder: Path, truths: dict[str, Truth]) -> None:
    task = scenes_task("scenes.mmhal", folder)
    items = [item for item in task.items() if item.kind == "adversarial"]
    for item in items:
        [who] = item.truth["about"]
        words = who.removesuffix(" object").split()
        scene = truths[item.id.split("/")[0]].scene
        assert not any(all(word in each.name.split() for word in words) for each in scene.objects)
        assert who in item.prompt
    assert task.score(items, ["no"] * len(items)).score == 5
    for lie in ("red", "top left", "large", "yes", EVERYTHING):
        assert task.score(items, [lie] * len(items)).score == 0


def test_a_comparison_needs_both_objects(folder: Path, truths: dict[str, Truth]) -> None:
    """Without its size the phrase fits two objects, which differ in what is asked; with it one."""
    items = [item for item in scenes_task("scenes.mmhal", folder).items() if item.kind == "comparison"]
    for item in items:
        found = re.search(r"the (small|large) ((?:\w+ )?\w+)\?", item.prompt)
        assert found, item.prompt
        words = set(found[2].split()) - {"object"}
        fits = [each for each in truths[item.id.split("/")[0]].scene.objects if words <= set(each.name.split())]
        [meant] = [each for each in fits if each.size == found[1]]
        assert len({getattr(each, item.truth["kind"]) for each in fits}) > 1
        assert item.truth["answer"] == getattr(meant, item.truth["kind"])


def test_everything_at_once_is_a_hallucination_wherever_objects_are_meant(folder: Path) -> None:
    task = scenes_task("scenes.mmhal", folder)
    items = task.items()
    assert task.score(items, [EVERYTHING] * len(items)).measures["hallucination_rate"] == 1


CONTENT = [
    "There is a small red circle at the top left.",
    "There is a large blue star on the right.",
    "The digit 7 is shown.",
]


def known(kind: str, answer: str, *about: str, content: list[str] = CONTENT) -> dict[str, Any]:
    return {"question": "?", "answer": answer, "kind": kind, "about": list(about), "content": content}


COLOUR = known("colour", "red", "red circle")
PLACE = known("place", "top left", "red circle")
OBJECT = known("object", "red circle", "red circle")
COUNT = known("count", "2", "red circle", "blue star")
RELATION = known("relation", "yes", "red circle", "blue star")
DIGIT = known("digit", "7", "7")
PREMISE = known("premise", "There is no green cross.", "green cross")
WHOLE = known("caption", "", content=CONTENT)
EMPTY = known("caption", "The picture is empty.", content=[])


@pytest.mark.parametrize(
    ("truth", "answer", "rating"),
    [
        (COLOUR, "red", 5),
        (COLOUR, "The circle is red.", 5),
        (COLOUR, "Red, beside a blue star.", 6),  # the star's blue is no answer, and more that is true
        (COLOUR, "red or blue", 2),  # two answers
        (COLOUR, "red, beside a green cross", 2),  # there is none
        (COLOUR, "Red. There is a large blue star on the right.", 6),
        (COLOUR, "Red. There is a large blue star at the top.", 2),  # it is on the right
        (COLOUR, "Red. The digit 8 is shown.", 2),
        (COLOUR, "blue", 0),
        (COLOUR, "not blue, red", 5),
        (COLOUR, "magenta", 0),  # no colour of Scenes, and an answer all the same
        (COLOUR, "I do not know.", 3),
        (COLOUR, " ", 3),
        (COLOUR, "There is no circle.", 0),
        (PLACE, "top left", 5),
        (PLACE, "top", 4),  # a part of it
        (PLACE, "the upper left", 5),
        (PLACE, "top right", 0),
        (PLACE, "There is a small red circle at the top left.", 5),
        (PLACE, "top left. There is a large blue star on the right.", 6),
        (PLACE, "top left. There is a large blue star at the top.", 2),  # it is on the right
        (PLACE, "top, under a green cross", 1),  # a part, and something made up
        (OBJECT, "a red circle", 5),
        (OBJECT, "a circle", 4),
        (OBJECT, "red", 4),
        (OBJECT, "a red square", 0),
        (OBJECT, "a blue star", 0),  # there is one, elsewhere
        (COUNT, "two", 5),
        (COUNT, "2. The digit 7 is shown.", 6),
        (COUNT, "2 or 3", 2),
        (COUNT, "There are none.", 0),
        (known("count", "0"), "There are no such objects.", 5),
        (RELATION, "Yes.", 5),
        (RELATION, "no", 0),
        (RELATION, "left", 0),
        (RELATION, "Yes. The digit 7 is shown.", 6),
        (DIGIT, "The digit 7 is shown.", 5),
        (DIGIT, "seven", 5),
        (DIGIT, "1", 0),
        (PREMISE, "There is no green cross in the picture.", 5),
        (PREMISE, "I cannot see the green cross.", 5),
        (PREMISE, "There is no green cross, but a red circle.", 6),
        (PREMISE, "No, but a white square is there.", 2),
        (PREMISE, "I am not sure.", 3),
        (PREMISE, "The green cross is on the left.", 0),
        (PREMISE, "on the left", 0),
        (WHOLE, " ".join(CONTENT), 6),
        (WHOLE, "a red circle and a blue star", 5),  # two of three
        (WHOLE, "There is a red circle.", 4),  # one of three
        (WHOLE, "There is a picture.", 3),
        (WHOLE, "The picture is empty.", 0),
        (WHOLE, "a red circle, a blue star and a green cross", 2),
        (WHOLE, "There is a large red circle at the top left.", 1),  # it is small
        (WHOLE, "There is a small red circle on the left.", 1),  # it is at the top left
        (WHOLE, "a green cross", 0),
        (WHOLE, "There is no green cross, but a red circle and a blue star.", 5),
        (EMPTY, "The picture is empty.", 5),
        (EMPTY, "a green cross", 0),
    ],
)
def test_ratings_by_hand(truth: dict[str, Any], answer: str, rating: int) -> None:
    assert rate(truth, answer) == rating


def test_items_differ_by_picture(folder: Path) -> None:
    items: list[Item] = scenes_task("scenes.mmhal", folder).items()
    assert len({item.prompt for item in items}) > len(items) // 3
