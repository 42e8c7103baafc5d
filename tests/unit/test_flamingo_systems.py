"""Flamingo, OpenFlamingo, MultiModal-GPT and IDEFICS: their figures, gated blocks and templates. About 5 s."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gated_fixtures import NAMES, batch, built, drawn, features, looked, opened, tiny
from torch import nn

from conftest import byte_tokenizer
from quintet.components import lora
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.fusion.token import TokenFusion
from quintet.data.template import Template
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.training.optim import set_trainable
from quintet.values import Media, Node, Ref, Sample, Text, Turn
from systems import count, full


@pytest.mark.parametrize("name", NAMES)
def test_at_the_start_the_logits_are_the_llms_to_the_bit(name: str) -> None:
    """Same columns, with pictures, with others, and through the LLM alone; with open gates they differ."""
    made, other = batch("ab*cd*e", "fg*h", sizes=((32, 32),)), batch("ab*cd*e", "fg*h", sizes=((32, 32),), seed=1)
    model = built(tiny(name).model)
    with model.inference():
        marked = model.fusion.inputs(model.llm.embed(made.tokens), features(model, made), made)
        alone = replace(model.config, encoders={}, connectors={}, fusion=TokenFusion.Config()).build()
        alone.llm = model.llm
        alone.llm.embed = lambda tokens: marked
        wanted = alone.logits(alone(replace(made, media={})).hidden)
        del alone.llm.embed
        assert torch.equal(model.logits(model(made).hidden), wanted)
        assert torch.equal(model.logits(model(other).hidden), wanted)
        opened(model)
        assert (model.logits(model(made).hidden) - wanted).abs().max() > 1e-2
        assert not torch.equal(model(made).hidden, model(other).hidden)


# ---- the four systems --------------------------------------------------------------------------------------------
def test_flamingos_figures() -> None:
    """The paper's own widths: the resampler 194 M behind 3072 channels, gated blocks of 1.2, 1.6 and 10 B (3, 9, 80 B).

    Rounded as printed. 9B: 32 layers of 4096, see the recipe.
    """
    model = load_recipe("flamingo")[1].model
    with torch.device("meta"):
        resampler = model.connectors["image"].build(d_in=3072, d_out=1536)
        assert round(count(resampler) / 1e6) == 194
        assert isinstance(model.fusion, GatedCrossAttention.Config)
        for dim, depth, every, billions in ((2048, 24, 1, 1.2), (4096, 32, 4, 1.6), (8192, 80, 7, 9.7)):
            blocks = replace(model.fusion, every=every, heads=dim // 128).build(dim=dim, depth=depth)
            assert round(count(blocks) / 1e9, 1) == billions


@pytest.mark.parametrize("name", NAMES)
def test_the_last_picture_alone_is_looked_at_in_all_four(name: str) -> None:
    fusion = tiny(name).model.fusion
    assert isinstance(fusion, GatedCrossAttention.Config)
    seen = looked(replace(fusion, features=0), batch("a*b*c"))
    assert drawn(seen[0]) == ["", "0", "0", "1", "1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_takes_one_column_and_64_features_in_all_four(name: str) -> None:
    model = load_recipe(name)[1].model
    size = model.spec("image").size
    assert (model.columns("image", size), model.layout("image", size).count) == (1, 64)


@pytest.mark.parametrize(("name", "first", "width"), [("open_flamingo", 3, 1024), ("idefics", 0, 1280)])
def test_openflamingos_blocks_stand_before_every_fourth_block_the_fourth_first(
    name: str, first: int, width: int
) -> None:
    """And IDEFICS's before the first; both have eight. Nothing projects the features."""
    model = full(name)[1]
    assert len(model.fusion.blocks) == 8
    assert model.fusion.config.first == first
    assert model.fusion.blocks[0].attn.k_proj.in_features == width
    assert isinstance(model.connectors["image"].leave, nn.Identity)


def test_idefics_norms_queries_and_keys_so_their_size_does_not_matter() -> None:
    """Ten times the projections change nothing but by the norms' epsilon; Flamingo's attention they do change."""

    def moved(name: str, of: Callable[[MLLM], nn.Module]) -> float:
        model = opened(built(tiny(name).model))
        made = batch("a*b", sizes=((32, 32),))
        with model.inference():
            before = model(made).hidden
            for module in of(model).modules():
                if hasattr(module, "q_proj"):
                    module.q_proj.weight.mul_(10.0)
                    module.k_proj.weight.mul_(10.0)
            return float((model(made).hidden - before).abs().max())

    for part in (lambda m: m.fusion, lambda m: m.connectors):
        assert moved("idefics", part) < 1e-2 * moved("flamingo", part)


def test_idefics_learns_the_rows_of_its_tokens_beside_a_frozen_vocabulary() -> None:
    recipe = tiny("idefics")
    model = recipe.build()
    set_trainable(model, recipe.stages[0].train)
    assert model.tokens is not None
    assert model.tokens.rows.shape == (2, 32)
    assert model.tokens.rows.requires_grad
    assert not any(p.requires_grad for p in model.llm.parameters())


def test_multimodal_gpt_adapts_the_gated_blocks_as_well() -> None:
    recipe = tiny("multimodal_gpt")
    model = recipe.build()
    set_trainable(model, recipe.stages[-1].train)
    adapted = {name.rpartition(".lora_")[0] for name, _ in lora.lora_parameters(model)}
    block = "fusion.blocks.0."
    wanted = {f"attn.{p}_proj" for p in "qkvo"} | {"mlp.up_proj", "mlp.down_proj"}
    assert {name.removeprefix(block) for name in adapted if name.startswith(block)} == wanted
    assert {name.removeprefix("llm.blocks.0.") for name in adapted if name.startswith("llm.blocks.0.")} == {
        f"attn.{p}_proj" for p in "qkvo"
    }
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in lora.lora_parameters(model)
    }


# ---- templates ---------------------------------------------------------------------------------------------------
def spelt(template: Template, *, picture: bool = True) -> str:
    """Two turns, the first with a picture; `<image>` for its column."""
    medium = (Media("image", Ref("p")),) if picture else ()
    turns = (
        Turn("user", (*medium, Text("Q?"))),
        Turn("assistant", (Text("A"),)),
        Turn("user", (Text("Q2?"),)),
        Turn("assistant", (Text("A2"),)),
    )
    tokenizer = byte_tokenizer(*template.added_tokens)
    tokens = template.tokens(Sample(Node(turns)), tokenizer, lambda m: ((32, 32), 1))
    text = tokenizer.decode(tokens.ids.tolist(), keep_special=True)
    return text.removeprefix("<s>").replace("<pad>", "<image>")


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
FAKE = "<fake_token_around_image>"


@pytest.mark.parametrize(
    ("name", "stage", "text"),
    [
        ("flamingo", 0, "<image>A<EOC>A2<EOC>"),
        ("flamingo", 1, "<image>Question: Q? Answer: A<EOC>Question: Q2? Answer: A2<EOC>"),
        ("open_flamingo", 0, "<image>A<|endofchunk|>A2<|endofchunk|>"),
        (
            "open_flamingo",
            None,
            "<image>Question:Q? Short answer:A<|endofchunk|>Question:Q2? Short answer:A2<|endofchunk|>",
        ),
        (
            "multimodal_gpt",
            -1,
            ALPACA + "### Image:\n<image>\n\n### Instruction:\nQ?\n\n### Response:\nA### End."
            "\n\n### Instruction:\nQ2?\n\n### Response:\nA2### End.",
        ),
        ("idefics", 0, f"{FAKE}<image>{FAKE}A</s>A2</s>"),
        (
            "idefics",
            1,
            f"User:{FAKE}<image>{FAKE}Q?<end_of_utterance>\nAssistant: A<end_of_utterance>"
            "\nUser:Q2?<end_of_utterance>\nAssistant: A2<end_of_utterance>",
        ),
    ],
)
def test_published_spelling(name: str, stage: int | None, text: str) -> None:
    """Of a stage, or of the finished model."""
    recipe = load_recipe(name)[1]
    assert spelt(recipe.template if stage is None else recipe.stages[stage].template) == text


def test_text_alone_shares_multimodal_gpts_template_without_the_block_for_the_image() -> None:
    template = load_recipe("multimodal_gpt")[1].template
    with_picture, without = spelt(template), spelt(template, picture=False)
    assert with_picture.replace("### Image:\n<image>\n\n", "") == without
