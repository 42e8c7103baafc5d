"""An imported model is asked in the very ids and pixels of the published processor, and answers as the class does.

Tokenizers of bytes, processors as transformers saves them, pictures of the encoder's size: nothing is resampled, so
pixels are equal but for rounding (1e-6; measured 0). Greedy answers are compared token by token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_blip2
import test_idefics
import test_kosmos2
import torch
from torch import Tensor

from conftest import picture, published_tokenizer
from quintet.data.media import load_image
from quintet.errors import CheckpointError, ConfigError
from quintet.lab.recipe import load_recipe
from quintet.model.convert import export_run, import_run, spoken_as
from quintet.serving.engine import Engine
from quintet.values import Batch, Media, Node, Ref, Sample, Text, Turn

NEW = 5
"""Tokens of an answer."""


@dataclass
class Spoken:
    """A published folder, what its processor makes of a question, and the run that it became."""

    folder: Path
    inputs: Any
    recipe: str
    pictures: Any
    """The published processor of pictures."""

    def run(self, out: Path) -> Engine:
        assert spoken_as(self.folder) == self.recipe
        import_run(self.folder, out, processor={"template": load_recipe(self.recipe)[1].template.to_json()})
        return Engine.open(out)


def asked(folder: Path, question: str = "What is it?") -> Sample:
    media = Media("image", Ref("picture.png", folder / "picture.png"))
    return Sample(Node((Turn("user", (media, Text(question))),)))


def blip2(folder: Path, kind: str, text: str, *, side: int) -> Spoken:
    from transformers import Blip2Processor, InstructBlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = published_tokenizer(back="</s>") if text == "t5" else published_tokenizer(front="</s>", bos="</s>")
    pictures = BlipImageProcessorPil(size={"height": side, "width": side})
    if kind == "blip-2":
        processor: Any = Blip2Processor(pictures, words, num_query_tokens=5)
    else:
        reader = published_tokenizer(front="[CLS]", back="[SEP]")
        processor = InstructBlipProcessor(pictures, words, reader, num_query_tokens=5)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    test_blip2.published(kind, text, vocab_size=image + 2, image_token=image).save_pretrained(folder)
    processor.save_pretrained(folder)
    said = {"opt": "Question: What is it? Answer:", "t5": "Question: What is it? Short answer:"}
    prompt = said[text] if kind == "blip-2" else "What is it?"
    name = "blip2" if kind == "blip-2" else "instructblip"
    shown = picture(1, height=side, width=side)
    shown.save(folder / "picture.png")
    inputs = processor(images=shown, text=prompt, return_tensors="pt")
    return Spoken(folder, inputs, f"{name}:flan_t5" if text == "t5" else name, pictures)


def idefics(folder: Path) -> Spoken:
    from transformers import IdeficsProcessor
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    words = published_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", bos="<s>")
    first = words.convert_tokens_to_ids("<fake_token_around_image>")
    test_idefics.reference(vocab=first).save_pretrained(folder)
    processor: Any = IdeficsProcessor(IdeficsImageProcessorPil(image_size=16), words)
    processor.save_pretrained(folder)
    shown = picture(1, height=16, width=16)
    shown.save(folder / "picture.png")
    inputs = processor(text=["User:", shown, "What is it?<end_of_utterance>\nAssistant:"], return_tensors="pt")
    return Spoken(folder, inputs, "idefics", processor.image_processor)


def kosmos2(folder: Path) -> Spoken:
    from transformers import Kosmos2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": 28, "width": 28}
    pictures = CLIPImageProcessorPil(size=square, crop_size=square)
    processor: Any = Kosmos2Processor(pictures, published_tokenizer(bos="<s>"))
    test_kosmos2.published(vocab=len(processor.tokenizer), latent_query_num=64).save_pretrained(folder)
    processor.save_pretrained(folder)
    shown = picture(1, height=28, width=28)
    shown.save(folder / "picture.png")
    said = "<grounding>Question: What is it? Answer:"
    return Spoken(folder, processor(images=shown, text=said, return_tensors="pt"), "kosmos2", pictures)


MADE: dict[str, Any] = {
    "blip2": lambda folder: blip2(folder, "blip-2", "opt", side=28),
    "blip2 t5": lambda folder: blip2(folder, "blip-2", "t5", side=28),
    "instructblip": lambda folder: blip2(folder, "instructblip", "llama", side=28),
    "instructblip t5": lambda folder: blip2(folder, "instructblip", "t5", side=28),
    "idefics": idefics,
    "kosmos2": kosmos2,
}


def as_published(batch: Batch, like: Tensor) -> Tensor:
    """Our ids with what the published processor writes in a picture's columns."""
    ids, slots = batch.tokens.clone(), batch.media["image"].slots
    ids.view(-1)[slots] = like.view(-1)[slots]
    return ids


def prepared(processor: Any, shown: Any) -> Tensor:
    """float[1, 3, H, W]."""
    made = processor(shown, return_tensors="pt")
    made = made if isinstance(made, Tensor) else made["pixel_values"]
    return made.view(-1, *made.shape[-3:])


@pytest.mark.parametrize("name", MADE)
def test_prompt_pixels_and_answer_are_the_published_ones(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    spoken: Spoken = MADE[name](tmp_path / "theirs")
    engine = spoken.run(tmp_path / "run")
    sample = asked(tmp_path / "theirs")
    batch = engine.processor.batch([sample], open=True)
    media = batch.media["image"]
    assert torch.equal(as_published(batch, spoken.inputs.input_ids), spoken.inputs.input_ids)
    encoder: Any = engine.model.encoders["image"]
    pixels = spoken.inputs.pixel_values.view(-1, *spoken.inputs.pixel_values.shape[-3:])
    torch.testing.assert_close(encoder.normalise(torch.stack(media.values)), pixels, atol=1e-6, rtol=0)
    assert bool(media.prompts) == ("qformer_input_ids" in spoken.inputs)
    if media.prompts:
        assert torch.equal(media.prompts[0], spoken.inputs.qformer_input_ids[0])

    # Out again: transformers' own processor and class, from what we wrote.
    export_run(tmp_path / "run", tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    again = prepared(processor.image_processor, picture(1, height=pixels.shape[-2], width=pixels.shape[-1]))
    torch.testing.assert_close(again, pixels, atol=1e-6, rtol=0)
    # One of another aspect is squashed by all three. Ours is resampled in 8 bits: 2 levels of 255 are 0.03.
    wide = picture(2, height=40, width=90)
    wide.save(tmp_path / "wide.png")
    mine = encoder.normalise(load_image(Ref("wide.png", tmp_path / "wide.png"), encoder.config.spec)[None])
    for theirs in (spoken.pictures, processor.image_processor):
        torch.testing.assert_close(prepared(theirs, wide), mine, atol=0.04, rtol=0)
    theirs: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    end = engine.processor.tokenizer.id("</s>")
    made = theirs.generate(**spoken.inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=end)
    written = made[0].tolist()
    (answer,) = engine.answer([sample], max_tokens=NEW)
    answered = written[1:] if "t5" in name else written[spoken.inputs.input_ids.shape[1] :]
    assert answer == engine._text(answered)
    assert answer


def test_a_folder_without_the_tokenizer_of_the_queries_cannot_be_asked(tmp_path: Path) -> None:
    import shutil

    spoken = blip2(tmp_path / "theirs", "instructblip", "llama", side=28)
    shutil.rmtree(tmp_path / "theirs" / "qformer_tokenizer")
    with pytest.raises(CheckpointError, match="a tokenizer of its own; expected qformer_tokenizer/"):
        spoken.run(tmp_path / "run")


def test_the_command_spells_as_the_folder_was_trained(tmp_path: Path) -> None:
    """`quintet import` without --template."""
    from typer.testing import CliRunner

    from quintet.cli.app import app

    spoken = blip2(tmp_path / "theirs", "blip-2", "t5", side=28)
    done = CliRunner().invoke(app, ["import", str(spoken.folder), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "spelt as in blip2_flan_t5 (blip2_t5)" in done.output
    assert Engine.open(tmp_path / "run").processor.template == load_recipe("blip2:flan_t5")[1].template


def test_a_template_of_another_system_is_refused_when_its_tokens_are_missing(tmp_path: Path) -> None:
    spoken = blip2(tmp_path / "theirs", "blip-2", "opt", side=28)
    import_run(spoken.folder, tmp_path / "run", processor={"template": load_recipe("qwen_vl")[1].template.to_json()})
    with pytest.raises(CheckpointError, match=r"has no <\|im_end\|>, .* --template"):
        Engine.open(tmp_path / "run")


def test_a_recipe_that_a_file_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"blip2:flan has no function `flan\(\) -> Recipe`"):
        load_recipe("blip2:flan")
