"""How conversations are spelt and what of them is learnt, counted by hand: one token a letter. Under 1 s."""

from dataclasses import replace

import pytest
import torch

from conftest import byte_tokenizer
from quintet.data.template import Frame, Template
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError, DataError
from quintet.recipes._templates import LLAVA_V0, PLAIN, VICUNA_V1
from quintet.values import Media, Node, Origin, Ref, Region, Sample, Text, Tokens, Turn

CHAT = Template(name="chat", user=Frame(before="U:", after=" "), assistant="A:", end="</s>")
PICTURE = Media("image", Ref("p.png"))
COLUMNS = 3


def measure(medium: Media) -> tuple[tuple[int, ...], int]:
    return (8, 8), COLUMNS


def user(*parts: str | Media) -> Turn:
    return Turn("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def says(*parts: str | Text, weight: float = 1.0) -> Turn:
    return Turn("assistant", tuple(Text(p) if isinstance(p, str) else p for p in parts), weight)


def of(*turns: Turn, children: tuple[Node, ...] = (), row: int = 1) -> Sample:
    return Sample(Node(turns, children), Origin("f.json", row))


def spelt(template: Template, sample: Sample, tokenizer: Tokenizer, *, open: bool = False) -> Tokens:
    return template.tokens(sample, tokenizer, measure, open=open)


def text(tokens: Tokens, tokenizer: Tokenizer, *, only: bool | None = None) -> str:
    """All of it, or what is (or is not) learnt, with a medium's columns as dots."""
    chosen = range(len(tokens)) if only is None else ((tokens.weight > 0) == only).nonzero().flatten().tolist()
    return "".join(
        "." if int(tokens.ids[i]) == tokenizer.pad_id else tokenizer.decode([int(tokens.ids[i])], keep_special=True)
        for i in chosen
    )


def test_a_conversation_is_spelt_as_the_template_says_and_only_answers_are_learnt(letters: Tokenizer) -> None:
    made = spelt(CHAT, of(user("hi"), says("yo"), user("ok"), says("so")), letters)
    assert text(made, letters) == "<s>U:hi A: yo</s>U:ok A: so</s>"
    assert text(made, letters, only=True) == " yo</s> so</s>"
    assert made.count == 8


def test_the_columns_of_one_path_by_hand(letters: Tokenizer) -> None:
    """<s> U : h (space) A : (space) y </s>: ten columns, of which the last three are learnt."""
    made = spelt(CHAT, of(user("h"), says("y")), letters)
    assert made.weight.tolist() == [0] * 7 + [1] * 3
    assert made.parent.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert made.position.tolist() == made.order.tolist() == list(range(10))
    assert (made.enter.unique().tolist(), made.exit.unique().tolist()) == ([0], [1])


def test_children_share_what_stands_before_them_and_not_each_other(letters: Tokenizer) -> None:
    """Root "<s>U:h " is 5 columns. First child "A: y</s>" 5, with a child of its own "U:k A: z</s>" 9; the second 5.

    Walk: root 0, child 1, grandchild 2, child 3. Both children continue column 4, at position 5.
    """
    grandchild = Node((user("k"), says("z")))
    made = spelt(CHAT, of(user("h"), children=(Node((says("y"),), (grandchild,)), Node((says("n"),)))), letters)
    spans = [(0, 5), (5, 10), (10, 19), (19, 24)]
    assert [made.enter[a:b].unique().tolist() for a, b in spans] == [[0], [1], [2], [3]]
    assert [made.exit[a:b].unique().tolist() for a, b in spans] == [[4], [3], [3], [4]]
    assert [int(made.parent[a]) for a, _ in spans] == [-1, 4, 9, 4]
    assert [int(made.position[a]) for a, _ in spans] == [0, 5, 10, 5]
    assert len(made) == 24


def test_a_medium_reserves_its_columns_and_is_never_learnt(letters: Tokenizer) -> None:
    """<s> U : ... newline a: the picture's columns are 3 to 5."""
    made = spelt(CHAT, of(user(PICTURE, "a"), says("y")), letters)
    assert text(made, letters) == "<s>U:...\na A: y</s>"
    item = made.items[0]
    assert (item.start, item.columns, item.size, item.kind) == (3, 3, (8, 8), "image")
    assert not made.weight[3:6].any()


def test_where_pictures_stand_is_the_templates_choice(letters: Tokenizer) -> None:
    turn = user("a", PICTURE, "b", PICTURE)
    written = spelt(CHAT, of(turn, says("y")), letters)
    front = spelt(replace(CHAT, place="front"), of(turn, says("y")), letters)
    assert text(written, letters, only=False) == "<s>U:a\n...\nb\n... A:"
    assert text(front, letters, only=False) == "<s>U:...\n...\nab A:"


def test_a_random_place_follows_the_row_and_not_the_file(letters: Tokenizer) -> None:
    """Both places occur over rows; the same rows under another path are spelt the same."""
    random = replace(CHAT, place="random")
    turn = user(PICTURE, "a")
    here = [text(spelt(random, of(turn, says("y"), row=n), letters), letters) for n in range(20)]
    there = [
        text(spelt(random, replace(of(turn, says("y")), origin=Origin("g.json", n)), letters), letters)
        for n in range(20)
    ]
    assert set(here) == {"<s>U:...\na A: y</s>", "<s>U:a\n... A: y</s>"}
    assert here == there


def test_a_sample_has_its_own_system_message_or_the_templates(letters: Tokenizer) -> None:
    template = replace(CHAT, system="Be kind.", system_frame=Frame(before="[", after="]"))
    assert text(spelt(template, of(user("h"), says("y")), letters), letters).startswith("<s>[Be kind.]U:h")
    own = of(Turn("system", (Text("Be brief."),)), user("h"), says("y"))
    assert text(spelt(template, own, letters), letters).startswith("<s>[Be brief.]U:h")


def test_control_tokens_in_a_users_text_are_letters(letters: Tokenizer) -> None:
    """An end marker that a user writes must not end anything: six letters, and one token at the real end."""
    made = spelt(CHAT, of(user("x</s>"), says("y</s>")), letters)
    assert made.ids.tolist().count(letters.specials["</s>"]) == 1
    assert text(made, letters) == "<s>U:x</s> A: y</s></s>"


def test_a_spans_weight_reaches_exactly_its_letters(letters: Tokenizer) -> None:
    """The space before and the end marker have the turn's weight, a span the product of its own and the turn's."""
    made = spelt(
        CHAT, of(user("h"), says(Text("ab"), Text("cd", weight=3.0), Text("e", weight=0.0), weight=2.0)), letters
    )
    assert made.weight[-7:].tolist() == [2, 2, 2, 6, 6, 0, 2]


def test_a_token_over_two_spans_belongs_to_that_of_its_last_letter() -> None:
    """A merge makes one token of the last letter of the first span and the first letter of the second."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=alphabet | {"bc": 256}, merges=[("b", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = spelt(
        CHAT, of(user("h"), says(Text("ab"), Text("cd", weight=3.0))), Tokenizer(backend, bos=None, eos="</s>")
    )
    assert made.weight[-5:].tolist() == [1, 1, 3, 3, 1]


def test_plain_pretraining_keeps_the_picture_and_the_caption_alone(letters: Tokenizer) -> None:
    made = spelt(PLAIN, of(user(PICTURE, "Describe it."), says("A cat.")), letters)
    assert text(made, letters) == "<s>...A cat.\n"
    assert text(made, letters, only=True) == "A cat.\n"


def test_the_published_spelling_of_vicuna_v1(letters: Tokenizer) -> None:
    made = spelt(VICUNA_V1, of(user("What?", PICTURE), says("A cat."), user("Sure?"), says("Yes.")), letters)
    assert text(made, letters) == (
        "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. "
        "USER: ...\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>"
    )
    assert text(made, letters, only=True) == " A cat.</s> Yes.</s>"


def test_the_published_spelling_of_llava(letters: Tokenizer) -> None:
    made = spelt(replace(LLAVA_V0, place="front"), of(user(PICTURE, "What?"), says("A cat.")), letters)
    assert text(made, letters).endswith("questions.###Human: ...\nWhat?###Assistant: A cat.###")
    assert text(made, letters, only=True) == " A cat.###"


def test_an_open_prompt_ends_with_the_header_at_every_leaf(letters: Tokenizer) -> None:
    made = spelt(CHAT, of(user("h"), children=(Node((user("a"),)), Node((user("b"),)))), letters, open=True)
    assert text(made, letters) == "<s>U:h U:a A:U:b A:"
    assert not made.weight.any()


def test_a_branch_that_spells_nothing_does_not_open_the_sample_to_its_neighbour(letters: Tokenizer) -> None:
    """Plain pre-training drops the question of the second child; its number must not be given to the next sample."""
    silent = of(user(PICTURE), children=(Node((says("y"),)), Node((user("only words"),))))
    made = spelt(PLAIN, silent, letters)
    assert int(made.enter.max()) == 1
    assert made.nodes == int(made.exit.max()) == 3


def test_media_have_frames_of_their_own(letters: Tokenizer) -> None:
    framed = replace(CHAT, media={"image": Frame(before="<Img>", after="</Img>")}, joint="")
    made = spelt(framed, of(user(PICTURE, "a"), says("y")), letters)
    assert text(made, letters, only=False) == "<s>U:<Img>...</Img>a A:"


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        (of(Turn("tool", (Text("x"),)), says("y")), "unknown-role"),
        (of(user("h")), "nothing-to-learn"),
        (of(user("h"), says("y", weight=0.0)), "nothing-to-learn"),
        (of(Turn("user", (Region("box", (0.0, 0.0, 1.0, 1.0)),)), says("y")), "bad-region"),
        (of(user(PICTURE), Turn("assistant", (Region("mask", (0.0, 0.0, 1.0, 0.0, 1.0, 1.0)),))), "unsupported-region"),
        (of(Turn("system", (PICTURE,)), user("h"), says("y")), "unsupported-part"),
        (of(user("h"), children=(Node((Turn("system", (Text("s"),)), says("y"))),)), "misplaced-system"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_spelt_or_learnt_is_refused_by_name(letters: Tokenizer, sample: Sample, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        spelt(CHAT, sample, letters)
    assert caught.value.fault == fault


def test_a_medium_must_take_a_column(letters: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="takes 0 columns"):
        CHAT.tokens(of(user(PICTURE), says("y")), letters, lambda m: ((8, 8), 0))


def test_generation_stops_at_the_end_marker_if_it_is_one_token(letters: Tokenizer) -> None:
    assert CHAT.stop_id(letters) == letters.specials["</s>"]
    assert replace(CHAT, end="\n").stop_id(letters) == letters.encode("\n")[0][0]
    assert replace(CHAT, end="###").stop_id(letters) is None


def test_special_tokens_of_frames_are_tokens() -> None:
    tokenizer = byte_tokenizer("<|user|>")
    made = spelt(replace(CHAT, user=Frame(before="<|user|>")), of(user("h"), says("y")), tokenizer)
    assert int(made.ids[1]) == tokenizer.specials["<|user|>"]
    assert torch.equal(
        made.ids[:3], torch.tensor([tokenizer.specials["<s>"], int(made.ids[1]), tokenizer.encode("h")[0][0]])
    )
