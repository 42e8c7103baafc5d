"""What stands behind an answer that a reward model reads: a request by four criteria, and facts."""

from dataclasses import replace
from pathlib import Path

import pytest

from quintet.answers import Answer
from quintet.data.scenes import World, make_scenes
from quintet.errors import DataError
from quintet.lab.facts import CRITERIA, Asking, Facts, Request, known_facts
from quintet.values import Node, Ref, Sample, Text, Turn
from systems import says, shown, user

CAPTIONS = {
    "000000123456.jpg": ("A dog.", "A sofa.", "A lamp.", "A rug."),
    "aok_000000123456.jpg": ("It is asleep.",),
}
FACTS = Facts(CAPTIONS, "image_to_caption.json")


def asked(kind: float | None = None, name: str = "000000123456.jpg") -> Sample:
    """A question about a picture of COCO, with its kind if it is one of LLaVA-RLHF's prompts."""
    picture = shown(1)
    picture = replace(picture, ref=Ref(name, data=picture.ref.data))
    turns = (user(picture, "What is here?"), says("A dog."))
    return Sample(Node(turns, answer=None if kind is None else Answer(numbers={"caption_type": kind})))


def said(turns: tuple[Turn, ...]) -> str:
    assert [turn.role for turn in turns] == ["user"]
    return "".join(part.text for part in turns[0].parts if isinstance(part, Text))


def test_quality_is_asked_for_by_four_criteria_of_which_the_first_has_the_facts() -> None:
    text = said(Request(asked=True, facts=FACTS).behind(asked(), "A dog."))
    lines = text.splitlines()
    assert [line[:2] for line in lines[1:5]] == ["1.", "2.", "3.", "4."]
    for line, criterion in zip(lines[1:5], ("accurate", "helpful", "natural", "concise"), strict=True):
        assert criterion in line
    assert all(caption in lines[1] for caption in CAPTIONS["000000123456.jpg"])
    assert lines[5].endswith("?")


def test_without_facts_it_is_asked_for_all_the_same() -> None:
    text = said(Request(asked=True, facts=None).behind(asked(), "A dog."))
    assert text == CRITERIA.format("")
    assert "supported" not in text


def test_facts_can_stand_alone_and_nothing_can_be_asked() -> None:
    text = said(Request(asked=False, facts=FACTS).behind(asked(), "A dog."))
    assert text.startswith("Everything that is said must be supported by: A ")
    assert Request(asked=False, facts=None).behind(asked(), "A dog.") == ()


@pytest.mark.parametrize("kind", [2.0, 3.0, 4.0, 5.0])
def test_of_a_question_with_choices_the_reasons_are_told(kind: float) -> None:
    assert FACTS.of(asked(kind), "B.") == "It is asleep."


@pytest.mark.parametrize("kind", [None, 1.0, 6.0, 7.0])
def test_of_other_questions_the_captions_are(kind: float | None) -> None:
    assert "A sofa." in FACTS.of(asked(kind), "No.")


def test_where_no_reasons_are_known_the_captions_are_told_and_reasons_alone_are_no_captions() -> None:
    captions, reasons = ({name: said} for name, said in CAPTIONS.items())
    assert "A sofa." in Facts(captions, "f").of(asked(3.0), "B.")
    assert Facts(reasons, "f").of(asked(3.0), "B.") == "It is asleep."
    with pytest.raises(DataError, match=r"nothing is known of '000000123456\.jpg'; f holds 1 pictures"):
        Facts(reasons, "f").of(asked(), "B.")


def test_facts_are_in_another_order_for_another_answer_and_in_the_same_for_the_same() -> None:
    orders = {FACTS.of(asked(), f"Answer {n}.") for n in range(40)}
    assert len(orders) > 12
    assert all(sorted(order.replace(". ", ".|").split("|")) == sorted(CAPTIONS["000000123456.jpg"]) for order in orders)
    assert FACTS.of(asked(), "A cat.") == FACTS.of(asked(), "A cat.")


def test_behind_every_compared_answer_stands_the_request_with_its_own_order(tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "scenes", 4, 0, World())
    facts = known_facts(None, scenes=scenes)
    name = next(name for name, told in facts.known.items() if len(told) > 2)
    branches = tuple(Node((says(f"Answer {n}."),), answer=Answer(float(n))) for n in range(6))
    picture = replace(shown(1), ref=Ref(f"images/{name}.png", data=shown(1).ref.data))

    class Rows:
        name = "rows"

        def __len__(self) -> int:
            return 1

        def sample(self, index: int) -> Sample:
            return Sample(Node((user(picture, "What is here?"),), branches))

    made = Asking(Rows(), Request(asked=True, facts=facts)).sample(0)
    behind = [node.turns[1:] for node in made.root.children]
    assert [node.turns[0] for node in made.root.children] == [node.turns[0] for node in branches]
    assert len({said(turns) for turns in behind}) > 1
    assert len(made.root.turns) == 1
