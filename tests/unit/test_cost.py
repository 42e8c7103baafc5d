"""FLOPs of `quintet show`, by hand and as torch counts them in a forward and a backward pass. Seconds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from expert_fixtures import batch, sample, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.tiles import Tiles
from quintet.lab.cost import TEXT_TOKENS, Cost, reading_flops, sight_flops
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate, Stage
from quintet.values import Features


def meta(name: str, scale: str = "tiny") -> tuple[Recipe, MLLM, Stage]:
    """A recipe without memory; its first stage's flags are set."""
    recipe = at_scale(load_recipe(name)[1], scale)
    with torch.device("meta"):
        model = recipe.build()
    set_trainable(model, recipe.stages[0].train)
    return recipe, model, recipe.stages[0]


def view_flops(encoder: Any, *, tokens: int) -> int:
    """By hand: forward through the layers of a vision encoder, whose columns of one view see each other."""
    width, ffn, depth, patch = encoder.width, encoder.ffn, encoder.num_run, encoder.patch
    columns = tokens + encoder.extra
    layer = 2 * columns * (4 * width**2 + 2 * width * ffn) + 4 * columns**2 * width
    return depth * layer + 2 * tokens * 3 * patch**2 * width


def test_views_of_a_divided_picture_attend_to_themselves() -> None:
    """LLaVA-NeXT at full scale: five views of 576 patches through a frozen CLIP, then a linear layer of two."""
    recipe, model, stage = meta("llava_next", "full")
    encoder = recipe.model.encoders["image"]
    assert isinstance(encoder, Tiles.Config)
    features = 5 * 576
    connector = 2 * features * (2 * 1024 * 4096 + 3 * 4096 * 4096)
    assert sight_flops(model, "image", stage) == 5 * view_flops(encoder.encoder, tokens=576) + connector


def test_latents_are_counted_apart_from_the_features_that_they_look_at() -> None:
    """Flamingo's resampler at tiny scale, by hand: keys and values of features and latents, all else of latents."""
    recipe, model, stage = meta("flamingo")
    encoder, config = recipe.model.encoders["image"], recipe.model.connectors["image"]
    assert isinstance(config, Perceiver.Config)
    seen, few = encoder.layout(encoder.spec.size).count, config.latents
    width, inner = config.width, config.heads * config.head_dim
    set_trainable(model, {"llm": Rate(lr=1e-4)})
    layer = 2 * few * width * inner * 2 + 2 * (seen + few) * width * inner * 2 + 4 * few * (seen + few) * inner
    layer += 2 * few * width * config.expand * width * 2
    enter = 2 * seen * encoder.dim * width if encoder.dim != width else 0
    leave = 2 * few * width * model.llm.dim if model.llm.dim != width else 0
    hand = config.depth * layer + enter + leave
    assert sight_flops(model, "image", stage) - view_flops(encoder, tokens=seen) == hand


@pytest.mark.parametrize("name", ["llava15", "flamingo", "moe_llava", "cogvlm", "lynx"])
def test_reading_costs_what_torch_counts(name: str) -> None:
    """LLM and fusion, forward and backward. Torch counts both halves of causal attention, we one."""
    recipe, model = tiny(name)
    set_trainable(model, {part: rate for part, rate in recipe.stages[-1].train.items() if part != "tokens"})
    made = batch(recipe, [sample(pictures=1)])
    columns, size = made.tokens.shape[1], (32, 32)
    layout = recipe.model.layout("image", size)
    values = torch.randn(layout.count, recipe.model.fusion.d_features(model.llm.dim), requires_grad=True)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(made, given={"image": Features(values, (layout,))}).hidden.sum().backward()
    llm = recipe.model.llm
    half = 3 * 2 * columns**2 * llm.depth * model.llm.blocks[0].attn.q_proj.out_features
    found = reading_flops(model, columns=columns, media=recipe.model.columns("image", size), features=layout.count)
    assert counter.get_total_flops() == found + half


def test_experts_cost_as_many_networks_as_a_token_goes_through() -> None:
    """Two of four experts: in each layer that has them, one feed-forward network more than the dense LLM has."""
    _, model, _ = meta("moe_llava", "full")
    columns = {"columns": TEXT_TOKENS + 576, "media": 576, "features": 576}
    dense, routed = (reading_flops(model, **columns, fused=fused) for fused in (False, True))
    network, router = 3 * 2048 * 5504, 4 * 2048
    assert routed - dense == 12 * columns["columns"] * 4 * (network + router)


def test_a_stage_without_pictures_costs_no_encoder() -> None:
    recipe = at_scale(load_recipe("dlp")[1], "tiny")
    [stage] = [stage for stage in recipe.stages if stage.objective == "prompts"]
    with torch.device("meta"):
        model = recipe.build()
    set_trainable(model, stage.train)
    flops = Cost(model, stage).flops
    larger = replace(recipe.model.encoders["image"], depth=9)
    with torch.device("meta"):
        other = replace(recipe, model=replace(recipe.model, encoders={"image": larger})).build()
    set_trainable(other, stage.train)
    assert Cost(other, stage).flops == flops > 0
