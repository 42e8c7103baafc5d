"""A second tree in a row, pictures made worse, and tokens in which two answers differ."""

from dataclasses import replace

import pytest
import torch

from quintet.answers import Answer
from quintet.components.roles import ImageSpec
from quintet.data.changes import alpha_bar, changed
from quintet.data.contrast import UNSEEN, Contrast
from quintet.data.differences import mark_differences
from quintet.data.features import content_hash
from quintet.data.media import load_image
from quintet.data.trees import beside
from quintet.errors import ConfigError, DataError
from quintet.recipes._templates import VICUNA_V1
from quintet.values import Node, Sample, Text, Tokens, Turn
from systems import Small, shown


@pytest.fixture(scope="module")
def small() -> Small:
    return Small("llava15")


def pair(chosen: str = "A red circle.", rejected: str = "A blue square.") -> Sample:
    asked = Turn("user", (shown(3, height=40, width=32), Text("What is here?")))
    answers = [Node((Turn("assistant", (Text(t),)),), answer=Answer(s)) for t, s in ((chosen, 1.0), (rejected, 0.0))]
    return Sample(Node((asked,), tuple(answers)))


# ---- pictures ----------------------------------------------------------------------------------------------------
def test_the_schedule_of_noise_is_the_published_one() -> None:
    for step, left in ((0, 0.9999777), (500, 0.7447985), (900, 0.1331432), (999, 0.0812492)):
        assert float(alpha_bar()[step]) == pytest.approx(left, abs=2e-7)


def test_a_noisy_picture_keeps_the_root_of_what_the_schedule_leaves() -> None:
    """Under the same noise two even pictures that are 40 apart stay √ᾱ · 40 apart, where neither is cut off."""
    assert float(alpha_bar()[500].sqrt()) == pytest.approx(0.8630171, abs=2e-7)
    light, dark = (changed(torch.full((3, 64, 64), v, dtype=torch.uint8), "noise 500 1").float() for v in (140, 100))
    whole = (light < 255) & (dark > 0)
    assert float((light - dark)[whole].mean()) == pytest.approx(0.8630171 * 40, abs=0.05)


@pytest.mark.parametrize("change", ["noise 500 7", "small 4", "jitter 0.5 0.3", "crop 0.1 1.2 0.3 0.9"])
def test_a_changed_picture_has_its_size_and_other_pixels_the_same_ones_every_time(change: str) -> None:
    pixels = torch.randint(0, 256, (3, 30, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    made = changed(pixels, change)
    assert made.shape == pixels.shape
    assert made.dtype == torch.uint8
    assert not torch.equal(made, pixels)
    assert torch.equal(made, changed(pixels, change))


def test_noise_is_cut_off_and_does_not_wrap_around() -> None:
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    made = changed(white, "noise 500 1").float()
    # √0.745 of white and noise of deviation 0.51: three in five values are under white, the rest are white, none black
    # for going over it.
    assert 0.3 < float((made == 255).float().mean()) < 0.5
    assert float((made < 20).float().mean()) < 0.08


def test_a_crop_shows_a_piece_of_the_picture_blown_up() -> None:
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    pixels[:, :20, :20] = 200
    assert (changed(pixels, "crop 0.04 1.0 0.0 0.0") == 200).all()
    assert (changed(pixels, "crop 0.04 1.0 1.0 1.0") == 0).all()


def test_a_hue_is_turned_and_grey_stays_grey() -> None:
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    assert changed(red, f"jitter 1.0 {1 / 3:.6f}").flatten().tolist() == [0, 200, 0]
    grey = torch.full((3, 1, 1), 80, dtype=torch.uint8)
    assert changed(grey, "jitter 1.0 0.2").flatten().tolist() == [80, 80, 80]
    assert changed(grey, "jitter 0.5 0.2").flatten().tolist() == [40, 40, 40]


@pytest.mark.parametrize("change", ["blur 3", "noise 500", "noise 1000 1", "crop a b c d", "small nan", " "])
def test_what_is_no_change_is_refused(change: str) -> None:
    with pytest.raises(DataError) as caught:
        changed(torch.zeros(3, 8, 8, dtype=torch.uint8), change)
    assert caught.value.fault == "bad-change"


def test_a_changed_picture_is_another_one_to_whatever_keeps_things_by_content() -> None:
    ref = shown(1, height=16, width=16).ref
    other = replace(ref, change="small 4")
    assert content_hash(ref) != content_hash(other)
    spec = ImageSpec(size=(16, 16))
    assert not torch.equal(load_image(ref, spec), load_image(other, spec))


# ---- the second tree ---------------------------------------------------------------------------------------------
def test_the_better_answer_stands_once_more_behind_the_worse_picture() -> None:
    drawn = Contrast().draw(pair(), seed=(0, 5))
    [other] = drawn.others
    assert [part.text for part in other.children[0].turns[0].parts if isinstance(part, Text)] == ["A red circle."]
    assert other.children[0].answer == Answer(name=UNSEEN)
    first, second = drawn.media()
    assert first.ref.change == ""
    assert second.ref.change.startswith("crop 0.")
    assert drawn == Contrast().draw(pair(), seed=(0, 5))
    assert drawn != Contrast().draw(pair(), seed=(0, 6))
    assert 0.01 <= float(second.ref.change.split()[1]) <= 0.2


def test_every_winner_of_a_tree_stands_behind_the_same_worse_picture() -> None:
    said = ("One.", 2.0), ("Two.", 5.0), ("Three.", 1.0), ("Four.", 5.0), ("Five.", 1.0)
    asked = pair().root.turns
    sample = Sample(Node(asked, tuple(Node((Turn("assistant", (Text(t),)),), answer=Answer(s)) for t, s in said)))
    [other] = Contrast().draw(sample, seed=(0, 5)).others
    assert [node.answer for node in other.children] == [Answer(name=UNSEEN, of=at) for at in (0, 1, 3)]
    assert [node.turns for node in other.children] == [sample.root.children[at].turns for at in (0, 1, 3)]
    assert other.turns == Contrast().draw(pair(), seed=(0, 5)).others[0].turns, "one change, whatever the answers are"


def test_a_winner_that_has_another_picture_in_its_file_gets_no_second_one() -> None:
    drawn = Contrast().draw(pair(), seed=(0, 5))
    assert Contrast().draw(drawn, seed=(0, 6)) == drawn


def test_without_a_picture_or_a_comparison_nothing_is_added() -> None:
    blind = replace(pair(), root=replace(pair().root, turns=(Turn("user", (Text("What is here?"),)),)))
    alone = Sample(Node((*pair().root.turns, Turn("assistant", (Text("A circle."),)))))
    for sample in (blind, alone):
        assert Contrast().draw(sample, seed=(0, 1)) == sample
    with pytest.raises(ConfigError, match="area"):
        Contrast(area=(0.3, 0.2))


def test_trees_side_by_side_do_not_see_each_other_and_keep_their_media(small: Small) -> None:
    drawn = Contrast(how="noise").draw(pair(), seed=(0, 1))
    whole = small.processor.tokens(drawn)
    parts = [small.processor.tokens(Sample(root)) for root in (drawn.root, *drawn.others)]
    assert len(whole) == sum(map(len, parts))
    assert whole.nodes == sum(part.nodes for part in parts)
    cut = len(parts[0])
    assert int(whole.exit[:cut].max()) <= int(whole.enter[cut:].min())
    assert [item.start for item in whole.items] == [parts[0].items[0].start, parts[1].items[0].start + cut]
    assert [name for _, name in ((node, answer.name) for node, answer in whole.answers)] == ["", "", UNSEEN]
    assert int(whole.parent[cut]) == -1
    assert torch.equal(whole.parent[cut + 1 :], parts[1].parent[1:] + cut)


def test_one_tree_beside_nothing_is_itself(small: Small) -> None:
    tokens = small.processor.tokens(pair())
    again = beside([tokens])
    for name in ("ids", "enter", "exit", "order", "position", "parent"):
        assert torch.equal(getattr(again, name), getattr(tokens, name))
    assert again.mark is None


# ---- differences -------------------------------------------------------------------------------------------------
def marked(tokens: Tokens) -> list[list[int]]:
    """The marks of each scored answer."""
    assert tokens.mark is not None
    return [tokens.mark[tokens.enter == node].tolist() for node, _ in tokens.answers]


def test_tokens_in_which_two_answers_differ_are_marked(small: Small) -> None:
    """One token a letter: `circle` against `square`, which share letters but no run of three."""
    found = marked(mark_differences(small.processor.tokens(pair("A red circle is here.", "A red square is here."))))
    first, second = ("".join(map(str, each)) for each in found)
    assert first.count("1") > 0
    assert second.count("1") > 0
    tokens = small.processor.tokens(pair("A red circle is here.", "A red square is here."))
    text = [small.processor.tokenizer.decode([i]) for i in tokens.ids[tokens.enter == tokens.answers[0][0]].tolist()]
    said = "".join(t for t, m in zip(text, found[0], strict=True) if m)
    assert "circle" in said
    assert "here" not in said


def test_equal_runs_of_under_three_tokens_count_as_changed() -> None:
    ids = torch.tensor([1, 2, 3, 9, 4, 5, 1, 2, 3, 8, 4, 5])
    node = torch.tensor([1] * 6 + [2] * 6)
    zero = torch.zeros(12, dtype=torch.int64)
    tokens = Tokens(
        ids, zero.float(), node, node + 1, zero, zero, zero, (), answers=((1, Answer(1.0)), (2, Answer(0.0)))
    )
    made = mark_differences(tokens)
    assert made.mark is not None
    assert made.mark.tolist() == [0, 0, 0, 1, 1, 1] * 2


def test_marks_of_phrases_travel_from_text_to_targets(small: Small) -> None:
    assert VICUNA_V1.end
    asked = pair().root.turns
    sides = [
        Node((Turn("assistant", (Text("A "), Text(phrase, mark="1"), Text(" here."))),), answer=Answer(score))
        for phrase, score in (("red circle", 1.0), ("blue square", 0.0))
    ]
    tokens = small.processor.tokens(Sample(Node(asked, tuple(sides))))
    batch = small.processor.batch([Sample(Node(asked, tuple(sides)))])
    assert tokens.mark is not None
    assert batch.targets.mark is not None
    for node, phrase in zip([node for node, _ in tokens.answers], ("red circle", "blue square"), strict=True):
        ids = tokens.ids[(tokens.enter == node) & (tokens.mark == 1)].tolist()
        assert small.processor.tokenizer.decode(ids).strip() == phrase
    assert int(batch.targets.mark.sum()) == int(tokens.mark.sum())
