"""The recipes whose pictures a Q-Former asks: BLIP-2, MiniGPT-4 and InstructBLIP. About 10 s."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from quintet.components.connectors.qformer import QFormer
from quintet.data.sources.mix import Mix
from quintet.errors import DataError
from quintet.lab.recipe import load_recipe
from quintet.recipes import blip2, instructblip
from quintet.recipes._figures import arithmetic
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.values import Node, Sample
from systems import Small, asked, count, full, says, shown, trained, user


# ---- BLIP-2 ------------------------------------------------------------------------------------------------------
def test_blip2_puts_32_features_before_a_frozen_llm_and_trains_107_million() -> None:
    recipe, model = full("blip2")
    align, generative = trained(recipe, model)
    assert align == {"connectors.image.qformer", "connectors.image.captions"}
    assert generative == {"connectors.image.qformer", "connectors.image.project"}
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(learnt / 1e6) == 107  # table 2 of the paper
    for size in ((224, 224), (364, 364)):
        assert recipe.model.columns("image", size) == 32
    assert count(model.llm) == 2_651_596_800  # facebook/opt-2.7b


def test_blip2_spells_opts_start_token_behind_the_picture() -> None:
    small = Small("blip2")
    assert small.spelt(asked(), stage=0)[1] == "<4><s>A circle.</s>"
    assert small.spelt(asked(), stage=1)[1] == "<4></s>A circle.\n"
    assert small.spelt(asked())[1] == "<4></s>Question: What is it? Answer: A circle.\n"


def test_blip2_into_flan_t5_reads_the_picture_with_the_encoder() -> None:
    recipe = blip2.flan_t5()
    with torch.device("meta"):
        model = recipe.model.build()
    for part, figure in recipe.paper.derived.items():
        assert count(model.parts()[part]) == arithmetic(figure)
    small = Small(recipe)
    assert small.spelt(asked())[1] == "<4>Question: What is it? Short answer:</s> A circle.</s>"
    batch = small.batch(asked())
    media = batch.media["image"]
    other = replace(batch, media={"image": replace(media, values=(255 - media.values[0],))})
    losses = [float(OBJECTIVES["lm"](small.model, b)[0].detach()) for b in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the decoder knows nothing of the picture"
    set_trainable(small.model, recipe.stages[1].train)
    OBJECTIVES["lm"](small.model, batch)[0].backward()
    learns = {n for n, p in small.model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    trains = ("connectors.image.qformer.", "connectors.image.project.")
    assert learns == {n for n, _ in small.model.named_parameters() if n.startswith(trains)}


# ---- MiniGPT-4 ---------------------------------------------------------------------------------------------------
def test_minigpt4_trains_one_linear_layer_in_both_stages() -> None:
    recipe, model = full("minigpt4")
    assert trained(recipe, model) == [{"connectors.image.project"}] * 2
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(learnt / 1e6, 2) == 3.15


def test_minigpt4_has_no_prompt_at_first_and_then_its_own() -> None:
    small = Small("minigpt4")
    sample = asked()
    assert small.spelt(sample, stage=1)[1] == "<s><4>A circle.\n"
    taught, said = small.spelt(sample, stage=2)
    assert said == "<s>###Human: <Img><4></Img> What is it? ###Assistant: A circle.###"
    assert small.text(taught.ids[taught.weight > 0]).strip() == "A circle.###"
    said = small.spelt(sample)[1]
    assert said.startswith("<s>Give the following image: <Img>ImageContent</Img>. You will be able")
    assert said.endswith("questions.###Human: <Img><4></Img> What is it?###Assistant: A circle.###")


@pytest.mark.parametrize("name", ["minigpt4", "instructblip", "instructblip:flan_t5"])
def test_what_starts_from_blip2_runs_its_second_stage_first_where_there_are_no_weights(name: str) -> None:
    """Else MiniGPT-4 reads a frozen Q-Former, and InstructBLIP writes through a frozen projection, that are noise.

    BLIP-2 with Vicuna is not published: there the stage runs at full scale too, on BLIP-2's Q-Former.
    """
    recipe = load_recipe(name)[1]
    known = recipe.model.connectors["image"]
    assert isinstance(known, QFormer.Config)
    assert (known.source or "").startswith("Salesforce/blip2")
    assert ([*recipe.before, *recipe.stages][0].name, bool(recipe.before)) == ("blip2", name != "instructblip")
    for scale in ("starter", "tiny"):
        small = at_scale(recipe, scale)
        assert [stage.name for stage in small.stages] == [s.name for s in (*recipe.before, *recipe.stages)]
        with torch.device("meta"):
            first, *_ = trained(small, small.build())
        assert {"connectors.image.qformer", "connectors.image.project"} == first


# ---- InstructBLIP ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def instruct() -> Small:
    return Small("instructblip")


def test_instructblips_features_change_with_the_instruction_alone(instruct: Small) -> None:
    """The same picture; the other recipe's features do not."""
    batches = [instruct.batch(asked(q)) for q in ("What is it?", "Which colour has the ground?")]
    one, two = (instruct.features(b).values for b in batches)
    assert one.shape == two.shape == (4, instruct.model.llm.dim)
    assert float((one - two).abs().max()) > 0.1
    deaf = Small("minigpt4")
    one, two = (deaf.features(deaf.batch(asked(q))).values for q in ("What is it?", "Which colour has the ground?"))
    assert torch.equal(one, two)


def test_instructblip_never_reads_the_answer(instruct: Small) -> None:
    one, two = (instruct.features(instruct.batch(asked(answer=a))).values for a in ("A circle.", "Two squares!"))
    assert torch.equal(one, two)


def test_the_words_of_an_item_are_those_of_its_turn(instruct: Small) -> None:
    """Not the frames', not another turn's, whatever stands before them in the row."""
    sample = Sample(
        Node((user(shown(0), "What is it?"), says("A dot."), user(shown(1), "And this one?"), says("A line.")))
    )
    tokens, _ = instruct.spelt(sample)
    assert [instruct.text(tokens.ids[list(i.words)]).strip() for i in tokens.items] == ["What is it?", "And this one?"]
    batch = instruct.batch(asked("Is this another?"), sample)
    media = batch.media["image"]
    words = batch.tokens.flatten()[media.words].split(list(media.word_counts))
    assert [instruct.text(w).strip() for w in words] == ["Is this another?", "What is it?", "And this one?"]


def test_a_picture_without_words_whose_questions_branch_is_refused(instruct: Small) -> None:
    branches = tuple(Node((user(q), says("Yes."))) for q in ("Is it red?", "Is it round?"))
    with pytest.raises(DataError, match="put the question into the turn of the image, or the image into each branch"):
        instruct.features(instruct.batch(Sample(Node((user(shown()),), branches))))
    # With words, answers branch; without a branch, there is nothing to read.
    answers = tuple(Node((says(a),)) for a in ("Yes.", "No."))
    instruct.features(instruct.batch(Sample(Node((user(shown(), "Is it?"),), answers))))
    instruct.features(instruct.batch(Sample(Node((user(shown()), says("Yes."))))))


def test_instructblip_trains_the_qformer_alone_or_what_was_released() -> None:
    recipe, model = full("instructblip")
    both = {"connectors.image.qformer", "connectors.image.project"}
    assert trained(recipe, model) == [both, {"connectors.image.qformer"}], "BLIP-2's stage with Vicuna, then its own"
    assert trained(instructblip.recipe(released=True), model) == [both, both]


def test_instructblip_has_no_roles(instruct: Small) -> None:
    tokens, said = instruct.spelt(asked())
    assert said == "<4></s>What is it? A circle.</s>"
    assert instruct.text(tokens.ids[tokens.weight > 0]).strip() == "A circle.</s>"


def test_data_sets_are_drawn_by_the_square_root_of_their_size() -> None:
    class Rows:
        def __init__(self, name: str, rows: int) -> None:
            self.name, self.file, self.rows = name, name, rows

        def __len__(self) -> int:
            return self.rows

    sources: Any = [Rows("large", 900), Rows("small", 100)]
    assert Mix.tempered(sources, size=400).counts == {"large": 300, "small": 100}
    assert Mix.tempered(sources, power=1.0, size=400).counts == {"large": 360, "small": 40}
