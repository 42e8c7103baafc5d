"""The parts that ship with the package: they load, they are what their card says, and their builder runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quintet.components.encoders.weights import load_hf_folder
from quintet.components.starter import STARTER_LLM, STARTER_VISION, asset
from quintet.data.processor import Processor
from quintet.data.tokenizer import Tokenizer
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.starter.build import LlmSchedule, Phase, build_llm, build_vision, text_scores, write_card
from quintet.lab.starter.text import SPELT, ComposedRows, TextScenes, train_tokenizer
from quintet.lab.starter.vision import Heads, VisionSchedule, make_pictures, vision_scores
from quintet.model.mllm import MLLM
from quintet.recipes._templates import VICUNA_V1
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Sample, Text, Turn

MEGABYTE = 10**6


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
    """On 60 held-out texts; the margin is two and a half standard errors of a share of 60."""
    config = MLLM.Config(llm=STARTER_LLM)
    tokenizer = load_tokenizer(config)
    engine = Engine(build_model(config, vocab=tokenizer.vocab), Processor(tokenizer, VICUNA_V1, config))
    said = card()["llm"]["scores_on_held_out_texts"]["all"]
    assert text_scores(engine, n=60, seed=10)["all"] == pytest.approx(said, abs=0.16)


def test_our_encoder_reads_the_shipped_weights() -> None:
    encoder = STARTER_VISION.build()
    load_hf_folder(encoder, asset("vision"))
    blank, noise = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    one, two = encoder((blank, noise)).split()
    assert one.shape == (64, STARTER_VISION.dim)
    assert not torch.allclose(one, two)


def test_each_word_of_a_map_is_one_token() -> None:
    tokenizer = Tokenizer.load(asset("llm"))
    source = TextScenes(5, seed=3, forms=(1.0, 0.0, 0.0))
    for i in range(5):
        assert len(tokenizer.encode(source.questions(i)[1])[0]) == 64


def test_a_composed_word_is_the_sum_of_its_words() -> None:
    """The embedding of smallredcircletop is the sum of those of small, red, circle and top, divided by the root of 4.

    What is learnt of it is learnt of them.
    """
    tokenizer = train_tokenizer(texts=200)
    table = torch.randn(tokenizer.vocab, 8, requires_grad=True)
    rows = ComposedRows(tokenizer)(table)
    one, *words = (
        tokenizer.encode(f" {word}")[0][0] for word in ("smallredcircletop", "small", "red", "circle", "top")
    )
    torch.testing.assert_close(rows[one], table[words].sum(0) / 2)
    torch.testing.assert_close(rows[:one][:100], table[:100])
    rows[one].sum().backward()
    assert table.grad is not None
    assert float(table.grad[one].abs().sum()) == 0
    torch.testing.assert_close(table.grad[words], torch.full((4, 8), 0.5))


def test_a_text_shows_the_tokens_that_a_chat_will_show() -> None:
    """A told scene with one of its branches is, token for token, LLaVA-1.5's conversation with the same words."""
    tokenizer = Tokenizer.load(asset("llm"))
    source = TextScenes(8, seed=3, split="val")

    def nothing(media: Media) -> tuple[tuple[int, ...], int]:
        raise AssertionError(media)

    for i in range(8):
        _, told, _ = source.questions(i)
        root = source.sample(i).root
        for branch in root.children:
            question, answer = (part.text for turn in branch.turns for part in turn.parts[:1])  # type: ignore[union-attr]
            chat = (Turn("user", (Text(told[1:] + question[:-1]),)), Turn("assistant", (Text(answer[1:]),)))
            one = SPELT.tokens(Sample(Node(root.turns, (branch,))), tokenizer, nothing)
            two = VICUNA_V1.tokens(Sample(Node(chat)), tokenizer, nothing)
            assert one.ids.tolist() == two.ids.tolist()


def test_the_builder_makes_parts_that_load(tmp_path: Path) -> None:
    """A few steps of each part through the real builder; the files are those that a recipe would load."""
    notes: list[str] = []
    schedule = VisionSchedule(steps=2, pictures=16, batch=8, workers=1)
    vision = build_vision(tmp_path, schedule, note=notes.append)
    phase = Phase("words", 2, (1,), (1.0, 0.0, 0.0), batch=2)
    llm = build_llm(tmp_path, LlmSchedule(phases=(phase,), texts=300), run=tmp_path / "run", note=notes.append)
    write_card(tmp_path, {"vision": vision, "llm": llm})
    encoder = STARTER_VISION.build()
    load_hf_folder(encoder, tmp_path / "vision")
    assert Tokenizer.load(tmp_path / "llm").vocab == llm["vocab"]
    assert json.loads((tmp_path / "card.json").read_text())["vision"]["steps"] == 2
    assert "Starter parts" in (tmp_path / "CARD.md").read_text()
