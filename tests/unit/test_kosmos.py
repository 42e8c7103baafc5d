"""Kosmos-1 and Kosmos-2: their spelling and sizes, and Magneto and the pooling against transformers. Seconds."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quintet.components.connectors.resampler import AttentivePooling
from quintet.components.llms.magneto import Magneto
from quintet.components.roles import Context
from quintet.lab.pretrained import build_model, load_tokenizer, spread_bins
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale
from quintet.training.optim import set_trainable
from quintet.values import Features, Layout
from systems import Small, asked, count, full

PARITY = 2e-5
"""float32, states normalised to about 1; the same sums in another order. Worst measured: 3e-6."""


def test_kosmos1_has_the_sizes_of_its_paper() -> None:
    """About 1.3 B of LLM, which with its embedding is 1.34, and about 1.6 B in all: that and CLIP's 0.3 (section 2)."""
    _, model = full("kosmos1")
    assert round(count(model.llm) / 1e9, 1) == 1.3
    assert round(count(model.encoders) / 1e9, 1) == 0.3
    assert count(model) // 10**8 == 16


def test_kosmos1_trains_its_llm_from_nothing_and_of_the_encoder_the_last_layer() -> None:
    recipe, model = full("kosmos1")
    assert not getattr(recipe.model.llm, "source", None)
    encoder: Any = model.encoders["image"]
    for stage in recipe.stages:
        set_trainable(model, stage.train)
        learns = {n.split(".")[1] for n, p in encoder.named_parameters() if p.requires_grad and "layers." in n}
        assert learns == {"23"}
        assert not encoder.positions.requires_grad
        assert all(p.requires_grad for p in (*model.llm.parameters(), *model.connectors.parameters()))


def test_kosmos_encloses_the_picture() -> None:
    small = Small("kosmos1")
    assert small.spelt(asked(), stage=0)[1] == "<s><image><4></image>A circle.</s>"
    assert small.spelt(asked())[1] == "<s><image><4></image>Question: What is it? Answer: A circle.</s>"
    small = Small("kosmos2")
    said = small.spelt(asked(answer="<phrase>It</phrase> is red."), stage=0)[1]
    assert said == "<s><image><4></image><grounding><phrase>It</phrase> is red.</s>"


def test_kosmos2_has_a_token_for_each_of_1024_places() -> None:
    small = Small("kosmos2")
    places = [small.processor.tokenizer.specials[f"<patch_index_{n:04}>"] for n in range(1024)]
    assert len(set(places)) == 1024
    assert max(places) < small.model.llm.vocab


def test_at_starter_scale_the_tokens_of_near_places_begin_alike() -> None:
    recipe = at_scale(load_recipe("kosmos2")[1], "starter")
    bins: Any = recipe.stages[0].template.regions
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    ids = [tokenizer.id(token) for token in bins.bins]
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=added)
    before = model.llm.tables()[0].detach().clone()
    assert float(before[ids].std(0).max()) == 0, "as the mean of all"
    spread_bins(model, recipe, tokenizer)
    rows = model.llm.tables()[0].detach()
    here = bins.side * 5 + 5
    near, far = (float((rows[ids[here]] - rows[ids[n]]).norm()) for n in (here + 1, here + 8))
    assert 0 < near < 0.7 * far
    torch.testing.assert_close(rows[ids].mean(0), before[ids[0]], atol=1e-5, rtol=0)
    assert float((rows[ids].std(0) / rows[: min(ids)].std(0)).square().mean().sqrt()) == pytest.approx(
        bins.apart, rel=0.05
    )
    others = [n for n in range(len(rows)) if n not in set(ids)]
    assert torch.equal(rows[others], before[others])


@pytest.mark.parametrize("positions", ["sinusoid", "xpos"])
def test_magneto_is_transformers_but_for_xpos(positions: str) -> None:
    from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2TextConfig
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextForCausalLM

    shape: dict[str, Any] = {"vocab_size": 50, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4}
    theirs: Any = Kosmos2TextForCausalLM(Kosmos2TextConfig(**shape)).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    config = Magneto.Config(vocab=50, dim=32, depth=2, heads=4, ffn=64, positions=positions)  # type: ignore[arg-type]
    ours = config.build().eval()
    names = {
        "model.embed_tokens.": "embedding.",
        "model.layer_norm.": "norm.",
        "model.layers.": "blocks.",
        ".self_attn.inner_attn_ln.": ".inner_norm.",
        ".self_attn.out_proj.": ".o_proj.",
        ".self_attn.": ".",
        ".self_attn_layer_norm.": ".attend_norm.",
        ".ffn.fc1.": ".up_proj.",
        ".ffn.fc2.": ".down_proj.",
        ".ffn.ffn_layernorm.": ".middle_norm.",
        ".final_layer_norm.": ".feed_norm.",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    state.pop("lm_head.weight")
    ours.load_state_dict(state)
    ids = torch.randint(2, 50, (2, 7))
    where = torch.arange(7).expand(2, -1)
    ctx = Context(enter=where * 0, exit=where * 0 + 1, order=where, positions=where)
    with torch.no_grad():
        found, wanted = ours.head(ours(ours.embed(ids), ctx)), theirs(input_ids=ids).logits
    if positions == "sinusoid":
        torch.testing.assert_close(found, wanted, atol=PARITY, rtol=0)
    else:
        assert float((found - wanted).abs().max()) > 0.1, "xPos has other positions"


def test_xpos_depends_on_distances_alone() -> None:
    """All positions 100 later: nothing moves. Absolute 1e-4 on states of about 1; measured 2e-6."""
    torch.manual_seed(0)
    model = Magneto.Config(vocab=50, dim=32, depth=2, heads=4, ffn=64, positions="xpos").build()
    embeds, where = torch.randn(1, 9, 32), torch.arange(9)[None]
    here, there = (
        model(embeds, Context(enter=where * 0, exit=where * 0 + 1, order=where, positions=where + shift))
        for shift in (0, 100)
    )
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


def test_the_pooling_of_kosmos2_is_transformers() -> None:
    from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2Config
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2ImageToTextProjection

    config: Any = Kosmos2Config(
        text_config={"embed_dim": 32, "attention_heads": 4}, vision_config={"hidden_size": 24}, latent_query_num=5
    )
    config.text_config._attn_implementation = "eager"
    theirs = Kosmos2ImageToTextProjection(config).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours: Any = AttentivePooling.Config(queries=5, heads=4, unit=True).build(d_in=24, d_out=32)
    names = {"dense.": "enter.", "latent_query": "queries", "x_attn.out_proj.": "attend.o_proj.", "x_attn.": "attend."}
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    ours.load_state_dict(state)
    features = torch.randn(2, 7, 24)
    with torch.no_grad():
        wanted = theirs(nn.functional.normalize(features, dim=-1))[0]
        found = ours(Features(features.flatten(0, 1), (Layout((7,)),) * 2)).values
    torch.testing.assert_close(found.view(2, 5, 32), wanted, atol=PARITY, rtol=0)


def test_features_of_length_one_enter_as_large_as_others() -> None:
    """At the start queries can tell features of Kosmos-2 apart as they can Kosmos-1's, whose numbers are around 1."""
    torch.manual_seed(0)
    values = torch.randn(50, 192)
    layout = (Layout((50,)),)
    sizes = {}
    for unit in (False, True):
        pooling = AttentivePooling.Config(heads=6, unit=unit).build(d_in=192, d_out=192)
        with torch.no_grad():
            sizes[unit] = float(pooling.enter(F.normalize(values, dim=-1) if unit else values).std())
            assert pooling(Features(values, layout)).values.shape == (64, 192)
    assert 0.4 < sizes[True] < 2.5
    assert 0.4 < sizes[False] < 2.5
