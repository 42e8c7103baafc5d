"""Prefix completion and span corruption on tokens: lossless, sentinels in order, draws by seed. Under 1 s."""

from dataclasses import replace

import pytest
import torch

from conftest import byte_tokenizer
from quintet.data.completion import Completion
from quintet.data.pipeline import Plan, Planner
from quintet.data.template import Frame, Template
from quintet.errors import ConfigError, DataError
from quintet.values import Media, Node, Origin, Ref, Sample, Text, Tokens, Turn

SPANS, PREFIX = Completion(spans=1.0), Completion(prefix=1.0)
TOKENIZER = byte_tokenizer(*SPANS.added)
SENTINELS = {TOKENIZER.id(s): n for n, s in enumerate(SPANS.added)}
SPELT = Template(name="t", bos=False, user=Frame(before="Q: ", after=" "), answer="", end="</s>", joint="")
WORDS = "a large red circle, a small word and two squares on a table, and what else there is " * 3


def spelt(*turns: Turn, children: tuple[Node, ...] = ()) -> Tokens:
    return SPELT.tokens(Sample(Node(turns, children), Origin("memory", 1)), TOKENIZER, lambda m: ((8, 8), 4))


def caption(text: str = WORDS, *, picture: bool = True, weight: float = 1.0) -> Tokens:
    medium = Media("image", Ref("0.png", data=b""))
    asked = (Turn("user", (medium,)),) if picture else ()
    return spelt(*asked, Turn("assistant", (Text(text),), weight))


def put_back(made: Tokens, start: int) -> list[int]:
    """The text of a sample whose spans were taken out: each put in the place of its sentinel."""
    cut = int((made.weight != 0).nonzero()[0])
    given, learnt = made.ids[start:cut].tolist(), made.ids[cut:-1].tolist()
    spans: dict[int, list[int]] = {}
    for token in learnt:
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [t for token in given for t in spans.get(token, [token])]


@pytest.mark.parametrize("length", [2, 3, 7, 20, len(WORDS)])
def test_the_spans_in_their_sentinels_places_are_the_text(length: int) -> None:
    whole = caption(WORDS[:length])
    start = int(whole.weight.nonzero()[0])
    for seed in range(20):
        made = SPANS(whole, TOKENIZER, seed=(seed,))
        assert put_back(made, start) == whole.ids[start:-1].tolist()
        assert made.ids[-1] == whole.ids[-1], "the end marker stays the end"
        assert torch.equal(made.ids[:start], whole.ids[:start])
        assert made.items == whole.items


def test_sentinels_count_up_in_what_is_given_and_in_what_is_learnt() -> None:
    made = SPANS(caption(), TOKENIZER, seed=(3,))
    cut = int((made.weight != 0).nonzero()[0])
    for part in (made.ids[:cut], made.ids[cut:]):
        found = [SENTINELS[t] for t in part.tolist() if t in SENTINELS]
        assert found == list(range(len(found)))
        assert len(found) == round(round(len(WORDS) * 0.15) / 3)
    assert made.ids[cut].item() in SENTINELS, "what is learnt begins with the first"


def test_spans_take_their_share_of_the_tokens() -> None:
    learnt = SPANS(caption(), TOKENIZER, seed=(5,))
    taken = [t for t in learnt.ids[learnt.weight != 0].tolist() if t not in SENTINELS][:-1]
    assert len(taken) == round(0.15 * len(WORDS))


def test_a_rewritten_sample_is_a_path_like_any_other() -> None:
    whole = caption(weight=0.5)
    made = SPANS(whole, TOKENIZER, seed=(5,))
    n = len(made)
    assert torch.equal(made.order, torch.arange(n))
    assert torch.equal(made.position, torch.arange(n))
    assert torch.equal(made.parent, torch.arange(n) - 1)
    assert not made.enter.any()
    assert bool((made.exit == 1).all())
    assert set(made.weight.tolist()) == {0.0, 0.5}
    for name in ("ids", "weight", "enter", "exit", "order", "position", "parent"):
        assert getattr(made, name).dtype == getattr(whole, name).dtype


@pytest.mark.parametrize("picture", [True, False])
def test_a_prefix_is_given_and_the_rest_is_learnt(picture: bool) -> None:
    whole = caption(picture=picture)
    start = int(whole.weight.nonzero()[0])
    cuts = set()
    for seed in range(50):
        made = PREFIX(whole, TOKENIZER, seed=(seed,))
        assert torch.equal(made.ids, whole.ids)
        cut = int(made.weight.nonzero()[0])
        assert start < cut < len(whole) - 1
        assert bool((made.weight[cut:] == 1).all())
        cuts.add(cut)
    assert len(cuts) > 20


def test_a_draw_is_its_seeds_alone() -> None:
    mixed = Completion(prefix=0.3, spans=0.3)
    made = [[mixed(caption(), TOKENIZER, seed=(0, n)) for n in range(300)] for _ in range(2)]
    for one, again in zip(*made, strict=True):
        assert torch.equal(one.ids, again.ids)
        assert torch.equal(one.weight, again.weight)
    whole = caption()
    spans = sum(len(t) != len(whole) for t in made[0])
    prefix = sum(len(t) == len(whole) and t.count < whole.count for t in made[0])
    assert 60 < spans < 120
    assert 60 < prefix < 120


def test_what_has_no_one_answer_stays_as_it_is() -> None:
    asked, said = Turn("user", (Text("What?"),)), Turn("assistant", (Text("A circle."),))
    many = [
        spelt(asked, said, asked, said),
        spelt(asked, children=(Node((said,)), Node((said,)))),
        caption("a"),
    ]
    for whole in many:
        assert SPANS(whole, TOKENIZER, seed=(0,)) is whole
        assert PREFIX(whole, TOKENIZER, seed=(0,)) is whole


def test_one_turn_is_drawn_of_a_conversation_with_the_media_before_it() -> None:
    pictures = [Media("image", Ref(f"{n}.png", data=b"")) for n in range(3)]
    turns = [Turn("system", (Text("Be brief."),))]
    for n, medium in enumerate(pictures):
        turns += [Turn("user", (medium, Text(f"Question {n}?"))), Turn("assistant", (Text(f"Answer {n}."),))]
    whole = Sample(Node(tuple(turns)), Origin("memory", 1))
    one = Completion(one=True)
    drawn = set()
    for seed in range(30):
        made = one.draw(whole, seed=(0, seed))
        assert made == one.draw(whole, seed=(0, seed))
        system, asked, said = made.root.turns
        n = int(said.parts[0].text[7])  # type: ignore[union-attr]
        drawn.add(n)
        assert system == turns[0]
        assert made.media() == pictures[: n + 1]
        assert asked.parts[-1] == Text(f"Question {n}?")
    assert drawn == {0, 1, 2}
    assert Completion().draw(whole, seed=(0, 0)) is whole
    single = Sample(Node(tuple(turns[1:3])))
    branched = Sample(Node(tuple(turns[:3]), (Node(tuple(turns[3:])),)))
    for other in (single, branched):
        assert one.draw(other, seed=(0, 0)) is other


class Captions:
    name = "captions"

    def __len__(self) -> int:
        return 8

    def sample(self, index: int) -> Sample:
        return Sample(Node((Turn("assistant", (Text(WORDS[index:]),)),)), Origin("captions", index + 1))


def planner(**changes: object) -> Planner:
    plan = replace(Plan(batch=4, steps=4, row=400, micro=800, seed=1, completion=SPANS), **changes)  # type: ignore[arg-type]
    return Planner(Captions(), SPELT, TOKENIZER, lambda m: ((8, 8), 4), plan)


def test_a_step_completes_and_every_epoch_draws_anew() -> None:
    one, again = planner(), planner()
    for step in range(4):
        mine, other = ([t for m in p.step(step).micro for row in m for t in row] for p in (one, again))
        assert [t.ids.tolist() for t in mine] == [t.ids.tolist() for t in other]
        assert one.step(step).count == sum(t.count for t in mine)
        assert all(any(i in SENTINELS for i in t.ids.tolist()) for t in mine)
    drawn = {t.origin.row: [] for t in (one.tokens(n) for n in range(8))}
    for n in range(16):
        drawn[one.tokens(n).origin.row].append(one.tokens(n).ids.tolist())
    assert all(first != second for first, second in drawn.values())


def test_what_sentinels_make_too_long_is_dropped() -> None:
    longest = max(len(planner(completion=None).tokens(n)) for n in range(8))
    with pytest.raises(DataError, match="a row holds"):
        [planner(row=longest).tokens(n) for n in range(8)]


@pytest.mark.parametrize("wrong", [{"prefix": 0.7, "spans": 0.4}, {"rate": 1.0}, {"span": 0.5}, {"sentinel": "<X>"}])
def test_shares_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"shares of all samples|must be between"):
        Completion(**wrong)  # type: ignore[arg-type]
