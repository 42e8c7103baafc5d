"""The measures of hallucination against numbers worked out by hand, and the words that name COCO's objects."""

from collections.abc import Sequence

import numpy as np
import pytest

from quintet.evaluation.bootstrap import interval
from quintet.evaluation.metrics.amber import Amber, Denials, amber_score, exactly, first_word
from quintet.evaluation.metrics.chair import Chair
from quintet.evaluation.metrics.coco import CLASSES, coco_mentions, coco_words
from quintet.evaluation.metrics.metric import Metric
from quintet.evaluation.metrics.nouns import Lexicon
from quintet.evaluation.metrics.objhal import ObjectHal
from quintet.evaluation.metrics.pope import Pope
from quintet.evaluation.metrics.rated import Rated, rated_by, read_rating

KNOWN = Lexicon(frozenset({"cat", "dog", "bus", "tree", "bird", "sofa", "car", "light", "man", "woman", "forest"}))


def score(metric: Metric, outputs: Sequence[str], truths: Sequence) -> float:
    return float(metric.value(metric.judge(outputs, truths).sums.sum(axis=0)))


def measures(metric: Metric, outputs: Sequence[str], truths: Sequence) -> dict[str, float]:
    return metric.measures(metric.judge(outputs, truths).sums.sum(axis=0))


# ---- AMBER, descriptions -----------------------------------------------------------------------------------------
def amber_truth(objects: list[str], expected: list[str]) -> dict[str, list[str]]:
    return {"objects": objects, "expected": expected, "captions": []}


TRUTHS = [amber_truth(["cat", "dog"], ["bird", "sofa"]), amber_truth(["bus"], ["car"]), amber_truth(["tree"], ["bird"])]
SAID = ["a cat and a dog, a bird, another bird", "one bus beside a tree", "nothing"]


def test_amber_pools_over_the_set() -> None:
    """Mentions: cat dog bird bird | bus tree | none. Made up: bird bird | tree | none.

    CHAIR 3/6 (a mean of ratios would give 1/3), Cover (2 + 1 + 0)/4, Hal 2/3. Expected of the made up: both birds;
    Cog 2/6 of the mentions (the paper), one of four that are listed (the script). Words (9 + 5 + 1)/3.
    """
    assert score(Amber(KNOWN.nouns), SAID, TRUTHS) == 0.5
    assert measures(Amber(KNOWN.nouns), SAID, TRUTHS) == pytest.approx(
        {"cover": 3 / 4, "hal": 2 / 3, "cog": 1 / 3, "cog_listed": 1 / 4, "words": 5.0, "mentions": 2.0}
    )
    how = Amber(KNOWN.nouns).judge(SAID, TRUTHS).how
    assert [each["hallucinated"] for each in how] == [["bird", "bird"], ["tree"], []]


def test_a_silent_model_makes_nothing_up_in_amber_and_covers_nothing() -> None:
    assert score(Amber(KNOWN.nouns), ["", "", ""], TRUTHS) == 0
    found = measures(Amber(KNOWN.nouns), ["", "", ""], TRUTHS)
    assert (found["cover"], found["hal"], found["cog"], found["cog_listed"], found["words"]) == (0, 0, 0, 0, 0)
    assert (Amber.higher_is_better, Amber.beside) == (False, "cover")


def test_who_names_everything_covers_everything_and_makes_up_the_rest() -> None:
    """11 words a picture; there are 2, 1 and 1 of them: made up 9 + 10 + 10 of 33; all four listed are named."""
    everything = [" ".join(sorted(KNOWN.known))] * 3
    assert score(Amber(KNOWN.nouns), everything, TRUTHS) == pytest.approx(29 / 33)
    found = measures(Amber(KNOWN.nouns), everything, TRUTHS)
    assert (found["cover"], found["hal"], found["cog_listed"]) == (1, 1, 1)
    assert found["cog"] == pytest.approx(4 / 33)


def test_other_words_for_an_object_stand_for_it_but_its_own_name_for_itself() -> None:
    """`tree` is the tree where there is one, and the forest where there is none; man and woman are one person."""
    other = {"person": ["man", "woman"], "forest": ["tree"]}
    metric = Amber(KNOWN.nouns, associated=other)
    both, forest, person = (amber_truth(names, []) for names in (["forest", "tree"], ["forest"], ["person"]))
    assert measures(metric, ["a tree"], [both])["cover"] == 0.5
    assert measures(metric, ["a tree, a forest"], [both])["cover"] == 1
    assert measures(metric, ["a tree"], [forest])["cover"] == 1
    said = ["a man, a woman"]
    assert (score(metric, said, [person]), measures(metric, said, [person])["mentions"]) == (0, 2)
    assert score(Amber(KNOWN.nouns), said, [person]) == 1, "without associations a man is no person"


def test_an_expected_object_is_hit_by_another_word_for_it_once() -> None:
    """Listed: person, bus. `man` and `woman` are made up, expected, and one of the two that are listed."""
    metric = Amber(KNOWN.nouns, associated={"person": ["man", "woman"]})
    found = measures(metric, ["a cat, a man, a woman"], [amber_truth(["cat"], ["person", "bus"])])
    assert (found["cog"], found["cog_listed"]) == (pytest.approx(2 / 3), 0.5)


def test_what_is_there_is_not_made_up_though_it_is_expected_too() -> None:
    """As 61 of AMBER's annotations have it."""
    truth = [amber_truth(["cat"], ["cat", "dog"])]
    assert score(Amber(KNOWN.nouns), ["a cat"], truth) == 0
    assert measures(Amber(KNOWN.nouns), ["a cat"], truth)["cog_listed"] == 0


def test_safe_words_are_mentions_that_are_never_made_up() -> None:
    """Mentions light, bird: one of two is made up. As the script has it, a safe word covers nothing."""
    metric = Amber(KNOWN.nouns, safe=["light"])
    assert score(metric, ["a light, a bird"], [amber_truth(["cat"], [])]) == 0.5
    assert measures(metric, ["a light"], [amber_truth(["light"], [])])["cover"] == 0


def test_ambers_control_says_something() -> None:
    assert Amber(KNOWN.nouns).guesses(TRUTHS) == ["bus"]
    told = [truth | {"captions": ["silence", "a cat"]} for truth in TRUTHS]
    assert Amber(KNOWN.nouns).guesses(told) == ["a cat"]


# ---- AMBER, questions --------------------------------------------------------------------------------------------
def gold(answers: str, dimension: str = "existence") -> list[dict[str, str]]:
    return [{"answer": answer, "dimension": dimension} for answer in answers.split()]


def test_no_is_the_positive_class() -> None:
    """Gold no: No No Yes and nothing. Gold yes: No Yes Yes Yes and nothing. P 2/3, R 2/4, F1 4/7, accuracy 5/9.

    POPE's class is yes, and silence is a yes there: TP 4, FP 2, FN 1, F1 8/11.
    """
    said = ["No", "No", "Yes", "", "No", "Yes", "Yes", "Yes", ""]
    truths = gold("no no no no yes yes yes yes yes")
    assert score(Denials(), said, truths) == pytest.approx(4 / 7)
    rates = {"accuracy": 5 / 9, "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7}
    of_dimension = {f"existence {name}": value for name, value in rates.items()}
    assert measures(Denials(), said, truths) == pytest.approx(
        rates | {"no_ratio": 1 / 3, "unread": 2 / 9} | of_dimension
    )
    assert score(Pope(), said, [truth["answer"] for truth in truths]) == pytest.approx(8 / 11)


def test_the_script_adds_to_the_denominator() -> None:
    """P = R = 1: 2 / (2 + ε)."""
    assert score(Denials(epsilon=1e-3), ["No"], gold("no")) == pytest.approx(2 / 2.001)
    assert score(Denials(), ["No"], gold("no")) == 1


def test_dimensions_are_told_apart_and_pooled() -> None:
    """Existence: right no. Relation: a yes that is denied. Pooled P 1/2, R 1, F1 2/3; no attribute was asked."""
    said, truths = ["No", "No"], gold("no") + gold("yes", "relation")
    found = measures(Denials(), said, truths)
    assert (found["existence f1"], found["relation f1"], found["f1"]) == (1, 0, pytest.approx(2 / 3))
    assert "attribute f1" not in found


@pytest.mark.parametrize(
    ("answer", "f1", "accuracy", "unread"), [("Yes", 0, 0.5, 0), ("No", 2 / 3, 0.5, 0), ("", 0, 0, 1), ("no", 0, 0, 1)]
)
def test_one_answer_to_everything(answer: str, f1: float, accuracy: float, unread: float) -> None:
    """Half are no. Always no: P 1/2, R 1. AMBER's script takes `Yes` and `No` to the letter: `no` is no answer."""
    said, truths = [answer] * 4, gold("yes no yes no")
    assert score(Denials(), said, truths) == pytest.approx(f1)
    found = measures(Denials(), said, truths)
    assert (found["accuracy"], found["unread"]) == (accuracy, unread)


def test_answers_are_read_to_the_letter_or_by_their_first_word() -> None:
    texts = ["Yes", "No", "no", "No.", "No, none", "Not sure", "I say no", "", "Nothing"]
    assert [exactly(text) for text in texts] == ["yes", "no", *[""] * 7]
    assert [first_word(text) for text in texts] == ["yes", "no", "no", "no", "no", "", "", "", ""]


def test_both_halves_make_ambers_score() -> None:
    """(100 − 7.8 + 74.7)/2 = 83.45 in per cent."""
    assert amber_score(0.078, 0.747) == pytest.approx(0.8345)


# ---- Object HalBench ---------------------------------------------------------------------------------------------
def named(text: str) -> list[tuple[str, str]]:
    stands = {"cat": "cat", "kitten": "cat", "dog": "dog", "bus": "bus", "bird": "bird", "tree": "tree"}
    return [(word, stands[word]) for word in text.split() if word in stands]


def test_object_halbench_counts_words_once_and_leaves_short_answers_out() -> None:
    """Mentions: cat bird | too short | none | kitten cat. Made up: the bird.

    Response rate 1 of the 2 that mention something, mention rate 1/4. Recall over all answers: cat of cat and dog,
    nothing of bus and of tree, cat: 2/5. Words (8 + 2 + 5 + 5)/4.
    """
    outputs = ["a cat and a cat and a bird", "a bus", "there is nothing to see", "one kitten with a cat"]
    truths = [{"objects": o, "captions": []} for o in (["cat", "dog"], ["bus"], ["tree"], ["cat"])]
    assert score(ObjectHal(named), outputs, truths) == 0.5
    assert measures(ObjectHal(named), outputs, truths) == pytest.approx(
        {"mention_rate": 1 / 4, "recall": 2 / 5, "words": 5.0, "speaking": 0.5}
    )


def test_an_answer_of_three_words_is_short_and_one_of_four_is_not() -> None:
    truths = [{"objects": ["cat"], "captions": ["a bird is here", "a bird"]}]
    assert score(ObjectHal(named), ["a red bird"], truths) == 0
    assert score(ObjectHal(named), ["a big red bird"], truths) == 1
    assert ObjectHal(named).guesses(truths) == ["a bird is here"]


def test_silence_lowers_neither_rate_of_object_halbench() -> None:
    """One answer makes something up, one says nothing: the rate is of the one that speaks."""
    truths = [{"objects": ["cat"], "captions": []}] * 2
    outputs = ["there is a bird", ""]
    assert score(ObjectHal(named), outputs, truths) == 1
    assert (score(ObjectHal(named), ["", ""], truths), measures(ObjectHal(named), ["", ""], truths)["recall"]) == (0, 0)


# ---- MMHal -------------------------------------------------------------------------------------------------------
def test_ratings_are_averaged_and_those_under_three_are_hallucinations() -> None:
    """6, 3, 2, 0: mean 11/4; two of four are under 3."""
    metric = Rated(lambda truth, answer: int(answer), by="me")
    outputs, truths = ["6", "3", "2", "0"], [{"answer": "6"}] * 4
    assert score(metric, outputs, truths) == 11 / 4
    assert measures(metric, outputs, truths) == {"hallucination_rate": 0.5, "words": 1.0, "unrated": 0.0}
    unrated = Rated(lambda truth, answer: None, by="me")
    assert score(unrated, outputs, truths) == 0, "as in the released script"
    assert measures(unrated, outputs, truths) == {"hallucination_rate": 1.0, "words": 1.0, "unrated": 1.0}
    assert metric.judge(["2"], truths[:1]).how == [{"rating": 2, "hallucinated": True, "by": "me"}]
    assert metric.best_guess([{"answer": "1"}, {"answer": "1"}, {"answer": "5"}]) == "5"


class Judge:
    """Rates by length, and remembers what it was asked."""

    name = "ruler"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, tuple[str, ...], str]] = []

    def __call__(self, question: str, truth: str, content: Sequence[str], answer: str) -> int:
        self.asked.append((question, truth, tuple(content), answer))
        return min(len(answer), 6)


def test_a_judge_gets_question_truth_content_and_answer_and_equal_ones_once() -> None:
    judge = Judge()
    metric = rated_by(judge)
    truths = [{"question": "What?", "answer": "red", "content": ["Cat", "Tree"]}] * 3
    assert score(metric, ["abcd", "abcd", ""], truths) == pytest.approx(8 / 3)
    assert judge.asked == [("What?", "red", ("Cat", "Tree"), "abcd"), ("What?", "red", ("Cat", "Tree"), "")]
    assert metric.judge(["abcd"], truths[:1]).how[0]["by"] == "ruler"
    assert metric.guesses([*truths, truths[0] | {"answer": "blue"}]) == ["red"], "each guess costs ratings"


def test_a_rating_outside_its_range_is_not_taken() -> None:
    with pytest.raises(AssertionError, match="me rated 7"):
        score(Rated(lambda truth, answer: 7, by="me"), ["x"], [{"answer": "x"}])


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Rating: 4, somewhat", 4), ("rating:0", 0), ("Rating: 4 ... Rating: 4", 4), ("Rating: 4 or Rating: 5", None),
     ("four", None), ("", None), ("Rating: 7", None), ("Rating: 60", None)],
)  # fmt: skip
def test_a_judges_words_hold_one_rating_or_none(text: str, rating: int | None) -> None:
    assert read_rating(text) == rating


# ---- words of COCO -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("A man and two women ride bicycles.", ["person", "person", "bicycle"]),
        ("Hot dogs beside a dog", ["hot dog", "dog"]),
        ("a baby elephant with its mother", ["elephant", "person"]),
        ("an adult giraffe, an adult", ["giraffe", "person"]),
        ("a passenger train and a passenger", ["train", "person"]),
        ("the seat of the toilet", ["toilet"]),
        ("the toilet seat, a seat", ["toilet"]),
        ("a seat in the bus", ["chair", "bus"]),
        ("a bow tie and ties", ["tie", "tie"]),
        ("wine glasses, glasses", ["wine glass"]),
        ("an orange cat eats an orange", ["cat", "orange"]),
        ("a teddy bear, a bear", ["teddy bear", "bear"]),
        ("buses, knives, mice, geese and sheep", ["bus", "knife", "mouse", "bird", "sheep"]),
        ("people's cell phones", ["person", "cell phone"]),
        ("train tracks at the bus stop", []),
        ("a microwave oven", ["microwave"]),
        ("skis and scissors", ["skis", "scissors"]),
        ("the traffic lights", ["traffic light"]),
        ("red lights in the sky", []),
        ("", []),
    ],
)
def test_mentions_follow_chairs_rules(text: str, classes: list[str]) -> None:
    assert coco_mentions(text) == classes


def test_every_class_is_named_by_its_own_name() -> None:
    assert len(CLASSES) == 80
    assert [coco_mentions(f"the {name} here") for name in CLASSES] == [[name] for name in CLASSES]
    assert coco_words("Two kittens and a cat") == [("kitten", "cat"), ("cat", "cat")]


def test_chair_over_cocos_words() -> None:
    """Truth {person, dog}: `man`, `dog` are there, `frisbee` twice is not: 2 of 4."""
    truth = [{"objects": ["person", "dog"], "captions": []}]
    assert score(Chair(coco_mentions), ["A man throws a frisbee. The dog wants the frisbee."], truth) == 0.5


# ---- shared ------------------------------------------------------------------------------------------------------
ODD = ["", " ", ".", "no" * 3000, "\x00\ud800", "🙂 cat", "ǅ İ ß", "'" * 50, "n't", "Yes", "No", "a cat and a dog here"]

METRICS = [
    (Amber(KNOWN.nouns), amber_truth(["cat"], ["dog"])),
    (Denials(), {"answer": "no", "dimension": "attribute"}),
    (Denials(first_word, epsilon=1e-4), {"answer": "yes", "dimension": "relation"}),
    (ObjectHal(named), {"objects": ["cat"], "captions": ["a cat"]}),
    (Rated(lambda truth, answer: len(answer) % 7, by="me"), {"answer": "cat"}),
    (Chair(coco_mentions), {"objects": ["cat"], "captions": ["a cat"]}),
]


@pytest.mark.parametrize(("metric", "truth"), METRICS, ids=lambda value: getattr(value, "name", ""))
def test_no_output_raises_and_the_bootstrap_can_draw(metric: Metric, truth: object) -> None:
    judged = metric.judge(ODD, [truth] * len(ODD))
    assert len(judged.how) == len(judged.sums) == len(ODD)
    totals = np.cumsum(judged.sums, axis=0)
    assert np.isfinite(metric.value(totals)).all()
    np.testing.assert_array_equal(metric.value(totals), [metric.value(total) for total in totals])
    low, high = interval(judged.sums, metric.value, resamples=200)
    assert low <= float(metric.value(totals[-1])) <= high


@pytest.mark.parametrize(("metric", "truth"), METRICS, ids=lambda value: getattr(value, "name", ""))
def test_the_order_of_answers_changes_nothing(metric: Metric, truth: object) -> None:
    truths = [truth] * len(ODD)
    assert score(metric, ODD[::-1], truths) == score(metric, ODD, truths)
    assert measures(metric, ODD[::-1], truths) == measures(metric, ODD, truths)
