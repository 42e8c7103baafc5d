"""Scenes: every answer is worked out again here, from the question's words and the plain truth."""

import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest

from quintet.data.scenes import (
    BRIEF,
    COLOURS,
    DETAILED,
    KINDS,
    OBJECTS,
    SHAPES,
    SIZES,
    WORDS,
    Object,
    Occurrences,
    Question,
    Scene,
    World,
    ask,
    caption,
    conversation,
    dense_labels,
    grounding,
    mentions,
    objects_of,
    pointing,
    pope,
    pope_candidates,
    pretrain,
    questions,
    refer,
    stream,
    things,
)
from quintet.data.scenes.questions import CANDIDATES

SCENES = list(itertools.islice(stream(World(min_objects=0, digit=0.6, word=0.6), 11), 400))


def where(each: Object) -> str:
    """The place of an object, from its box alone."""
    x, y = (each.box[0] + each.box[2]) / 2, (each.box[1] + each.box[3]) / 2
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    col = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    return f"{row} {col}".strip() or "middle"


def meant(scene: Scene, words: str) -> list[Object]:
    """Every object that a noun phrase fits."""
    words, _, place = (
        words.partition(" at the ") if " at the " in words else re.split("( in the | on the )|$", words)[:3]
    )
    fits = []
    for each in scene.objects:
        known = {each.size, each.colour, each.shape, "object"}
        if set(words.split()) <= known and (not place or where(each) == place):
            fits.append(each)
    return fits


def the_one(scene: Scene, words: str) -> Object:
    fits = meant(scene, words)
    assert len(fits) == 1, (words, scene.objects)
    return fits[0]


def truth(scene: Scene, question: Question) -> str:
    """The right answer to `question`, from its text."""
    text = question.text.rstrip("?.")
    if question.kind == "existence":
        return "yes" if meant(scene, re.search(r"\ban? (\w+ \w+)", text)[1]) else "no"  # type: ignore[index]
    if question.kind == "count":
        many = re.sub(r"How many | are there| does the picture show|Count the ", "", text)
        singular = " ".join({"objects": "object", "crosses": "cross"}.get(w, w.removesuffix("s")) for w in many.split())
        return str(len(meant(scene, singular)))
    if question.kind == "object":
        place = re.search(r"(?:at|in|on) the (.*)$", text)[1]  # type: ignore[index]
        here = [each for each in scene.objects if where(each) == place]
        assert len(here) == 1
        return f"{here[0].colour} {here[0].shape}"
    if question.kind == "relation":
        said = r"to the left of|left of|to the right of|right of|above|higher than|below|lower than"
        one, relation, two = re.fullmatch(rf"Is the (.*?) ({said}) the (.*)", text).groups()  # type: ignore[union-attr]
        (x1, y1), (x2, y2) = the_one(scene, one).centre, the_one(scene, two).centre
        gaps = {
            "left": x2 - x1,
            "right": x1 - x2,
            "above": y2 - y1,
            "higher": y2 - y1,
            "below": y1 - y2,
            "lower": y1 - y2,
        }
        gap = next(gap for name, gap in gaps.items() if name in relation)
        assert abs(gap) > 0.1, "a person could doubt it"
        return "yes" if gap > 0 else "no"
    if question.kind == "digit":
        assert scene.digit
        return str(scene.digit.value)
    if question.kind == "word":
        assert scene.word
        return scene.word.text
    patterns = (
        r"the (.*) small or large", r"(?:colour|shape|size) is the (.*)", r"does the (.*) have", r"How big is the (.*)",
        r"picture is the (.*)", r"Where is the (.*)",
    )  # fmt: skip
    found = next(match for pattern in patterns if (match := re.search(pattern, text)))
    each = the_one(scene, found[1])
    return {"colour": each.colour, "shape": each.shape, "size": each.size, "place": where(each)}[question.kind]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_true_and_among_the_candidates(kind: str) -> None:
    rng, asked = random.Random(kind), 0
    for scene in SCENES:
        for question in questions(scene, rng, [kind], per_kind=3):
            assert question.answer == truth(scene, question), question
            assert question.answer in question.candidates
            asked += 1
    assert asked > 200


@pytest.mark.parametrize("kind", ["colour", "shape", "size", "place"])
def test_a_question_does_not_give_its_answer_away(kind: str) -> None:
    rng = random.Random(kind)
    for scene in SCENES:
        question = ask(kind, scene, rng)
        if question and "small or large" not in question.text:
            assert question.answer not in question.text


@pytest.mark.parametrize("kind", ["existence", "relation"])
def test_yes_and_no_are_balanced(kind: str) -> None:
    """2000 questions: the share's standard deviation is 1.1 points; 45 to 55 % is over four of them."""
    rng = random.Random(kind)
    answers = [q.answer for scene in SCENES if scene.objects for _ in range(10) if (q := ask(kind, scene, rng))]
    assert len(answers) > 2000
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


@pytest.mark.parametrize("kind", ["count", "colour", "shape", "size", "place", "object", "digit", "word"])
def test_no_answer_is_most_of_a_kind(kind: str) -> None:
    """The majority answer is a control: it must leave something to learn. Sizes have two answers."""
    rng = random.Random(kind)
    answers = Counter(q.answer for scene in SCENES for _ in range(3) if (q := ask(kind, scene, rng)))
    assert max(answers.values()) / answers.total() < (0.7 if kind == "size" else 0.55)
    assert len(answers) >= min(5, len(CANDIDATES[kind]))


def test_referring_expressions_fit_one_object_only() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        for i, each in enumerate(scene.objects):
            words = refer(scene, i, rng)
            assert words
            assert meant(scene, words) == [each]


def test_questions_come_in_random_order_and_in_two_or_more_phrasings() -> None:
    rng = random.Random(0)
    asked = [questions(scene, rng) for scene in SCENES]
    assert {each[0].kind for each in asked} == set(KINDS)
    for kind in KINDS:
        starts = {" ".join(q.text.split()[:2]) for each in asked for q in each if q.kind == kind}
        assert len(starts) >= (1 if kind == "relation" else 2), kind


def test_boxes_asked_for_are_those_of_the_object() -> None:
    rng = random.Random(0)
    for scene in SCENES[:100]:
        for question in grounding(scene, rng):
            who = re.search(r"(?:is|of|around) the ((?!box).*?)[?.]", question.text)[1]  # type: ignore[index]
            box = [float(v) for v in question.said.strip("[]").split(", ")]
            assert box == pytest.approx(the_one(scene, who).box, abs=0.0051)
            assert re.fullmatch(r"\[(\d\.\d\d, ){3}\d\.\d\d\]", question.said)


@pytest.mark.parametrize("style", ["short", "long"])
def test_captions_name_every_object_and_nothing_else(style: str) -> None:
    rng = random.Random(0)
    for scene in SCENES:
        said = caption(scene, rng, style)  # type: ignore[arg-type]
        assert Counter(mentions(said)) == Counter((each.colour, each.shape) for each in scene.objects)
        assert all(f"{each.size} {each.colour} {each.shape}" in said for each in scene.objects)


def test_long_captions_say_place_digit_and_word() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        said = caption(scene, rng, "long")
        for each in scene.objects:
            assert re.search(rf"{each.full_name} (at|in|on) the {where(each)}\.", said)
        assert (f"digit {scene.digit.value}" in said) if scene.digit else ("digit" not in said)
        assert (f"word {scene.word.text}" in said) if scene.word else ("word" not in said)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a large red circle", [("red", "circle")]),
        ("Two RED crosses!", [("red", "cross")]),
        ("a red small star and a blue, large square", [("red", "star"), ("blue", "square")]),
        ("red and blue circles", [("red", "circle"), ("blue", "circle")]),
        ("a red circle near a red circle", [("red", "circle"), ("red", "circle")]),
        ("a bored circle, a redsquare, a red bird, a circle", []),
        ("", []),
    ],
)
def test_mentions_reads_free_text(text: str, found: list[tuple[str, str]]) -> None:
    assert mentions(text) == found


def test_objects_of_is_the_set_of_colours_and_shapes() -> None:
    for scene in SCENES[:50]:
        assert objects_of(scene) == {(each.colour, each.shape) for each in scene.objects}


def test_pope_is_balanced_and_true_under_every_rule() -> None:
    rng, seen = random.Random(0), Occurrences(SCENES)
    for scene in SCENES:
        there = {f"{each.colour} {each.shape}" for each in scene.objects}
        for asked in pope(scene, seen, rng).values():
            assert [q.answer for q in asked].count("yes") == len(asked) / 2 == min(3, len(there))
            assert len({q.text for q in asked}) == len(asked)
            assert all(q.answer == truth(scene, q) for q in asked)


def test_pope_rules_pick_the_frequent_and_the_tempting() -> None:
    rng, seen = random.Random(0), Occurrences(SCENES)
    frequent = [name for name, _ in seen.single.most_common()]
    for scene in SCENES[:100]:
        there = {each.name for each in scene.objects}
        rules = pope_candidates(scene, seen, rng)
        absent = [name for name in frequent if name not in there]
        _, popular = rules["popular"]
        assert sorted(seen.single[n] for n in popular) == sorted(seen.single[n] for n in absent[: len(popular)])
        together = {rule: sum(seen.pairs[a, n] for a in there for n in names) for rule, (_, names) in rules.items()}
        assert together["adversarial"] == max(together.values())
        assert all(set(names) <= set(OBJECTS) for _, names in rules.values())


def test_things_and_dense_labels_say_the_same() -> None:
    for scene in SCENES:
        words, labels = ["."] * 64, dense_labels(scene)
        for name, (x1, y1, x2, y2) in things(scene):
            words[int((y1 + y2) * 4) * 8 + int((x1 + x2) * 4)] = name
        for i, word in enumerate(words):
            at = divmod(i, 8)
            colour, shape, size = (int(labels[name][at]) for name in ("colour", "shape", "size"))
            told = "." if colour < 0 else f"{SIZES[size]}{COLOURS[colour]}{SHAPES[shape]}"
            told = f"digit{labels['digit'][at]}" if labels["digit"][at] >= 0 else told
            told = f"word{WORDS[labels['word'][at]]}" if labels["word"][at] >= 0 else told
            assert word == told
            assert (labels["box"][at] >= 0).all() == (word != ".")
        assert sum(word != "." for word in words) == len(scene.objects) + bool(scene.digit) + bool(scene.word)


def test_cover_labels_are_the_cells_whose_middle_is_in_a_box() -> None:
    for scene in SCENES[:100]:
        labels = dense_labels(scene)
        for row, col in np.ndindex(8, 8):
            x, y = (col + 0.5) / 8, (row + 0.5) / 8
            inside = [o for o in scene.objects if o.box[0] <= x < o.box[2] and o.box[1] <= y < o.box[3]]
            assert labels["cover_colour"][row, col] == (COLOURS.index(inside[0].colour) if inside else -1)
            assert labels["cover_shape"][row, col] == (SHAPES.index(inside[0].shape) if inside else -1)


def test_a_box_label_is_the_things_box() -> None:
    for scene in SCENES[:50]:
        known = dense_labels(scene)["box"]
        found = {tuple(box) for box in known[known[..., 0] >= 0].tolist()}
        there = [thing for thing in (*scene.objects, scene.digit, scene.word) if thing]
        assert found == {tuple(np.float32(thing.box).tolist()) for thing in there}


def test_conversations_are_true_and_have_the_caption_anywhere_or_nowhere() -> None:
    rng = random.Random(0)
    at: Counter[int] = Counter()
    for scene in SCENES:
        said = conversation(scene, rng)
        assert 1 <= len(said) <= 8
        assert len({each.text for each in said}) == len(said)
        places = [i for i, each in enumerate(said) if each.text in (*BRIEF, *DETAILED)]
        at[places[0] if places else -1] += 1
    assert set(at) == {-1, *range(8)}
    assert at[0] < 0.25 * len(SCENES)


def test_pointing_is_half_of_its_conversations_and_true() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        said = pointing(scene, rng)
        assert bool(said) == bool(scene.objects)
        pointed = [each for each in said if each.regions]
        assert 2 * len(pointed) >= len(said) <= 8
        assert len({each.about for each in pointed}) == len(pointed), "no place can be copied from another turn"
        for each in pointed:
            [thing], [region] = [scene.objects[i] for i in each.about], each.regions
            assert region in (thing.box, thing.centre)
            assert (each.text + each.answer).count("<region>") == 1
            assert each.answer in (thing.colour, thing.shape, thing.name, "<region>")
            assert "<region>" not in each.said


def test_pretraining_pairs_ask_for_the_caption_they_give() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        instruction, said = pretrain(scene, rng)
        assert set(mentions(said)) == objects_of(scene)
        assert (instruction in DETAILED) == said.endswith(".")


def test_answers_are_short_and_lower_case() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        for question in questions(scene, rng):
            assert re.fullmatch(r"[a-z0-9]+( [a-z]+)?", question.answer)
