"""The recipes of resamplers, abstractors and adapters: mPLUG-Owl, Qwen-VL, MM1 and Lynx. About 10 s."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.components.connectors.abstractor import Abstractor, CAbstractor
from quintet.components.connectors.resampler import Resampler, sincos
from quintet.components.fusion.adapters import Adapters
from quintet.errors import ConfigError
from quintet.lab.recipe import load_recipe
from quintet.recipes import lynx
from quintet.recipes._figures import arithmetic
from quintet.training.optim import set_trainable
from quintet.values import Features, Layout, Node, Sample
from systems import Small, asked, count, full, says, shown, trained, user


# ---- mPLUG-Owl ---------------------------------------------------------------------------------------------------
def test_mplug_owl_gives_64_queries_and_a_learned_end() -> None:
    """The 65th feature is the same for every picture, and it is learnt."""
    recipe, model = full("mplug_owl")
    assert recipe.model.columns("image", (224, 224)) == 65
    made: Any = recipe.model.connectors["image"].tiny().build(d_in=32, d_out=16)
    with torch.no_grad():
        one, two = made(Features(torch.randn(18, 32), (Layout((2, 4), 1),) * 2)).split()
    assert one.shape == (5, 16)
    assert torch.equal(one[-1], made.end)
    assert torch.equal(one[-1], two[-1])
    assert float((one[:-1] - two[:-1]).abs().amax(-1).min()) > 1e-3
    del model


def test_mplug_owl_changes_sides_between_its_stages() -> None:
    recipe, model = full("mplug_owl")
    first, second = recipe.stages
    set_trainable(model, first.train)
    learns = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {"encoders", "connectors"}
    assert all(p.requires_grad for p in model.encoders.parameters())
    set_trainable(model, second.train)
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learns
    assert all(n.startswith("llm.") and "lora_" in n for n in learns)
    assert {n.split(".")[-2] for n in learns} == {"q_proj", "v_proj"}


def test_mplug_owl_says_that_a_human_shows_the_picture() -> None:
    small = Small("mplug_owl")
    assert small.spelt(asked(), stage=0)[1] == "<s><5>A circle.</s>"
    said = small.spelt(asked())[1]
    assert said.startswith("<s>The following is a conversation between a curious human and AI assistant.")
    assert said.endswith("the user's questions.\nHuman: <5>\nHuman: What is it?\nAI: A circle.</s>")


# ---- Qwen-VL -----------------------------------------------------------------------------------------------------
def test_qwen_vl_has_the_three_sizes_of_its_paper() -> None:
    """1.9 B, 0.08 B and 7.7 B (table 1); the paper counts the projection to the encoder."""
    _, model = full("qwen_vl")
    connector: Any = model.connectors["image"]
    after = count(connector.norm) + count(connector.project)
    assert round((count(model.encoders["image"]) + after) / 1e9, 1) == 1.9
    assert round((count(connector) - after) / 1e9, 2) == 0.08
    assert round(count(model.llm) / 1e9, 1) == 7.7


def test_qwen_vls_encoder_has_no_class_token() -> None:
    encoder: Any = full("qwen_vl")[1].encoders["image"]
    assert encoder.cls is None
    assert encoder.positions.shape == (256, 1664)


def test_what_trains_in_qwen_vls_three_stages() -> None:
    vision, adapter, llm = "encoders.image", "connectors.image", "llm"
    assert trained(*full("qwen_vl")) == [{vision, adapter}, {vision, adapter, llm}, {adapter, llm}]


def test_positions_are_maes() -> None:
    """Column 3 of row 1 on a grid of 4, by the formula: sines and cosines of the column, then of the row."""
    made = sincos(4, 8)[1 * 4 + 3]
    rates = torch.tensor([1.0, 0.01])
    wanted = torch.cat([f(place * rates) for place in (3.0, 1.0) for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(made, wanted)
    assert torch.equal(sincos(4, 8, grid=(4, 4)), sincos(4, 8))
    assert sincos(4, 8, grid=(8, 6)).shape == (48, 8)


def test_the_resampler_knows_where_a_patch_is() -> None:
    """Patches in another order: without positions on the keys, a sum over them would be the same."""
    torch.manual_seed(0)
    made: Any = Resampler.Config(side=2, heads=2).build(d_in=8, d_out=16)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    patches = torch.randn(16, 8)
    one, two = (made(Features(p, (Layout((4, 4)),))).values.detach() for p in (patches, patches.flip(0)))
    assert float((one - two).abs().max()) > 1e-2
    with pytest.raises(ConfigError, match="let the encoder select its patches"):
        made.config.layout(Layout((4, 4), extra=1))


def test_queries_may_begin_by_looking_at_their_own_place() -> None:
    """At starter scale: of 8 × 8 patches each of 4 × 4 queries sees mostly the four that it stands for."""
    torch.manual_seed(0)
    shares = {}
    for config in (Resampler.Config(), Resampler.Config().starter()):
        config = replace(config, side=4, heads=6)
        made: Any = config.build(d_in=192, d_out=192)
        patches = torch.randn(64, 192, requires_grad=True)
        found = made(Features(patches, (Layout((8, 8)),))).values
        own = torch.tensor([[row // 2 * 4 + col // 2 for col in range(8)] for row in range(8)]).flatten()
        felt = torch.zeros(16, 64)
        for query in range(16):
            (grad,) = torch.autograd.grad(found[query].square().sum(), patches, retain_graph=True)
            felt[query] = grad.norm(dim=1)
        shares[config.local] = float((felt * (own[None] == torch.arange(16)[:, None])).sum() / felt.sum())
    assert shares[0.0] < 0.1, "four of 64 are a sixteenth"
    assert shares[8.0] > 0.3


def test_qwen_vl_numbers_the_pictures_of_a_conversation() -> None:
    small = Small("qwen_vl")
    assert small.spelt(asked(), stage=0)[1] == "<img><4></img>A circle.<|endoftext|>"
    assert small.spelt(asked(), stage=1)[1] == "<img><4></img>What is it? Answer: A circle.<|endoftext|>"
    two = Node(
        (user(shown(0), "One?"), says("Yes.")), tuple(Node((user(shown(n), f"{n}?"), says("."))) for n in (1, 2))
    )
    said = small.spelt(Sample(two))[1]
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img><4></img>\n"
    assert said.startswith(start + "One?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>")
    assert said.count("Picture 2: <img>") == 2, "a branch does not count its sibling's pictures"
    ids = small.processor.tokenizer.specials
    assert {"<img>", "</img>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"} <= ids.keys()


# ---- MM1 ---------------------------------------------------------------------------------------------------------
def test_mm1s_connector_is_one_word_and_its_size_another() -> None:
    """Another kind leaves the 144 features and the rest of the model as they are; a larger picture is read as well."""
    recipe = load_recipe("mm1")[1]
    kinds = [Abstractor.Config(queries=144, end=False), CAbstractor.Config(side=12), Resampler.Config(side=12)]
    for connector in kinds:
        model = replace(recipe.model, connectors={"image": connector})
        assert model.columns("image", (378, 378)) == 144
        assert (model.encoders, model.llm) == (recipe.model.encoders, recipe.model.llm)
    large = replace(recipe.model, encoders={"image": recipe.model.encoders["image"].at(size=672)})  # type: ignore[attr-defined]
    assert large.columns("image", large.spec("image").size) == 144


def test_mm1_trains_everything_and_learns_every_word_of_a_page() -> None:
    recipe, model = full("mm1")
    assert trained(recipe, model) == [set(model.parts())] * 2
    small = Small(recipe)
    tokens, _ = small.spelt(asked("A dog, and then"), stage=0)
    assert small.text(tokens.ids[tokens.weight > 0]).strip().startswith("A dog, and then")


def test_a_c_abstractor_sees_neighbours_and_gives_a_square_of_any_grid() -> None:
    torch.manual_seed(0)
    made: Any = CAbstractor.Config(side=2, dim=8, depth=1).build(d_in=4, d_out=6)
    grids = (Layout((4, 6)), Layout((3, 3)))
    found = made(Features(torch.randn(33, 4), grids))
    assert found.layouts == (Layout((2, 2)),) * 2
    patches = torch.randn(16, 4)
    mixed = patches[torch.randperm(16)]
    one, two = (made(Features(p, (Layout((4, 4)),))).values.detach() for p in (patches, mixed))
    assert float((one.mean(0) - two.mean(0)).abs().max()) > 1e-3, "a mean of patches would be the same"


# ---- Lynx --------------------------------------------------------------------------------------------------------
def test_lynx_adapts_every_block_of_a_frozen_llm_or_every_second() -> None:
    recipe, model = full("lynx")
    assert trained(recipe, model) == [{"connectors.image", "fusion"}] * 3
    assert len(model.fusion.adapters) == 32  # type: ignore[arg-type]
    assert recipe.model.columns("image", (420, 420)) == 32
    few = lynx.recipe(released=True)
    with torch.device("meta"):
        fusion = few.model.build().fusion
    assert count(fusion) == arithmetic(few.paper.derived["fusion"])
    assert len(fusion.adapters) == 16  # type: ignore[arg-type]


def test_an_adapter_stands_behind_its_block() -> None:
    """With a scale of 0 the LLM is what it was; otherwise the named blocks' outputs change, and by the formula."""
    torch.manual_seed(0)
    made: Any = Adapters.Config(every=2).build(dim=8, depth=4)
    block = nn.Linear(8, 8)
    hidden, ctx = torch.randn(1, 3, 8), None

    def run(index: int) -> Tensor:
        return made.around(index, lambda h, ctx: block(h), hidden, ctx).detach()

    plain = block(hidden).detach()
    assert torch.equal(run(1), plain)
    assert torch.equal(run(3), plain)
    adapter = made.adapters[1]
    with torch.no_grad():
        inner = adapter.up_proj(nn.functional.silu(adapter.down_proj(nn.functional.layer_norm(plain, (8,)))))
    torch.testing.assert_close(run(2), plain + inner)
    assert float(inner.abs().max()) > 0
    nn.init.zeros_(adapter.scale)
    assert torch.equal(run(2), plain)


def test_lynx_writes_its_prefix_before_the_user() -> None:
    small = Small("lynx")
    assert small.spelt(asked())[1] == "<s><6>User: What is it?\nBot: A circle.</s>"
