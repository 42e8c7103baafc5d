"""`quintet show`: the figures of a recipe against the papers', against autograd and against a count of products.

Half a minute, most of it the import of transformers' encoders.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quintet.components.encoders.presets import CLIP_L_336, SIGLIP_B_224
from quintet.components.llms.decoder import Decoder
from quintet.components.lora import Lora
from quintet.components.presets_llm import QWEN2_0_5B, VICUNA_7B
from quintet.components.roles import Context
from quintet.components.starter import STARTER_LLM
from quintet.lab.cost import TEXT_TOKENS, kept_numbers
from quintet.lab.listing import listing, markdown
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.lab.show import Check, Shown, llm_flops, show
from quintet.recipes._scale import SCALES, at_scale
from quintet.training.stage import Rate


@pytest.fixture(scope="module")
def llava15() -> Shown:
    return show(*load_recipe("llava15"))


def test_llava15_has_the_connector_and_the_tokens_of_its_paper(llava15: Shown) -> None:
    """By hand: 1024 × 4096 + 4096 and 4096 × 4096 + 4096; (336 / 14)² patches."""
    assert llava15.parts["connectors.image"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096 == 20_979_712
    assert llava15.tokens == {"image": 576}
    assert llava15.parts["llm"] == 6_738_415_616
    assert [check.equal for check in llava15.checks] == [True, True]


def test_stages_train_what_the_recipe_says(llava15: Shown) -> None:
    pretrain, instruct = llava15.stages
    assert pretrain.trainable == llava15.parts["connectors.image"]
    assert instruct.trainable == llava15.parts["connectors.image"] + llava15.parts["llm"]
    assert pretrain.rates == {"connectors.image": 1e-3}
    assert pretrain.steps == 2181  # 558,128 rows in steps of 256: LLaVA-1.5's own log has 2,181
    assert instruct.steps == 5198


def test_nothing_is_allocated(llava15: Shown) -> None:
    """28 GB of weights in fp32 would not fit a test machine; what is measured is that no real tensor was made."""
    name, recipe = load_recipe("llava15")
    with torch.device("meta"):
        model = recipe.model.build()
    assert all(p.is_meta for p in model.parameters())
    assert name == llava15.recipe


def test_a_figure_that_differs_from_the_papers_is_said(llava15: Shown) -> None:
    name, recipe = load_recipe("llava15")
    paper = replace(recipe.paper, published={"connectors": "21.3 M"}, derived={"llm": "32 · 2"}, tokens={"audio": 3})
    checks = show(name, replace(recipe, paper=paper)).checks
    assert [(c.found, c.stated, c.kind, c.equal) for c in checks] == [
        (20_979_712, "21.3 M", "printed", False),
        (6_738_415_616, "32 · 2", "arithmetic", False),
        (0, "3", "arithmetic", False),
    ]
    assert checks[0].off == pytest.approx(-0.015, abs=1e-3)


def test_arithmetic_holds_exactly_and_print_within_a_hundredth() -> None:
    assert not Check("", 20_979_713, "20,979,712", "arithmetic").equal
    assert Check("", 1_229_760, "1.23 M", "printed").equal
    assert not Check("", 1_229_760, "1.2 M", "printed").equal
    assert Check("", 74_975_232, "0.08 B", "printed").equal is False


def test_what_learns_is_shown_by_part_and_how() -> None:
    """mPLUG-Owl's second stage has adapters of rank 8, Kosmos-1 trains the last of 24 layers of its encoder."""
    owl = show(*load_recipe("mplug_owl")).stages[1].learning
    assert {part: (each.parameters, each.how) for part, each in owl.items()} == {"llm": (4_194_304, "LoRA of rank 8")}
    kosmos = show(*load_recipe("kosmos1")).stages[0]
    assert kosmos.learning["encoders.image"].how == "upper 1/24 of the layers"
    assert sum(each.parameters for each in kosmos.learning.values()) == kosmos.trainable
    entries = {entry.name: entry.trains for entry in listing()}
    assert entries["mplug_owl"]["instruct"] == ("llm (LoRA of rank 8)",)
    assert entries["kosmos1"]["pretrain"][0] == "encoders (upper 1/24 of the layers)"


def test_networks_that_became_experts_are_counted_as_unread() -> None:
    """By hand: every second of 24 layers has three matrices of 2048 × 5504."""
    assert show(*load_recipe("moe_llava")).unread == 12 * 3 * 2048 * 5504
    assert show(*load_recipe("llava")).unread == 0


def test_adapters_count_as_what_trains_and_are_merged_for_the_next_stage() -> None:
    """By hand: rank 4 on the q projection of 2 layers of width 32: 2 × (4 × 32 + 32 × 4)."""
    name, recipe = load_recipe("llava15")
    tiny = at_scale(recipe, "tiny")
    adapted = {"llm": Rate(lr=1e-4, lora=Lora(rank=4, targets=("q_proj",)))}
    stages = (replace(tiny.stages[0], train=adapted), tiny.stages[1])
    first, second = show(name, replace(tiny, stages=stages), scale="tiny").stages
    assert first.trainable == 2 * (4 * 32 + 32 * 4)
    assert second.trainable == show(name, tiny, scale="tiny").stages[1].trainable


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_shown_at_every_scale(name: str, scale: str) -> None:
    recipe = at_scale(load_recipe(name)[1], scale)
    shown = show(name, recipe, scale=scale)
    data = json.loads(json.dumps(shown.to_json()))
    assert all(check["equal"] or check["why"] for check in data["checks"])
    assert set(data["stages"]) == {stage.name for stage in recipe.stages}
    assert all(0 < stage["share"] <= 1 for stage in data["stages"].values())
    assert all(part["parameters"] > 0 for part in data["parts"].values())
    assert data["memory_bytes"] == max(stage["memory_bytes"]["total"] for stage in data["stages"].values())
    assert data["flops_per_sample"] > 0


# ---- memory ------------------------------------------------------------------------------------------------------
def saved_numbers(run: Any, module: nn.Module) -> int:
    """Numbers that autograd keeps for the backward pass, the module's own weights left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            held[place] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_alive = run()
    assert kept_alive.requires_grad
    return sum(held.values())


def one_row(columns: int) -> Context:
    zero, order = torch.zeros(1, columns, dtype=torch.long), torch.arange(columns)[None]
    return Context(enter=zero, exit=zero + 1, order=order, positions=order)


@pytest.mark.parametrize(
    "config",
    [
        STARTER_LLM,
        replace(VICUNA_7B, depth=2, vocab=640, dim=512, heads=8, kv_heads=8, ffn=1376),
        replace(QWEN2_0_5B, depth=2, vocab=640),
    ],
    ids=["starter", "vicuna", "qwen2"],
)
def test_the_estimate_of_an_llms_activations_is_what_autograd_keeps(config: Decoder.Config) -> None:
    """Within 20 %: it is to tell 20 GiB from 40. Measured ratios: 1.05, 1.06, 1.14 (grouped keys are repeated)."""
    model = config.build()
    embeds = torch.randn(1, 256, config.dim, requires_grad=True)
    kept = saved_numbers(lambda: model(embeds, one_row(256)), model)
    assert 0.8 < kept / (256 * kept_numbers(model, vocab=config.vocab)) < 1.2


@pytest.mark.parametrize("config", [CLIP_L_336, SIGLIP_B_224], ids=["clip", "siglip"])
def test_the_estimate_of_an_encoders_activations_is_what_autograd_keeps(config: Any) -> None:
    """Within 25 %. Measured ratios: 1.00 (CLIP), 0.80 (SigLIP, whose activation keeps one number less)."""
    small = replace(config, depth=9, width=256, heads=4, ffn=1024)
    model = small.build()
    size = small.spec.size
    kept = saved_numbers(lambda: model.encode(torch.zeros(1, 3, *size)), model)
    tokens = small.layout(size).count
    assert 0.75 < kept / (tokens * kept_numbers(model)) < 1.25


# ---- FLOPs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("llm_learns", [True, False])
def test_flops_of_the_llm_are_those_of_its_products(llm_learns: bool) -> None:
    """Exact: matrix products of a forward and a backward pass, counted by torch; attention's own are left out."""
    _, recipe = load_recipe("llava15")
    recipe = at_scale(recipe, "tiny")
    stage = recipe.stages[1 if llm_learns else 0]
    read, predicted = llm_flops(recipe, stage)
    model = recipe.model.llm.build()
    model.requires_grad_(llm_learns)
    embeds = torch.randn(1, 24, model.dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        hidden = model(embeds, one_row(24))
        model.head(hidden[:, :5]).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if str(op) in ("aten.mm", "aten.addmm", "aten.bmm"))
    assert 24 * read + 5 * predicted == products


def test_a_sample_costs_about_six_flops_a_weight_and_token(llava15: Shown) -> None:
    """The rule of thumb 6 N T (Kaplan et al. 2020, section 2.1), and 2 N T of the frozen encoder: ratio 1.02."""
    llm, encoder = llava15.parts["llm"] - 2 * 32_000 * 4096, llava15.parts["encoders.image"]
    rule = 6 * llm * (576 + TEXT_TOKENS) + 2 * encoder * 577
    assert llava15.flops_per_sample / rule == pytest.approx(1.0, abs=0.05)


# ---- the list ----------------------------------------------------------------------------------------------------
def test_the_list_has_every_recipe_with_the_keys_that_scripts_rely_on() -> None:
    rows = [json.loads(json.dumps(entry.to_json())) for entry in listing()]
    assert [row["name"] for row in rows] == recipe_names()
    for row in rows:
        assert {"name", "inputs", "outputs", "connector", "fusion", "llm", "stages", "paper"} <= row.keys()
    llava = next(row for row in rows if row["name"] == "llava15")
    assert llava["inputs"] == ["text", "image"]
    assert llava["connector"] == {"image": "MLP, 2 layers"}
    assert llava["stages"] == ["pretrain", "instruct"]
    assert llava["paper"]["arxiv"] == "2310.03744"


def test_the_table_has_a_row_for_every_recipe() -> None:
    lines = markdown(listing()).splitlines()
    assert len(lines) == 2 + len(recipe_names())
    assert {line.count("|") for line in lines} == {9}
