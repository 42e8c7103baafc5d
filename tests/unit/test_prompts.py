"""Prompts inside the LLM, LLaMA-Adapter's and its V2's: what is added is so by hand, tiny. About 5 s."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from expert_fixtures import bare, batch, hidden, sample, spelt, tiny
from torch import Tensor

from quintet.components.llms.rope import rotate, tables
from quintet.components.presets_llm import QWEN3_0_6B
from quintet.components.roles import Context
from quintet.errors import ConfigError
from quintet.lab.recipe import load_recipe
from quintet.training.optim import set_trainable
from quintet.values import Batch, Features
from systems import count, full


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
    fusion: Any = full("llama_adapter")[1].fusion
    assert len(fusion.prompts) == 30
    assert round(count(fusion) / 1e6, 1) == 1.2


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
    model: Any = full("llama_adapter_v2")[1]
    assert round(100 * count(model.fusion.tuning) / count(model.llm), 2) == 0.04
    assert (len(model.fusion.prompts), len(model.fusion.early)) == (31, 1)


@pytest.mark.parametrize("name", ["llama_adapter", "llama_adapter_v2"])
def test_their_template_is_alpacas(name: str) -> None:
    template = load_recipe(name)[1].template
    assert spelt(template).endswith("### Instruction:\nWhat is it?\n\n### Response:A dog.</s>")
    assert template.system + template.system_frame.after == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )
