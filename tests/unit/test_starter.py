"""The parts that ship with the package: they load, they are what their card says, and their builder runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quintet.components.encoders.weights import load_hf_folder
from quintet.components.starter import STARTER_LLM, STARTER_VISION, asset
from quintet.data.processor import Processor
from quintet.data.template import DECIMALS
from quintet.data.tokenizer import Tokenizer
from quintet.errors import DataError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.starter.build import LlmSchedule, Phase, build_llm, build_vision, text_scores, write_card
from quintet.lab.starter.spellings import CAPTIONS, CHATS, SPELLINGS, SpeltScenes
from quintet.lab.starter.text import SPELT, TextScenes, spelt, train_tokenizer
from quintet.lab.starter.told import Composed, ToldTokenizer
from quintet.lab.starter.vision import Heads, VisionSchedule, make_pictures, vision_scores
from quintet.model.mllm import MLLM
from quintet.recipes._templates import VICUNA_V1
from quintet.recipes._templates_query import MINIGPT4_CHAT
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Origin, Sample, Text, Turn

MEGABYTE = 10**6


def nothing(media: Media) -> tuple[tuple[int, ...], int]:
    """The columns of a medium where there is none."""
    raise AssertionError(media)


def card() -> dict:
    return json.loads(asset("card.json").read_text())


def test_the_parts_take_twelve_megabytes_at_most() -> None:
    total = sum(path.stat().st_size for path in asset("").rglob("*") if path.is_file())
    assert total <= 12 * MEGABYTE


def test_the_vision_encoder_scores_what_its_card_says() -> None:
    """On 200 held-out pictures; the margin is three standard errors of the smallest group (about 90 digits)."""
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(asset("vision"), dtype=torch.float32).eval()
    heads = Heads(STARTER_VISION.width)
    heads.load_state_dict(load_file(asset("vision_heads.safetensors")))
    found = vision_scores(model, heads, make_pictures(200, seed=8, split="test"))
    said = card()["vision"]["scores_on_1000_held_out_pictures"]
    for name in ("colour", "shape", "size", "digit", "word"):
        assert found[name] == pytest.approx(said[name], abs=0.05), name
    assert found["box_error"] == pytest.approx(said["box_error"], abs=0.004)


def test_the_llm_scores_what_its_card_says() -> None:
    """On 60 held-out texts; the margins are two and a half standard errors of shares of 60, and of 40 boxes."""
    config = MLLM.Config(llm=STARTER_LLM)
    tokenizer = load_tokenizer(config)
    model = build_model(config, vocab=tokenizer.vocab)
    model.llm.embedding = Composed(model.llm.embedding, tokenizer)
    said = card()["llm"]["scores_on_held_out_texts"]
    found = text_scores(Engine(model, Processor(ToldTokenizer(tokenizer), VICUNA_V1, config)), n=60, seed=10)
    assert found["all"] == pytest.approx(said["all"], abs=0.16)
    assert found["boxes"] == pytest.approx(said["boxes"], abs=0.2)


def test_our_encoder_reads_the_shipped_weights() -> None:
    encoder = STARTER_VISION.build()
    load_hf_folder(encoder, asset("vision"))
    blank, noise = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    one, two = encoder((blank, noise)).split()
    assert one.shape == (64, STARTER_VISION.dim)
    assert not torch.allclose(one, two)


def test_each_thing_of_a_map_is_one_token() -> None:
    tokenizer = ToldTokenizer(Tokenizer.load(asset("llm")))
    source = TextScenes(5, seed=3, forms=(1.0, 0.0, 0.0))
    for i in range(5):
        told = source.questions(i)[1]
        ids, spans = tokenizer.encode(told)
        assert len(ids) == 64
        assert [told[a:b].strip() for a, b in spans] == told.split()
        things = [word for word in told.split() if word != "."]
        assert sum(one >= tokenizer.vocab for one in ids) == len(things)


def test_a_told_thing_is_the_sum_of_its_words_and_lies_between_marks() -> None:
    """smallredcircle at 20, 40 of 64, which is on the left: its words, its place, and two marks each way.

    What is learnt of it is learnt of them.
    """
    tokenizer = ToldTokenizer(train_tokenizer(texts=200))
    plain = torch.nn.Embedding(tokenizer.vocab, 8)
    composed = Composed(plain, tokenizer)
    ids, _ = tokenizer.encode(" smallredcircle@20,40 red")
    made, red = composed(torch.tensor(ids))

    def row(word: str) -> torch.Tensor:
        return plain.weight[tokenizer.encode(f" {word}")[0][-1]]

    # Middles of sixty-fourths, in eighths: 20.5 / 8 = 2.5625 across and 40.5 / 8 = 5.0625 down.
    across = 0.4375 * row("across2") + 0.5625 * row("across3")
    down = 0.9375 * row("down5") + 0.0625 * row("down6")
    words = row("small") + row("red") + row("circle") + row("left")
    torch.testing.assert_close(made, (words + across + down) / 6**0.5)
    torch.testing.assert_close(red, row("red"))
    made.sum().backward()
    assert plain.weight.grad is not None
    assert int((plain.weight.grad.abs().sum(1) > 0).sum()) == 8


def test_boxes_are_asked_for_only_where_the_text_says_where_things_are() -> None:
    for forms, notes, some in (
        ((0.0, 1.0, 0.0), 1.0, True), ((0.0, 1.0, 0.0), 0.0, True),
        ((0.0, 0.0, 1.0), 1.0, False), ((0.0, 0.0, 1.0), 0.0, False),
    ):  # fmt: skip
        source = TextScenes(40, seed=5, forms=forms, notes=notes)
        roots = [source.sample(i).root for i in range(40)]
        answers = [child.turns[-1].parts[0].text for root in roots for child in root.children]  # type: ignore[union-attr]
        assert any(DECIMALS.parse(answer) for answer in answers) == some


def test_a_text_shows_the_tokens_that_a_chat_will_show() -> None:
    """A told scene with one of its branches is, token for token, LLaVA-1.5's conversation with the same words."""
    tokenizer = ToldTokenizer(Tokenizer.load(asset("llm")))
    source = TextScenes(8, seed=3, split="val")

    for i in range(8):
        _, told, said = source.questions(i)
        assert all("<region>" not in part for each in said for part in spelt(each)[:2])
        root = source.sample(i).root
        for branch in root.children:
            question, answer = (part.text for turn in branch.turns for part in turn.parts[:1])  # type: ignore[union-attr]
            chat = (Turn("user", (Text(told[1:] + question[:-1]),)), Turn("assistant", (Text(answer[1:]),)))
            one = SPELT.tokens(Sample(Node(root.turns, (branch,))), tokenizer, nothing)
            two = VICUNA_V1.tokens(Sample(Node(chat)), tokenizer, nothing)
            assert one.ids.tolist() == two.ids.tolist()


def test_scenes_are_spelt_as_the_recipes_spell_theirs() -> None:
    """Whatever a sample's template: answers and pages are learnt, questions are not, and no token is a stranger."""
    tokenizer = ToldTokenizer(Tokenizer.load(asset("llm")))
    source = SpeltScenes(200, seed=4, most=(1, 2, 3, 4), split="val")
    met: set[str] = set()
    for i in range(200):
        sample = source.sample(i)
        assert sample == source.sample(i)
        met.add(sample.origin.id)
        row = SPELLINGS.tokens(sample, tokenizer, nothing)
        assert not row.items, "what is told stands where a picture would, and is no picture"
        learnt = [k for k, weight in zip(row.ids.tolist(), row.weight.tolist(), strict=True) if weight > 0]
        assert learnt
        assert max(learnt) < tokenizer.vocab, "a told word is never learnt"
    assert len(met) == len({t.name for t in (*CHATS, *CAPTIONS)}) + 2  # pages, and what was read before
    with pytest.raises(DataError, match="no template 'dax'"):
        SPELLINGS.tokens(replace(source.sample(0), origin=Origin("here", 1, "dax")), tokenizer, nothing)


def test_a_told_scene_is_asked_about_as_a_shown_one_is() -> None:
    """MiniGPT-4's chat: only what stands between <Img> and </Img> differs."""
    tokenizer = ToldTokenizer(Tokenizer.load(asset("llm")))
    told, truth = SpeltScenes(1, seed=2, most=(3,), forms=(1.0, 0.0, 0.0)).question(0, MINIGPT4_CHAT)
    [turn] = told.root.turns
    shown = Sample(Node((replace(turn, parts=(replace(turn.parts[0], text=None), turn.parts[1])),)))  # type: ignore[type-var]
    one = MINIGPT4_CHAT.tokens(told, tokenizer, nothing, open=True).ids.tolist()
    two = MINIGPT4_CHAT.tokens(shown, tokenizer, lambda media: ((64, 64), 1), open=True)
    at = two.items[0].start
    ids = two.ids.tolist()
    assert one[:at] == ids[:at]
    assert one[at - len(ids) + 1 :] == ids[at + 1 :]
    assert len(one) - len(ids) + 1 == 64, "a cell each"
    assert truth


def test_the_builder_makes_parts_that_load(tmp_path: Path) -> None:
    """A few steps of each part through the real builder; the files are those that a recipe would load."""
    notes: list[str] = []
    schedule = VisionSchedule(steps=2, pictures=16, batch=8, workers=1)
    vision = build_vision(tmp_path, schedule, note=notes.append)
    phase = Phase("words", 2, (1,), (1.0, 0.0, 0.0), batch=2)
    phases = (phase, replace(phase, name="spellings", spellings=True))
    llm = build_llm(tmp_path, LlmSchedule(phases=phases, texts=300, scored=2), run=tmp_path / "run", note=notes.append)
    write_card(tmp_path, {"vision": vision, "llm": llm})
    encoder = STARTER_VISION.build()
    load_hf_folder(encoder, tmp_path / "vision")
    assert Tokenizer.load(tmp_path / "llm").vocab == llm["vocab"]
    assert json.loads((tmp_path / "card.json").read_text())["vision"]["steps"] == 2
    assert "Starter parts" in (tmp_path / "CARD.md").read_text()
