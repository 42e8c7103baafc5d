"""Experts inside the LLM, CogVLM's and MoE-LLaVA's: what the papers say is special about them, tiny. About 5 s."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_fixtures import VOCAB, bare, batch, hidden, sample, scramble, spelt, tiny
from torch import Tensor

from conftest import byte_tokenizer
from quintet.components.fusion.expert import VisualExpert
from quintet.components.presets_llm import QWEN3_0_6B
from quintet.errors import ConfigError
from quintet.lab.pretrained import build_model
from quintet.lab.recipe import load_recipe
from quintet.recipes._figures import arithmetic
from quintet.training.objectives.lm import lm
from systems import count, full


# ---- CogVLM ------------------------------------------------------------------------------------------------------
def test_cogvlms_experts_begin_as_the_llm_so_a_picture_is_read_as_by_it() -> None:
    recipe, model = tiny("cogvlm")
    for layer, block in zip(model.fusion.layers, model.llm.blocks, strict=True):
        theirs = block.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in layer.state_dict().items())
    made = batch(recipe, [sample(pictures=1), sample(pictures=0)])
    torch.testing.assert_close(hidden(model, made), hidden(bare(model), made), atol=1e-5, rtol=0)


def test_cogvlm_reads_text_exactly_as_its_llm_whatever_the_experts_learnt() -> None:
    recipe, model = tiny("cogvlm")
    scramble(model.fusion)
    text, seen = (batch(recipe, [sample(pictures=n), sample(pictures=0)]) for n in (0, 1))
    assert torch.equal(hidden(model, text), hidden(bare(model), text))
    assert not torch.allclose(hidden(model, seen), hidden(bare(model), seen), atol=0.1), "the experts do something"


def test_cogvlms_expert_serves_the_begin_and_the_patches_and_not_the_end() -> None:
    """One layer: a column's keys and values come from weights of its own kind, so its attention to itself tells."""
    recipe, model = tiny("cogvlm")
    made = batch(recipe, [sample(pictures=1)])
    item = made.media["image"]
    split = model.fusion._split(made.media, made.tokens)
    assert split.image.tolist() == item.slots.tolist()[:-1]
    other: Any = VisualExpert.Config(serves_last=True).build_for(recipe.model.llm)
    assert other._split(made.media, made.tokens).image.tolist() == item.slots.tolist()


def test_what_nothing_reads_of_the_last_expert_is_saved_and_is_no_parameter() -> None:
    _, model = tiny("cogvlm")
    last = model.fusion.layers[-1]
    assert {n for n, _ in last.named_parameters()} == {"attn.k_proj.weight", "attn.v_proj.weight"}
    assert {"attn.q_proj.weight", "attn.o_proj.weight", "mlp.up_proj.weight"} <= last.state_dict().keys()
    _, whole = tiny("cogvlm", serves_last=True)
    assert len(list(whole.fusion.layers[-1].parameters())) == 7


def test_patches_share_a_position_between_that_of_the_begin_and_that_of_the_end() -> None:
    """<s>, begin, 16 patches, end, then " [INST]": 0, 1, 2 … 2, 3, 4."""
    recipe, _ = tiny("cogvlm")
    made = batch(recipe, [sample(pictures=1)])
    assert made.positions[0, :21].tolist() == [0, 1, *[2] * 16, 3, 4, 5]
    text = byte_tokenizer().decode(made.tokens[0, 19:].tolist(), keep_special=True)
    assert text == " [INST] What is it? [/INST] A dog.</s>"


def test_an_llm_whose_blocks_cannot_be_taken_apart_is_refused() -> None:
    from quintet.components.llms.hf import HFCausal

    recipe, _ = tiny("cogvlm")
    with pytest.raises(ConfigError, match=r"a visual expert works inside the blocks of our own decoder; HFCausal"):
        recipe.model.fusion.build_for(HFCausal.Config(config={"model_type": "opt"}))


def test_experts_hold_in_a_decoder_with_biases_and_norms_on_heads() -> None:
    recipe, _ = tiny("cogvlm")
    llm = replace(QWEN3_0_6B.tiny(), qkv_bias=True)
    model = build_model(replace(recipe.model, llm=llm), vocab=VOCAB).eval()
    made = batch(recipe, [sample(pictures=1)])
    torch.testing.assert_close(hidden(model, made), hidden(bare(model), made), atol=1e-5, rtol=0)


def test_cogvlms_trainable_share_is_the_papers() -> None:
    """Section 2.1 of the paper: 6.5 B in experts and adapter."""
    paper = load_recipe("cogvlm")[1].paper
    assert sum(map(arithmetic, paper.derived.values())) == pytest.approx(6.5e9, rel=0.01)
    assert paper.trainable == {"pretrain-grounding": "6.5 B"}


def test_cogvlms_templates_are_the_published_ones() -> None:
    recipe = load_recipe("cogvlm")[1]
    assert spelt(recipe.template).endswith(" [INST] What is it? [/INST] A dog.</s>")
    assert spelt(recipe.stages[1].template) == "<s>Question: What is it? Answer: A dog.</s>"


# ---- MoE-LLaVA ---------------------------------------------------------------------------------------------------
def test_moe_llavas_experts_begin_as_copies_so_the_first_forward_is_the_dense_models() -> None:
    recipe, model = tiny("moe_llava")
    (layer,) = model.fusion.layers
    mlp = model.llm.blocks[0].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert all(torch.equal(expert, getattr(mlp, name).weight) for expert in getattr(layer, name))
    made = batch(recipe, [sample(pictures=1), sample(pictures=0)])
    torch.testing.assert_close(hidden(model, made), hidden(bare(model), made), atol=1e-5, rtol=0)
    scramble(model.fusion)
    assert not torch.allclose(hidden(model, made), hidden(bare(model), made), atol=0.1)


def test_experts_stand_in_every_second_layer() -> None:
    model = load_recipe("moe_llava")[1].model
    with torch.device("meta"):
        fusion: Any = model.fusion.build_for(model.llm)
    assert len(fusion.layers) == 12
    called: list[tuple[int, bool]] = []

    def block(hidden: Tensor, ctx: object, inside: object = None) -> Tensor:
        called.append((len(called), inside is not None))
        return hidden

    for index in range(4):
        fusion.around(index, block, torch.zeros(1), None)
    assert called == [(0, True), (1, False), (2, True), (3, False)]


def test_a_token_goes_through_its_two_experts_weighted_to_one() -> None:
    """By hand for every token: of its two likeliest experts, p / (p + q) of one and q / (p + q) of the other."""
    _, model = tiny("moe_llava")
    (layer,) = model.fusion.layers
    scramble(layer)
    x = torch.randn(1, 6, 32)
    out, balance, dropped = layer(x, torch.ones(6, dtype=torch.bool))
    probs = layer.router(x[0]).softmax(-1)
    for token in range(6):
        (p, q), (a, b) = (t.tolist() for t in probs[token].topk(2))
        by_hand = (p * layer._expert(a, x[0, token]) + q * layer._expert(b, x[0, token])) / (p + q)
        torch.testing.assert_close(out[0, token], by_hand, atol=1e-4, rtol=1e-5)
    shares = torch.stack([(probs.argmax(-1) == e).float().mean() for e in range(4)])
    torch.testing.assert_close(balance, 4 * (shares * probs.mean(0)).sum())
    assert float(dropped) == 0


def test_an_even_router_has_a_balance_of_one_and_padding_has_no_part_in_it() -> None:
    """Four tokens, each sure of an expert of its own: 4 · 4 · (1/4 · 1/4). Sure of one: 4."""
    _, model = tiny("moe_llava")
    (layer,) = model.fusion.layers
    layer.router.weight.data = torch.zeros(4, 32)
    layer.router.weight.data[:, :4] = 100 * torch.eye(4)
    x = torch.eye(32)[None, :4]
    real = torch.ones(4, dtype=torch.bool)
    assert float(layer(x, real)[1].detach()) == pytest.approx(1.0)
    assert float(layer(x[:, :1].expand(1, 4, 32), real)[1].detach()) == pytest.approx(4.0)
    padded = torch.cat([x, x[:, :1].expand(1, 9, 32)], 1)
    assert float(layer(padded, torch.arange(13) < 4)[1].detach()) == pytest.approx(1.0)


def test_what_is_over_capacity_is_dropped_and_counted_in_training_alone() -> None:
    """Eight tokens want expert 0, then 1: room for 1 · 2 · 8 / 4 = 4 each, so half of the choices are dropped.

    The last four go through no expert at all; first choices have room before second ones.
    """
    _, model = tiny("moe_llava", capacity=1.0)
    (layer,) = model.fusion.layers
    layer.router.weight.data = torch.zeros(4, 32)
    layer.router.weight.data[:2, 0] = torch.tensor([3.0, 2.0])
    x, real = torch.randn(1, 8, 32), torch.ones(8, dtype=torch.bool)
    x[..., 0] = 1.0
    assert float(layer(x, real)[2]) == 0
    layer.train()
    out, _, dropped = layer(x, real)
    assert float(dropped) == 0.5
    assert bool((out[0, :4] != 0).any(-1).all())
    assert not out[0, 4:].any()
    layer.router.weight.data[:2, 1] = torch.tensor([-1.0, 4.0])
    x[..., 1] = (torch.arange(8) == 7).float()
    keep = layer._keep(layer.router(x[0]).topk(2).indices, real)
    assert keep[:, 0].tolist() == [True] * 4 + [False] * 3 + [True], "the last one's first choice is expert 1"
    assert keep[:, 1].tolist() == [True] * 3 + [False] * 5


def test_the_balance_is_added_to_the_loss_as_often_as_the_stage_says() -> None:
    recipe, model = tiny("moe_llava")
    scramble(model.fusion)
    stage = recipe.stages[-1]
    assert stage.extra == {"balance": 0.01}
    made = batch(recipe, [sample(pictures=1), sample(pictures=0, answer="Yes.")])
    loss, count, notes = lm(model, made)
    more, _, _ = lm(model, made, stage.extra)
    balance = model(made).extra["balance"]
    assert notes.keys() == {"balance", "dropped"}
    torch.testing.assert_close(notes["balance"], balance.detach() * count)
    torch.testing.assert_close(more - loss, 0.01 * balance * count, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"should add 'entropy', but this model gives \['balance', 'dropped'\]"):
        lm(model, made, {"entropy": 1.0})


def test_experts_are_made_of_what_the_stages_before_them_learnt(tmp_path: Path) -> None:
    """Trained at the tiny scale: dense first, then, in a run that goes on, from copies of the trained network."""
    from quintet.data.scenes.world import World
    from quintet.data.scenes.write import make_scenes
    from quintet.lab.run import Job, train
    from quintet.model.checkpoint import load_model

    make_scenes(tmp_path / "scenes", 16, 0, World())
    job = Job(recipe="moe_llava", out=tmp_path / "run", scale="tiny", scenes=tmp_path / "scenes")
    train(replace(job, stages=("pretrain", "instruct")))
    dense: Any = load_model(tmp_path / "run" / "model")
    for name in ("gate_proj", "up_proj", "down_proj"):
        learnt = getattr(dense.llm.blocks[0].mlp, name).weight
        assert all(torch.equal(expert, learnt) for expert in getattr(dense.fusion.layers[0], name))
    began = build_model(dense.config, vocab=dense.llm.vocab).llm
    assert not torch.equal(began.blocks[0].mlp.up_proj.weight, dense.llm.blocks[0].mlp.up_proj.weight)
    train(replace(job, resume=True))
    routed: Any = load_model(tmp_path / "run" / "model")
    assert torch.equal(routed.llm.blocks[0].mlp.up_proj.weight, dense.llm.blocks[0].mlp.up_proj.weight)
    moved = (routed.fusion.layers[0].up_proj - dense.fusion.layers[0].up_proj).detach().abs()
    assert 0 < float(moved.max()) < 0.01, "two steps away from the trained network"
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["stage"] == "experts"
    assert last["balance"] >= 0.9
    assert 0 <= last["dropped"] < 1


def test_moe_llavas_sizes_are_the_papers() -> None:
    """Its table of sizes (from memory): 2.2 B work on a token, 3.1 B are there, without the vision encoder."""
    size = {name: count(part) for name, part in full("moe_llava")[1].parts().items()}
    network = 3 * 2048 * 5504
    there = size["llm"] + size["connectors.image"] + size["fusion"] - 12 * network
    assert round(there / 1e9, 1) == 3.1
    assert round((there - 12 * 2 * network) / 1e9, 1) == 2.2


def test_moe_llavas_template_is_the_published_one() -> None:
    template = replace(load_recipe("moe_llava")[1].template, system="Assist.")
    assert spelt(template).endswith("Assist. USER: What is it? ASSISTANT: A dog.<|endoftext|>")


def test_a_stage_that_trains_the_fusion_runs_with_it() -> None:
    stage = load_recipe("moe_llava")[1].stages[-1]
    with pytest.raises(ConfigError, match="stage 'experts' trains the fusion but runs without it"):
        replace(stage, fused=False)
