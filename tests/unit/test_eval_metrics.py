"""Each metric against numbers worked out by hand, and the vectors of the methods sheet (its section 5)."""

import numpy as np
import pytest

from quintet.evaluation.metrics.anls import Anls, levenshtein, similarity
from quintet.evaluation.metrics.boxes import BoxAccuracy, iou, read_box
from quintet.evaluation.metrics.chair import Chair
from quintet.evaluation.metrics.cider import Cider, cider, tokenise
from quintet.evaluation.metrics.exact import ExactMatch
from quintet.evaluation.metrics.metric import Metric, beside, ratio
from quintet.evaluation.metrics.pope import Pope, read_answer
from quintet.evaluation.metrics.vqa import VqaAccuracy, normalise, soft_accuracy


def score(metric: Metric, outputs: list[str], truths: list) -> float:
    return float(metric.value(metric.judge(outputs, truths).sums.sum(axis=0)))


def measures(metric: Metric, outputs: list[str], truths: list) -> dict[str, float]:
    return metric.measures(metric.judge(outputs, truths).sums.sum(axis=0))


# ---- exact match -------------------------------------------------------------------------------------------------
def test_exact_match_forgives_case_spaces_and_the_final_stop_only() -> None:
    outputs = ["Top  left.", "red", "a red", "", "red!"]
    assert [d["correct"] for d in ExactMatch().judge(outputs, ["top left", "red", "red", "red", "red"]).how] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert score(ExactMatch(), outputs, ["top left", "red", "red", "red", "red"]) == 2 / 5


def test_exact_match_takes_any_of_several_references() -> None:
    assert score(ExactMatch(), ["two", "2", "3"], [["2", "two"]] * 3) == 2 / 3


# ---- VQA ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0)])
def test_vqa_accuracy_leaves_each_reference_out_once(matches: int, expected: float) -> None:
    """c matches of ten: [c·min(1, (c−1)/3) + (10−c)·min(1, c/3)] / 10; for c = 1: 9·(1/3)/10 = 0.3."""
    references = ["cat"] * matches + [f"dog{i}" for i in range(10 - matches)]
    assert soft_accuracy("cat", references) == pytest.approx(expected, abs=1e-12)


def test_vqa_cleans_nothing_where_all_references_agree_unless_asked() -> None:
    """The official script: gold "yes" ten times, answer "Yes", score 0."""
    assert soft_accuracy("Yes", ["yes"] * 10) == 0
    assert soft_accuracy("Yes", ["yes"] * 10, always_normalise=True) == 1
    assert soft_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert soft_accuracy(" yes\n", ["yes"] * 10) == 1, "outer space goes before anything else"
    assert score(VqaAccuracy(), ["Yes", "yes"], [["yes"] * 10] * 2) == 0.5
    assert score(VqaAccuracy(always_normalise=True), ["Yes", "yes"], [["yes"] * 10] * 2) == 1


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("The Two Dogs", "2 dogs"),
        ("none", "0"),
        ("ten a an the", "10"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # only one lost apostrophe is restored
        ("y'alld've", "y'all'd've"),
        ("Im", "im"),  # the official key `Im` never meets a lower-cased word
        ("somebody'd", "somebodyd"),
        ("black-and-white", "black and white"),  # no space beside the mark: replaced by one
        ("black -white", "black white"),
        ("one-way -street", "oneway street"),  # a space beside one of them: all are deleted
        ("x-;y-z", "x y z"),
        ("x;-y-z", "x y z"),  # the space that the first mark leaves does not count as one beside the second
        ("red, blue-green", "red blue green"),
        ("1,000 birds; many", "1000 birds many"),  # digit, comma, digit: every mark is deleted
        ("1,000-year/old", "1000yearold"),
        ("3.5", "3.5"),
        ("3.", "3"),  # a stop goes unless a digit follows it …
        ("3.a", "3a"),  # … also after a digit: the look-behind of the official pattern does nothing
        (".5", ".5"),
        ("u.s.", "us"),
        ("it's: fine", "it's: fine"),  # neither the apostrophe nor the colon is in the list
        ("what?! (yes)", "what yes"),
    ],
)
def test_vqa_answers_are_cleaned_as_the_official_script_does(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


def test_vqa_removes_at_most_thirty_two_stops() -> None:
    """The official call hands a flag of value 32 to the parameter `count`."""
    assert normalise("a.b" * 40).count(".") == 8


# ---- POPE --------------------------------------------------------------------------------------------------------
def test_pope_counts_give_the_known_scores() -> None:
    """TP 1200, FP 150, TN 1350, FN 300: P = 1200/1350, R = 1200/1500, F1 = 2400/2850."""
    outputs = ["Yes"] * 1350 + ["No"] * 1650
    truths = ["yes"] * 1200 + ["no"] * 150 + ["no"] * 1350 + ["yes"] * 300
    assert score(Pope(), outputs, truths) == pytest.approx(0.8421, abs=5e-5)
    assert measures(Pope(), outputs, truths) == pytest.approx(
        {"accuracy": 0.85, "precision": 0.8889, "recall": 0.8, "yes_ratio": 0.45, "unread": 0.0}, abs=5e-5
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No", "no"),
        ("no, there is not.", "no"),
        ("There is not a dog.", "no"),
        ("Well, no", "no"),
        ("No, a cat.", "no"),  # the comma goes before words are told apart
        ("NO", "yes"),  # only No, no and not are negations
        ("No!", "yes"),
        ("There is none.", "yes"),
        ("I see it. No doubt.", "yes"),  # nothing after the first stop is read
        ("Yes, no doubt", "no"),
        ("", "yes"),
        ("  No.", "no"),
    ],
)
def test_pope_reads_an_answer_by_the_official_rule(text: str, answer: str) -> None:
    assert read_answer(text) == answer


def test_a_silent_model_has_full_recall_in_pope_and_is_shown() -> None:
    said = measures(Pope(), ["", "", ""], ["yes", "no", "no"])
    assert (said["recall"], said["yes_ratio"], said["unread"]) == (1, 1, 1)


def test_always_yes_scores_two_thirds_in_pope() -> None:
    assert score(Pope(), ["yes"] * 10, ["yes"] * 5 + ["no"] * 5) == pytest.approx(2 / 3)


# ---- CHAIR -------------------------------------------------------------------------------------------------------
def named(text: str) -> list[str]:
    return [word for word in text.split() if word in {"cat", "dog", "bus", "tree"}]


def test_chair_pools_mentions_over_the_corpus() -> None:
    """Pictures {cat, dog}, {bus}, {tree}. Mentions: cat dog dog | bus cat tree | none.

    Hallucinated: cat and tree of the second, 2 of 6 mentions: CHAIR-i 1/3 (a mean of ratios would give 2/9).
    One of three captions: CHAIR-s 1/3. Found: cat, dog, bus of 4 objects: recall 3/4. Words: (6 + 3 + 2)/3.
    """
    outputs = ["a cat dog and dog again", "bus cat tree", "nothing here"]
    truths = [{"objects": o, "captions": []} for o in (["cat", "dog"], ["bus"], ["tree"])]
    assert score(Chair(named), outputs, truths) == pytest.approx(1 / 3)
    assert measures(Chair(named), outputs, truths) == pytest.approx(
        {"chair_s": 1 / 3, "recall": 3 / 4, "words": 11 / 3, "mentions": 2.0}
    )
    assert Chair(named).judge(outputs, truths).how[1]["hallucinated"] == ["cat", "tree"]


def test_a_repeated_hallucination_counts_each_time() -> None:
    assert score(Chair(named), ["cat cat dog"], [{"objects": ["dog"], "captions": []}]) == pytest.approx(2 / 3)


def test_saying_nothing_has_no_hallucination_and_no_recall() -> None:
    truths = [{"objects": ["dog"], "captions": ["a dog", "silence"]}]
    assert score(Chair(named), [""], truths) == 0
    assert measures(Chair(named), [""], truths)["recall"] == 0
    told = {"beside": Chair.beside, "measures": measures(Chair(named), [""], truths)}
    assert (beside(told), beside({"measures": {}})) == (" (recall 0.00)", "")
    assert Chair(named).guesses(truths) == ["a dog"], "the control has to mention something"


# ---- CIDEr-D -----------------------------------------------------------------------------------------------------
def words(texts: list[str]) -> list[list[str]]:
    return [tokenise(text) for text in texts]


def test_cider_gives_the_known_vector() -> None:
    captions = words(["a cat is on the mat", "two dogs run in the park"])
    references = [
        words(["a cat sits on the mat", "the cat is on a mat"]),
        words(["two dogs run in the park", "a pair of dogs running outside"]),
    ]
    assert cider(captions, references) == pytest.approx([4.0625, 5.25], abs=1e-12)


def test_cider_of_copies_is_ten_and_of_one_picture_zero() -> None:
    """Copies: every cosine is 1. One picture: ln|I| = 0, all weights vanish."""
    captions = words(["red circle over blue square", "a green star beside the word"])
    assert cider(captions, [[c] for c in captions]) == pytest.approx([10, 10])
    assert cider(captions[:1], [captions[:1]]) == [0]


def test_cider_by_hand() -> None:
    """Pictures "red cat", "blue dog" (one reference each), captions "red dog", "blue dog".

    All weights are ln 2. First: unigrams red and dog against red and cat share red: cosine 1/2; bigrams share none;
    no 3- or 4-grams. 10·(1/2)/4 = 1.25. Second: cosine 1 for n = 1 and 2, 0 for those that do not exist: 10·2/4 = 5.
    """
    assert cider(words(["red dog", "blue dog"]), [words(["red cat"]), words(["blue dog"])]) == pytest.approx([1.25, 5])


def test_cider_punishes_another_length() -> None:
    """ "cat" repeated twice against "cat": unigrams min(2, 1)·1/(2·1) = 1/2; one bigram more: exp(−1/72)."""
    found = cider(words(["cat cat", "dog"]), [words(["cat"]), words(["dog"])])
    assert found[0] == pytest.approx(10 * 0.5 * np.exp(-1 / 72) / 4)


def test_an_empty_caption_has_cider_zero() -> None:
    assert Cider().judge(["", "a dog"], [["a cat"], ["a dog"]]).sums[0, 0] == 0


def test_the_central_caption_is_the_best_constant_answer() -> None:
    truths = [["a red star here"], ["a red star there"], ["two dogs run outside"]]
    best = Cider().best_guess(truths)
    totals = {c: score(Cider(), [c] * 3, truths) for texts in truths for c in texts}
    assert totals[best] == max(totals.values())
    assert totals[best] > min(totals.values()), "the choice matters here"


# ---- boxes -------------------------------------------------------------------------------------------------------
def test_iou_by_hand() -> None:
    """Two 2 × 2 boxes, one shifted by 1: 2 shared of 6. Half of a box against the box: 1/2. Touching: 0."""
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 2, 1), (0, 0, 2, 2)) == 0.5
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0, "apart along both axes: minus times minus is not overlap"


def test_half_by_the_digits_written_is_half() -> None:
    """[0.1, 0.1, 0.4, 0.25] is the upper half of [0.1, 0.1, 0.4, 0.4]; in float64 the ratio is under 0.5."""
    assert iou((0.1, 0.1, 0.4, 0.25), (0.1, 0.1, 0.4, 0.4)) < 0.5
    assert score(BoxAccuracy(), ["[0.1, 0.1, 0.4, 0.25]"], [[0.1, 0.1, 0.4, 0.4]]) == 1
    assert score(BoxAccuracy(), ["[0.1, 0.1, 0.4, 0.249]"], [[0.1, 0.1, 0.4, 0.4]]) == 0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", (0.1, 0.2, 0.5, 0.6)),
        ("It is at [.1,.2,.5,.6], I think", (0.1, 0.2, 0.5, 0.6)),
        ("[12, 0, 40, 55]", (12, 0, 40, 55)),
        ("[-1, 0, 2, 3] or [0, 0, 1, 1]", (-1, 0, 2, 3)),
        ("[0.5, 0.2, 0.1, 0.6]", None),  # corners in the wrong order
        ("[0.1, 0.2, 0.1, 0.6]", None),  # no area
        ("[0.1, 0.2, 0.5]", None),
        ("[0.1, 0.2, 0.5, 0.6", None),
        ("[a, b, c, d]", None),
        ("[nan, 0, 1, 1]", None),
        (f"[0, 0, {'9' * 400}, 1]", None),  # overflows to infinity
        ("on the left", None),
        ("", None),
    ],
)
def test_a_box_is_read_or_it_is_not_a_box(text: str, box: tuple[float, ...] | None) -> None:
    assert read_box(text) == box


def test_what_is_no_box_is_wrong_and_counted() -> None:
    """IoU 1, 1/3, none: accuracy 1/3, mean IoU 4/9."""
    outputs, truths = ["[0, 0, 2, 2]", "[1, 0, 3, 2]", "left"], [[0, 0, 2, 2]] * 3
    assert score(BoxAccuracy(), outputs, truths) == pytest.approx(1 / 3)
    assert measures(BoxAccuracy(), outputs, truths) == pytest.approx({"mean_iou": 4 / 9, "unread": 1 / 3})


# ---- ANLS --------------------------------------------------------------------------------------------------------
def test_anls_gives_the_known_vector() -> None:
    assert similarity("helo", "hello") == pytest.approx(0.8)
    assert similarity("hxxxx", "hello") == 0


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
)
def test_edit_distance_by_hand(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


def test_anls_forgives_less_than_half_and_takes_the_best_reference() -> None:
    """ "ab" for "abcd": 2 of 4 would change, which is not less than half. Case and spaces do not count."""
    assert similarity("ab", "abcd") == 0
    assert similarity("abc", "abcd") == 0.75
    assert similarity("  Two  Words ", "two words") == 1
    assert similarity("", "") == 1
    assert score(Anls(), ["abc", "x"], [["zzz", "abcd"], "x"]) == pytest.approx((0.75 + 1) / 2)


def test_guesses_are_the_commonest_truths() -> None:
    truths = [f"rare{i}" for i in range(20)] + ["usual"] * 2
    assert ExactMatch().best_guess(truths) == "usual"
    assert ExactMatch().best_guess(truths[::-1]) == "usual"


# ---- shared ------------------------------------------------------------------------------------------------------
def test_a_ratio_over_nothing_is_zero() -> None:
    assert ratio(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 0.0])).tolist() == [0.5, 0, 0]


ODD = [
    "",
    " ",
    ".",
    "\n\t",
    "[",
    "[,,,]",
    "no" * 5000,
    "\x00\ud800",
    "[1,2,3,4]" * 3,
    "🙂",
    "¼",
    "ǅ İ ß",
    "'" * 50,
    "n't",
]

METRICS = [
    (ExactMatch(), "red"),
    (VqaAccuracy(), ["red"] * 9 + ["blue"]),
    (Pope(), "yes"),
    (Chair(named), {"objects": ["cat"], "captions": ["a cat"]}),
    (Cider(), ["a cat"]),
    (BoxAccuracy(), [0.0, 0.0, 1.0, 1.0]),
    (Anls(), "red"),
]


@pytest.mark.parametrize(("metric", "truth"), METRICS, ids=lambda value: getattr(value, "name", ""))
def test_no_output_raises(metric: Metric, truth: object) -> None:
    judged = metric.judge(ODD, [truth] * len(ODD))
    assert len(judged.how) == len(judged.sums) == len(ODD)
    assert np.isfinite(judged.sums).all()
    assert np.isfinite(metric.value(judged.sums.sum(axis=0)))


@pytest.mark.parametrize(("metric", "truth"), METRICS, ids=lambda value: getattr(value, "name", ""))
def test_scores_of_many_totals_at_once_are_the_scores_of_each(metric: Metric, truth: object) -> None:
    """What the bootstrap relies on: `value` is the same function on float[R, K] and on float[K]."""
    sums = metric.judge(ODD, [truth] * len(ODD)).sums
    totals = np.cumsum(sums, axis=0)
    np.testing.assert_array_equal(metric.value(totals), [metric.value(total) for total in totals])
