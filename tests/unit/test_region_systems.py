"""What sets the systems that speak of regions apart: Shikra's plain numerals, ChatSpot's free outlines."""

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import picture
from quintet.data.processor import Processor
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.run import load_recipe
from quintet.recipes._scale import at_scale
from quintet.values import Media, Node, Ref, Region, Sample, Text, Turn

BOX = Region("box", (0.125, 0.25, 0.5, 0.75))
OTHER = Region("box", (0.5, 0.5, 1.0, 1.0))
OUTLINE = Region("mask", (0.125, 0.25, 0.5, 0.25, 0.5, 0.75, 0.25, 0.875))


def processor(name: str) -> Processor:
    recipe = at_scale(load_recipe(name)[1], "tiny")
    return Processor(load_tokenizer(recipe.model, added=recipe.added_tokens), recipe.template, recipe.model)


def asked(region: Region, *, answer: tuple[Text | Region, ...] = (), height: int = 40, width: int = 40) -> Sample:
    file = io.BytesIO()
    picture(1, height=height, width=width).save(file, "PNG")
    shown = Media("image", Ref("a.png", data=file.getvalue()))
    turns = (Turn("user", (shown, Text("What is in "), region, Text("?"))),)
    return Sample(Node((*turns, Turn("assistant", answer)) if answer else turns))


def answers(name: str, *samples: Sample) -> list[Tensor]:
    """Logits of the first token of each answer, float[V]; the weights are larger than initial ones, so all is seen."""
    spelt = processor(name)
    model = build_model(spelt.model, vocab=spelt.tokenizer.vocab, added=[]).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    made = []
    for sample in samples:
        with model.inference():
            made.append(model.logits(model(spelt.batch([sample], open=True)).hidden)[0, -1])
    return made


# ---- Shikra --------------------------------------------------------------------------------------------------------
def test_shikras_coordinates_are_the_llms_own_text_in_questions_and_answers() -> None:
    """The same ids as plain words of the same letters; a table of regions or tokens for them would give others."""
    spelt = processor("shikra")
    words = Text("[0.125,0.250,0.500,0.750]")
    region = spelt.tokens(asked(BOX, answer=(Text("At "), BOX)))
    plain = asked(BOX, answer=(Text("At "), words))
    user = replace(plain.root.turns[0], parts=(*plain.root.turns[0].parts[:2], words, Text("?")))
    text = spelt.tokens(replace(plain, root=Node((user, plain.root.turns[1]))))
    assert torch.equal(region.ids, text.ids)
    assert torch.equal(region.weight, text.weight)
    assert spelt.template.regions.added_tokens == ()


@pytest.mark.parametrize(("height", "width", "text"), [(40, 40, "0.250,0.500,0.750"), (20, 40, "0.375,0.500,0.625")])
def test_shikra_counts_on_the_padded_square_there_and_back(height: int, width: int, text: str) -> None:
    spelt, prompt = processor("shikra"), asked(BOX, height=height, width=width)
    ids = spelt.tokens(prompt, open=True).ids.tolist()
    assert f"in [0.125,{text}]?" in spelt.tokenizer.decode(ids)
    assert spelt.regions(prompt, f"It is [0.125,{text}].") == [BOX]


def test_shikras_picture_stands_between_its_added_tokens() -> None:
    spelt = processor("shikra")
    made = spelt.tokens(asked(BOX), open=True)
    [item] = made.items
    around = made.ids[[item.start - 1, item.start + item.columns]].tolist()
    assert around == [spelt.tokenizer.id("<im_start>"), spelt.tokenizer.id("<im_end>")]


# ---- ChatSpot ------------------------------------------------------------------------------------------------------
def test_chatspot_can_answer_one_question_differently_for_every_region() -> None:
    """Box, another box, an outline and a point: four answers' logits, all apart."""
    found = answers("chatspot", *map(asked, (BOX, OTHER, OUTLINE, Region("points", (0.25, 0.5)))))
    for i, one in enumerate(found):
        for two in found[:i]:
            assert float((one - two).abs().max()) > 0.1


def test_chatspots_region_is_a_list_of_any_length_between_its_tokens() -> None:
    spelt = processor("chatspot")
    tokens = [spelt.tokenizer.id(token) for token in ("<box>", "</box>")]
    for region in (BOX, OUTLINE, Region("points", (0.25, 0.5)), Region("points", (0.25, 0.5, 0.375, 0.5, 0.5, 0.625))):
        ids = spelt.tokens(asked(region), open=True).ids.tolist()
        start, stop = map(ids.index, tokens)
        numbers = spelt.tokenizer.decode(ids[start + 1 : stop]).replace(" ", "")
        assert numbers == ",".join(f"{value:.3f}" for value in region.points)


def test_chatspot_has_no_region_encoder() -> None:
    with torch.device("meta"):
        assert list(load_recipe("chatspot")[1].build().parts()) == ["encoders.image", "connectors.image", "llm"]
