"""Experts and adapters inside the LLM: what each system's paper says is special about it, on tiny models. About 5 s."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import byte_tokenizer, picture
from quintet.components.fusion.expert import VisualExpert
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.rope import rotate, tables
from quintet.components.presets_llm import QWEN3_0_6B
from quintet.components.roles import Context
from quintet.data.collate import Loaded, collate
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.lab.pretrained import build_model
from quintet.lab.run import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives.lm import lm
from quintet.training.optim import set_trainable
from quintet.values import Batch, Features, Media, Node, Origin, Ref, Sample, Text, Turn

VOCAB = 512


def tiny(name: str, **fusion: Any) -> tuple[Recipe, Any]:
    """A recipe at the tiny scale and its model as training finds it; `fusion` replaces settings of its fusion."""
    recipe = at_scale(load_recipe(name)[1], "tiny")
    if fusion:
        recipe = replace(recipe, model=replace(recipe.model, fusion=replace(recipe.model.fusion, **fusion)))
    return recipe, build_model(recipe.model, vocab=VOCAB).eval()


def pixels(number: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture(number, height=32, width=32))).permute(2, 0, 1).contiguous()


def sample(*, pictures: int, question: str = "What is it?", answer: str = "A dog.") -> Sample:
    media = tuple(Media("image", Ref(f"{n}.png")) for n in range(pictures))
    turns = (Turn("user", (*media, Text(question))), Turn("assistant", (Text(answer),)))
    return Sample(Node(turns), Origin("memory", 1))


def batch(recipe: Recipe, samples: Sequence[Sample], *, template: Template | None = None, first: int = 0) -> Batch:
    """A row a sample; pictures are numbered from `first`."""
    columns = recipe.model.columns("image", (32, 32))
    spelt = template or recipe.template
    rows = [[spelt.tokens(s, byte_tokenizer(), lambda medium: ((32, 32), columns))] for s in samples]
    count = sum(len(tokens.items) for row in rows for tokens in row)
    return collate(rows, {n: Loaded(pixels(first + n)) for n in range(count)}, pad=0)


def hidden(model: Any, made: Batch) -> Tensor:
    with model.inference():
        return model(made).hidden


def bare(model: Any) -> Any:
    """The same encoder, connector and LLM with nothing around the blocks."""
    found = replace(model.config, fusion=TokenFusion.Config()).build(vocab=VOCAB).eval()
    found.encoders, found.connectors, found.llm = model.encoders, model.connectors, model.llm
    return found


@torch.no_grad()
def scramble(module: torch.nn.Module, *, seed: int = 1) -> None:
    """Other weights, far from what they began as."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter))


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
    published = load_recipe("cogvlm")[1].paper.published
    assert sum(published.values()) == pytest.approx(6.5e9, rel=0.01)


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
    recipe = load_recipe("moe_llava")[1]
    with torch.device("meta"):
        parts = recipe.model.build().parts()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    network = 3 * 2048 * 5504
    there = count["llm"] + count["connectors.image"] + count["fusion"] - 12 * network
    assert round(there / 1e9, 1) == 3.1
    assert round((there - 12 * 2 * network) / 1e9, 1) == 2.2


# ---- LLaMA-Adapter -----------------------------------------------------------------------------------------------
def prompts_of(model: Any, layer: int) -> Any:
    return model.fusion.prompts[layer]


def open_gates(model: Any, *, seed: int = 1) -> None:
    """Gates of 0.3 to 0.9, and prompts of the size of hidden states."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.fusion.named_parameters():
            if name.endswith("gate"):
                parameter.uniform_(0.3, 1.5)


@pytest.mark.parametrize("name", ["llama_adapter", "llama_adapter_v2"])
def test_with_gates_at_zero_the_output_is_the_llms_exactly(name: str) -> None:
    """Whatever the prompts are, and with a picture: its column holds zeros, which the LLM reads as it would any row."""
    recipe, model = tiny(name)
    text, seen = (batch(recipe, [sample(pictures=n), sample(pictures=0)]) for n in (0, 1))
    plain = bare(model)
    assert torch.equal(hidden(model, text), hidden(plain, text))
    embeds = plain.llm.embed(seen.tokens)
    embeds[0, int(seen.media["image"].slots)] = 0
    with torch.no_grad():
        ctx = Context(enter=seen.enter, exit=seen.exit, order=seen.order, positions=seen.positions)
        assert torch.equal(hidden(model, seen), plain.llm(embeds, ctx))
    open_gates(model)
    assert not torch.allclose(hidden(model, seen), plain.llm(embeds, ctx), atol=0.1)


def looked(model: Any, made: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of the first layer: queries and keys at their positions, and values, a head a query."""
    block: Any = model.llm.blocks[0]
    x = block.attend_norm(model.fusion.inputs(model.llm.embed(made.tokens), features(model, made), made))
    q, k, v = (each.transpose(1, 2) for each in block.attn.project(x))
    rope = tables(model.llm.cfg.rope, made.positions, head_dim=8, dtype=torch.float32)
    return rotate(q, rope), rotate(k, rope).repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)


def features(model: Any, made: Batch) -> dict[str, Features]:
    return {kind: model.connectors[kind](model.encode(kind, made)) for kind in made.media}


def attended(model: Any, made: Batch) -> Tensor:
    """What reaches the first block's output projection, float[B, T, D]."""
    found: list[Tensor] = []
    hook = model.llm.blocks[0].attn.o_proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    hidden(model, made)
    hook.remove()
    return found[0]


@torch.no_grad()
def test_llama_adapters_prompts_have_a_softmax_of_their_own_and_the_picture_is_added_to_them() -> None:
    """By hand for every column: the prompts, from the picture's mark on with its feature added."""
    recipe, model = tiny("llama_adapter")
    open_gates(model)
    made = batch(recipe, [sample(pictures=1)])
    q, k, v = looked(model, made)
    (feature,) = features(model, made)["image"].values
    mark = int(made.media["image"].slots)
    attn: Any = model.llm.blocks[0].attn
    prompts = prompts_of(model, 0)
    out = attended(model, made)[0]
    for column in range(made.tokens.shape[1]):
        prompt = prompts.prompt + feature * (column >= mark)
        keys, values = (p(prompt).view(-1, 2, 8).repeat_interleave(2, dim=1) for p in (attn.k_proj, attn.v_proj))
        for head in range(4):
            own = (k[0, head, : column + 1] @ q[0, head, column] / 8**0.5).softmax(0) @ v[0, head, : column + 1]
            beside = (keys[:, head] @ q[0, head, column] / 8**0.5).softmax(0) @ values[:, head]
            by_hand = own + prompts.gate[0, head].tanh().flatten() * beside
            torch.testing.assert_close(out[column, head * 8 : head * 8 + 8], by_hand, atol=2e-5, rtol=1e-4)


def test_llama_adapter_learns_1_2_million_numbers_in_the_last_30_layers() -> None:
    recipe = load_recipe("llama_adapter")[1]
    with torch.device("meta"):
        model: Any = recipe.model.build()
    assert len(model.fusion.prompts) == 30
    assert round(sum(p.numel() for p in model.fusion.parameters()) / 1e6, 1) == 1.2


def test_prompts_are_refused_where_keys_are_not_linear() -> None:
    recipe, _ = tiny("llama_adapter")
    with pytest.raises(ConfigError, match=r"without biases and norms on queries and keys .* qwen3 has them"):
        recipe.model.fusion.build_for(QWEN3_0_6B.tiny())
    with pytest.raises(ConfigError, match="skip is 2, and the LLM has 2 layers"):
        replace(recipe.model.fusion, skip=2).build_for(recipe.model.llm)


# ---- LLaMA-Adapter V2 --------------------------------------------------------------------------------------------
def test_v2s_two_kinds_of_data_train_two_sets_that_have_nothing_in_common() -> None:
    recipe, model = tiny("llama_adapter_v2")
    learnt: list[set[str]] = []
    for stage in recipe.stages:
        set_trainable(model, stage.train)
        learnt.append({name for name, p in model.named_parameters() if p.requires_grad})
    pairs, instructions = learnt
    assert not pairs & instructions
    assert {name.split(".")[0] for name in pairs} == {"connectors", "fusion"}
    assert {name.rpartition(".")[0] for name in instructions} == {
        "fusion.prompts.0",
        *(f"fusion.tuning.{layer}.{what}" for layer in (0, 1) for what in ("bias", "scale")),
    }
    assert pairs | instructions == {
        name for name, _ in model.named_parameters() if name.startswith(("connectors", "fusion"))
    }


@torch.no_grad()
def test_v2s_picture_is_a_prompt_of_the_first_layer_alone_behind_a_gate() -> None:
    """By hand: before the mark nothing; from it on the softmax over the picture's features alone."""
    recipe, model = tiny("llama_adapter_v2")
    open_gates(model)
    made = batch(recipe, [sample(pictures=1)])
    q, k, v = looked(model, made)
    values = features(model, made)["image"].values
    assert values.shape == (4, 32)
    attn: Any = model.llm.blocks[0].attn
    keys, found = (p(values).view(-1, 2, 8).repeat_interleave(2, dim=1) for p in (attn.k_proj, attn.v_proj))
    out, mark = attended(model, made)[0], int(made.media["image"].slots)
    for column in (0, mark - 1, mark, mark + 5):
        for head in range(4):
            by_hand = (k[0, head, : column + 1] @ q[0, head, column] / 8**0.5).softmax(0) @ v[0, head, : column + 1]
            if column >= mark:
                beside = (keys[:, head] @ q[0, head, column] / 8**0.5).softmax(0) @ found[:, head]
                by_hand = by_hand + model.fusion.early[0].gate[0, head].tanh().flatten() * beside
            torch.testing.assert_close(out[column, head * 8 : head * 8 + 8], by_hand, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_biases_scales_and_norms_tune_every_linear_layer() -> None:
    """The same as an LLM whose weights are s · W with a bias of s · b, and whose norms are w · n."""
    recipe, model = tiny("llama_adapter_v2")
    torch.manual_seed(0)
    for parameter in model.fusion.tuning.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    made = batch(recipe, [sample(pictures=0)])
    tuned = hidden(model, made)
    plain = copy.deepcopy(bare(model))
    assert not torch.allclose(tuned, hidden(plain, made), atol=0.1)
    for block, tuning in zip(plain.llm.blocks, model.fusion.tuning, strict=True):
        for owner in (block.attn, block.mlp):
            for name, layer in list(owner.named_children()):
                if name in tuning.bias:
                    wide = torch.nn.Linear(layer.in_features, layer.out_features)
                    scale, bias = tuning.scale[name], tuning.bias[name]
                    wide.weight.copy_(scale[:, None] * layer.weight)
                    wide.bias.copy_(scale * bias)
                    setattr(owner, name, wide)
        for name in ("attend_norm", "feed_norm"):
            getattr(block, name).weight.mul_(tuning.scale[name])
    torch.testing.assert_close(tuned, hidden(plain, made), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_codes_variant_adds_a_feature_to_each_prompt() -> None:
    """`visual="added"` with as many features as prompts, and biases: against keys made of (prompt + feature)."""
    recipe, model = tiny("llama_adapter_v2", visual="added", skip=0, length=4)
    open_gates(model)
    torch.manual_seed(0)
    for parameter in model.fusion.tuning.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    made = batch(recipe, [sample(pictures=1)])
    values, prompts, attn = features(model, made)["image"].values, prompts_of(model, 0), model.llm.blocks[0].attn
    tuned = model.fusion.tuning[0]()
    added = [tuned.linear(n, getattr(attn, n), prompts.prompt + values) for n in ("k_proj", "v_proj")]
    keys, found = (each.view(-1, 2, 8).repeat_interleave(2, dim=1).transpose(0, 1) for each in added)
    q = torch.randn(1, 4, made.tokens.shape[1], 8)
    ctx = Context(enter=made.enter, exit=made.exit, order=made.order, positions=made.positions)
    ctx = replace(ctx, memory=model.fusion.memory({"image": features(model, made)["image"]}, made))
    out = model.fusion._look(q, attn, tuned, prompts, ctx)
    by_hand = prompts.gate.tanh() * ((q @ keys.mT).softmax(-1) @ found)
    mark = int(made.media["image"].slots)
    torch.testing.assert_close(out[:, :, mark:], by_hand[:, :, mark:], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(out[:, :, :mark], by_hand[:, :, :mark], atol=0.01)


def test_v2s_trainable_share_is_the_papers() -> None:
    """Biases, scales and norms: 0.04 % of LLaMA."""
    recipe = load_recipe("llama_adapter_v2")[1]
    with torch.device("meta"):
        model: Any = recipe.model.build()
    share = sum(p.numel() for p in model.fusion.tuning.parameters()) / sum(p.numel() for p in model.llm.parameters())
    assert round(100 * share, 2) == 0.04
    assert (len(model.fusion.prompts), len(model.fusion.early)) == (31, 1)


# ---- stages without the fusion -----------------------------------------------------------------------------------
def test_a_stage_that_trains_the_fusion_runs_with_it() -> None:
    stage = load_recipe("moe_llava")[1].stages[-1]
    with pytest.raises(ConfigError, match="stage 'experts' trains the fusion but runs without it"):
        replace(stage, fused=False)


def test_the_templates_are_the_published_ones() -> None:
    spelt = {
        "moe_llava": "Assist. USER: What is it? ASSISTANT: A dog.<|endoftext|>",
        "llama_adapter": "### Instruction:\nWhat is it?\n\n### Response:A dog.</s>",
        "llama_adapter_v2": "### Instruction:\nWhat is it?\n\n### Response:A dog.</s>",
        "cogvlm": " [INST] What is it? [/INST] A dog.</s>",
    }
    for name, text in spelt.items():
        recipe, _ = tiny(name)
        template = replace(recipe.template, system="Assist." if name == "moe_llava" else recipe.template.system)
        made = template.tokens(sample(pictures=0), byte_tokenizer(), lambda medium: ((32, 32), 1))
        found = byte_tokenizer().decode(made.ids.tolist(), keep_special=True)
        assert found.endswith(text), name
    system = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )
    alpaca = load_recipe("llama_adapter")[1].template
    assert alpaca.system + alpaca.system_frame.after == system
    grounding = load_recipe("cogvlm")[1].stages[1].template
    made = grounding.tokens(sample(pictures=0), byte_tokenizer(), lambda medium: ((32, 32), 1))
    found = byte_tokenizer().decode(made.ids.tolist(), keep_special=True)
    assert found == "<s>Question: What is it? Answer: A dog.</s>"
