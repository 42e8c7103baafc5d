"""Builders of pairs: from the truth, from a model's own answers, from what it says when it sees badly. About 5 s."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quintet.data.processor import Processor
from quintet.data.scenes import Truth, World, make_scenes, read_truth
from quintet.data.scenes.claims import claims, mended, severity, told, truths
from quintet.data.scenes.pairs import spoilt
from quintet.data.sources import open_source
from quintet.data.sources.preference_scores import FEEDBACK, PRAISE, condition
from quintet.errors import ConfigError, DataError
from quintet.evaluation.judge import Asked, Rating, TruthJudge, sentences
from quintet.lab.align import load_method
from quintet.lab.pairs import BUILDERS, JUDGED, Work, build, unheld, unread
from quintet.lab.pairs.balance import balanced
from quintet.lab.pairs.worse import IMAGINING
from quintet.model.generate import Sampling
from quintet.values import Media, Sample, Text
from systems import Small

ROWS = 30


class Scripted:
    """Answers as a model would that makes things up: right, spoilt, or with something left out, by turns."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        self.scenes = {truth.image.name: truth.scene for truth in truths}
        self.prompts: list[Sample] = []
        self.specials = ("</box>",)

    def sampled(self, samples: Sequence[Sample], *, sampling: Sampling) -> list[list[str]]:
        made = []
        for sample in samples:
            self.prompts.append(sample)
            assert sampling.max_tokens == 96 * len(sample.media())
            medium = sample.media()[0]
            scene = self.scenes[Path(medium.ref.name).name]
            count = max(1, len(sample.root.children))
            rng = random.Random(f"{medium.ref.name}{medium.ref.change}{sample.root.turns}{sampling.seed}")
            kept = [
                spoilt(scene, rng),
                mended(spoilt(scene, rng), scene),
                "There is a small red circle.",
                "What a day.",
            ]
            made.append([kept[(rng.randrange(4) + n) % len(kept)] for n in range(count)])
        return made


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "scenes"
    return make_scenes(out, 60, 0, World())


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Small("llava15").processor


def work(scenes: Path, **more: Any) -> Work:
    scripted = Scripted(read_truth(scenes / "train.truth.jsonl"))
    return Work(scenes=scenes, rows=ROWS, model=lambda: scripted, **more)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_s_rows_are_read_by_the_sources_and_spelt_by_a_template(
    name: str, scenes: Path, processor: Processor, tmp_path: Path
) -> None:
    count = build(name, work(scenes), tmp_path / "rows.jsonl")
    source = open_source(tmp_path / "rows.jsonl", root=scenes)
    assert 0 < count == len(source) <= ROWS
    for index in range(len(source)):
        reading = source.read(index)
        assert not reading.faults, reading.faults[0]
        tokens = processor.tokens(source.sample(index))
        if name not in ("described", "feedback", "questions", "descriptions"):
            assert tokens.answers
    assert not list(tmp_path.glob(".rows*"))


@pytest.mark.parametrize("name", BUILDERS)
def test_equal_seeds_make_equal_files(name: str, scenes: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        build(name, work(scenes, seed=4), tmp_path / out)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def rows(name: str, scenes: Path, tmp_path: Path) -> list[dict[str, Any]]:
    build(name, work(scenes), tmp_path / "rows.jsonl")
    return rows_of(tmp_path / "rows.jsonl")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["truth", "injected", "corrected", "graded"])
def test_the_chosen_side_is_true_and_the_rejected_side_is_not(name: str, scenes: Path, tmp_path: Path) -> None:
    truths = {truth.image.stem: truth.scene for truth in read_truth(scenes / "train.truth.jsonl")}
    for row in rows(name, scenes, tmp_path):
        scene = truths[row["id"]]
        assert not any(severity(each, scene) for each in claims(row["chosen"]))
        wrong = [severity(each, scene) for each in claims(row["rejected"]) if severity(each, scene)]
        left_out = [each for each in claims(row["chosen"]) if each not in claims(row["rejected"])]
        assert wrong or (name == "truth" and left_out)
        if name == "graded":
            assert row["rejected_score"] == pytest.approx(sum(wrong) / len(sentences(row["rejected"])), abs=1e-3)
            assert row["chosen_score"] == 0


def test_answers_are_told_apart_claim_by_claim(scenes: Path, tmp_path: Path) -> None:
    truths = {truth.image.stem: truth.scene for truth in read_truth(scenes / "train.truth.jsonl")}
    for row in rows("claims", scenes, tmp_path):
        scene = truths[row["id"].rpartition("-")[0]]
        wrong = [sum(severity(each, scene) > 0 for each in claims(row[side])) for side in ("chosen", "rejected")]
        assert wrong[0] < wrong[1]


@pytest.mark.parametrize("token", ["<image>", "</box>"])
def test_an_answer_that_no_row_can_hold_says_nothing(token: str, scenes: Path, tmp_path: Path) -> None:
    """Little trained models write any token; in a row this is a picture that is not there, or letters."""

    class Shows(Scripted):
        def sampled(self, samples: Sequence[Sample], *, sampling: Sampling) -> list[list[str]]:
            made = super().sampled(samples, sampling=sampling)
            return [[f"{each} {token}" if n % 2 else each for each in some] for n, some in enumerate(made)]

    made = Shows(read_truth(scenes / "train.truth.jsonl"))
    shown = Work(scenes=scenes, rows=ROWS, model=lambda: made)  # type: ignore[arg-type, return-value]
    count = build("corrected", shown, tmp_path / "rows.jsonl")
    assert 0 < count < len(list(BUILDERS["corrected"](work(scenes))))
    assert (
        unheld(shown)
        == f"; {len(shown.unheld):,} answers held special tokens, which rows of text cannot, and were left out"
    )
    assert len(shown.unheld) > 0 == len(unheld(work(scenes)))
    assert token not in (tmp_path / "rows.jsonl").read_text()


def test_phrases_are_marked_once_each(tmp_path: Path) -> None:
    """Two blue squares, one small and one at the bottom: both may become "a large blue square at the bottom"."""
    twins = make_scenes(tmp_path / "scenes", 400, 2, World())
    for row in BUILDERS["phrases"](Work(scenes=twins, rows=1000)):
        for side in ("correct_answer_masked", "hallucinated_answer_masked"):
            assert row[side].count("<MASK>") == 2
            assert "<MASK><MASK>" not in row[side], row["id"]


def test_where_no_pair_is_short_enough_none_is_kept() -> None:
    assert balanced([{"chosen": "one", "rejected": "word " * 60}]) == []


def test_claims_are_balanced_as_they_are_written(scenes: Path) -> None:
    """The rows that are kept, not those that they were cut from, are those that balancing leaves as they are."""
    for count in (7, 12, 30):
        made = list(BUILDERS["claims"](replace(work(scenes), rows=count)))
        assert 0 < len(made) <= count
        lengths = [[len(row[side].split()) for row in made] for side in ("chosen", "rejected")]
        assert balanced(made) == made, lengths


class Mumbling(TruthJudge):
    """Knows the truth, and cannot be read when asked about every third answer."""

    name = "mumbler"

    def __init__(self) -> None:
        self.unread, self.asked = 0, 0

    def _heard(self) -> bool:
        self.asked += 1
        self.unread += self.asked % 3 == 0
        return self.asked % 3 != 0

    def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]:
        return [each if self._heard() else None for each in super().rate(asked, answers)]

    def grade(self, asked: Asked, said: Sequence[str]) -> list[int | None]:
        return super().grade(asked, said) if self._heard() else [None] * len(said)


@pytest.mark.parametrize("name", JUDGED)
def test_what_a_judge_says_unreadably_is_left_out_and_counted(name: str, scenes: Path, tmp_path: Path) -> None:
    judge = Mumbling()
    assert build(name, work(scenes, judge=judge), tmp_path / "rows.jsonl") > 0
    assert judge.unread > 0
    assert (
        unread(judge) == f"; {judge.unread:,} replies of mumbler held no verdict, and what they were about was left out"
    )
    assert unread(judge, judge.unread) == ""


def test_a_caption_is_all_that_its_judge_goes_by(scenes: Path) -> None:
    """The scene behind it has a blue star; the caption does not tell of it, so who reads the caption refuses it."""
    asked = Asked("Describe.", caption="There is a small red circle at the top left. The digit 7 is shown.")
    judge = TruthJudge()
    said = ["There is a small red circle at the top left.", "There is a large red circle.", "There is a blue star.",
            "There is a red circle on the right.", "The digit 3 is shown.", "The word lamp is written.",
            "So it is."]  # fmt: skip
    assert judge.grade(asked, said) == [0, 2, 3, 1, 2, 3, 0]
    assert judge.holds(asked, said)[:2] == [True, False]
    [both, one] = judge.rate(asked, ["There is a red circle. The digit 7 is shown.", "The digit 7 is shown."])
    assert both is not None
    assert (both.mean, one) == (5, Rating(4, 4, 4)), "one score, the mean of 3 for half of it and 5 for no error"
    seen: list[Asked] = []

    class Watched(TruthJudge):
        def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]:
            seen.append(asked)
            return super().rate(asked, answers)

    assert list(BUILDERS["proxy"](work(scenes, judge=Watched(), frames=1)))
    assert all(each.caption and each.scene is None and each.picture is None for each in seen)


def test_a_proxy_tells_of_each_picture_of_a_sequence_and_all_are_shown(
    scenes: Path, tmp_path: Path, processor: Processor
) -> None:
    known = read_truth(scenes / "train.truth.jsonl")
    by_name = {truth.image.relative_to(scenes).as_posix(): truth for truth in known}
    seen: list[tuple[Asked, Sequence[str]]] = []

    class Watched(TruthJudge):
        def rate(self, asked: Asked, answers: Sequence[str]) -> list[Rating | None]:
            order = list(dict.fromkeys(answers))
            seen.append((asked, order))
            scores = {order[0]: 4.0, order[1]: 3.0}
            return [Rating(score, score, score) for score in (scores.get(each, 3.5) for each in answers)]

    made = work(scenes, judge=Watched(), frames=3)
    count = build("proxy", replace(made, rows=1000), tmp_path / "rows.jsonl")
    # Every three that follow each other: first those that share none.
    assert count == len(seen) == len(known) - 2
    disjoint = [name for row in rows_of(tmp_path / "rows.jsonl")[: len(known) // 3] for name in row["images"]]
    assert len(set(disjoint)) == len(disjoint) == len(known) // 3 * 3
    source = open_source(tmp_path / "rows.jsonl", root=scenes)
    scripted = made.engine
    assert isinstance(scripted, Scripted)
    for index, row in enumerate(rows_of(tmp_path / "rows.jsonl")):
        asked, answers = seen[index]
        assert (row["chosen"], row["rejected"]) == (answers[0], answers[1])
        shown = [by_name[name] for name in row["images"]]
        told = asked.caption.split("Picture ")[1:]
        assert [each[0] for each in told] == ["1", "2", "3"]
        for each, truth in zip(told, shown, strict=True):
            assert {(c.kind, c.what) for c in claims(each)} == {(c.kind, c.what) for c in truths(truth.scene)}
        sample = source.sample(index)
        for one in (sample, scripted.prompts[index]):
            assert [Path(medium.ref.name).name for medium in one.media()] == [each.image.name for each in shown]
            assert [type(part) for part in one.root.turns[0].parts][:4] == [Media, Media, Media, Text]
        assert processor.tokens(sample).answers
    # What the caption says of any of them holds.
    assert TruthJudge().grade(seen[0][0], [each.text for each in claims(seen[0][0].caption)]) == [0] * len(
        claims(seen[0][0].caption)
    )


def test_feedback_is_spelt_as_in_public_files_and_as_the_model_is_asked(scenes: Path, tmp_path: Path) -> None:
    build("feedback", work(scenes), tmp_path / "rows.jsonl")
    source = open_source(tmp_path / "rows.jsonl", root=scenes)
    found: list[str] = []
    for index in range(len(source)):
        for node in source.sample(index).root.walk():
            for turn in node.turns:
                found += [part.text for part in turn.parts if isinstance(part, Text) and part.mark == FEEDBACK]
    assert condition(4, PRAISE) in found
    assert any(each.startswith(" Rating 3. There is no ") for each in found)
    method = load_method("dress", Small("llava15").processor)
    assert method.asks == condition(4, PRAISE) == " Rating 4. All of it is there."


def test_a_worse_picture_is_shown_where_the_paper_says(scenes: Path) -> None:
    made = work(scenes)
    list(BUILDERS["imagined"](made))
    changes = [medium.ref.change for prompt in made.engine.prompts for medium in prompt.media()]  # type: ignore[attr-defined]
    assert any(change == "small 20" for change in changes)
    assert any(change.startswith("jitter") for change in changes)
    asked = {p.text for prompt in made.engine.prompts for p in prompt.root.turns[0].parts if isinstance(p, Text)}  # type: ignore[attr-defined]
    inviting = asked & set(IMAGINING)
    assert len(inviting) > 4, "several prompts invite what is not there"
    assert len(set(IMAGINING)) == 8
    made = work(scenes)
    list(BUILDERS["biased"](made))
    noisy = [m.ref.change for p in made.engine.prompts for m in p.media() if isinstance(m, Media)]  # type: ignore[attr-defined]
    assert noisy
    assert all(change.startswith("noise 900") for change in noisy)


def test_phrases_are_marked_on_both_sides_and_a_conversation_is_kept_beside_them(scenes: Path, tmp_path: Path) -> None:
    build("phrases", work(scenes), tmp_path / "rows.jsonl")
    source = open_source(tmp_path / "rows.jsonl", root=scenes)
    sample = source.sample(0)
    marks = [[part.mark for part in node.turns[-1].parts if isinstance(part, Text)] for node in sample.root.children]
    assert all("1" in each for each in marks)
    [kept] = sample.others
    assert [node.answer.name for node in kept.walk() if node.answer] == ["kept"]


def test_pairs_are_balanced_by_dropping_those_whose_rejected_side_is_longer() -> None:
    made = [{"chosen": "a " * n, "rejected": "b " * m} for n, m in ((4, 4), (4, 8), (4, 5), (6, 4), (2, 20))]
    kept = balanced(made)
    # At 0.2 (4 against 5, and what is shorter) means are 4.67 and 4.33; at 0 they are 5 and 4, from 0.5 4.5 and 5.25.
    assert kept == [made[0], made[2], made[3]]
    assert balanced([]) == []


def test_the_truth_rates_what_is_named_and_what_is_made_up(scenes: Path) -> None:
    [truth] = [t for t in read_truth(scenes / "train.truth.jsonl") if len(t.scene.objects) == 2 and not t.scene.digit][
        :1
    ]
    asked, judge = Asked("Describe.", scene=truth.scene), TruthJudge()
    right = mended("", truth.scene)

    right = told(truths(truth.scene))
    best, silent, wrong = (
        each or Rating(0, 0) for each in judge.rate(asked, [right, "", right + " There is a large blue star."])
    )
    assert best.mean == 5
    assert silent.helpfulness == 1
    assert wrong.faithfulness < best.faithfulness
    with pytest.raises(DataError, match="--judge"):
        judge.rate(Asked("Describe."), ["x"])


def test_what_cannot_be_built_is_named(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pairs 'truths'; did you mean 'truth'"):
        build("truths", work(scenes), tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match="--from"):
        build("rated", Work(scenes=scenes, rows=3), tmp_path / "rows.jsonl")
