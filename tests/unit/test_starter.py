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
from quintet.lab.starter.text import TextScenes, compose_embeddings, train_tokenizer
from quintet.lab.starter.vision import Heads, VisionSchedule, make_pictures, vision_scores
from quintet.model.mllm import MLLM
from quintet.recipes._templates import VICUNA_V1
from quintet.serving.engine import Engine

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
        told = source.sample(i).root.turns[0].parts[0]
        assert len(tokenizer.encode(told.text)[0]) == 64  # type: ignore[union-attr]


def test_a_composed_word_begins_between_its_words() -> None:
    """The embedding of smallredcircle is the sum of those of small, red and circle, divided by the root of three."""
    tokenizer = train_tokenizer(texts=200)
    table = torch.randn(tokenizer.vocab, 8)
    compose_embeddings(table, tokenizer)
    one, small, red, circle = (
        table[tokenizer.encode(f" {w}")[0][0]] for w in ("smallredcircle", "small", "red", "circle")
    )
    torch.testing.assert_close(one, (small + red + circle) / 3**0.5)


def test_the_builder_makes_parts_that_load(tmp_path: Path) -> None:
    """A few steps of each part through the real builder; the files are those that a recipe would load."""
    notes: list[str] = []
    schedule = VisionSchedule(steps=2, pictures=16, batch=8, workers=1)
    vision = build_vision(tmp_path, schedule, note=notes.append)
    phase = Phase("words", 2, 2, 1e-3, most=(1,), forms=(1.0, 0.0, 0.0))
    llm = build_llm(tmp_path, LlmSchedule(phases=(phase,), texts=300), run=tmp_path / "run", note=notes.append)
    write_card(tmp_path, {"vision": vision, "llm": llm})
    encoder = STARTER_VISION.build()
    load_hf_folder(encoder, tmp_path / "vision")
    assert Tokenizer.load(tmp_path / "llm").vocab == llm["vocab"]
    assert json.loads((tmp_path / "card.json").read_text())["vision"]["steps"] == 2
    assert "Starter parts" in (tmp_path / "CARD.md").read_text()
