"""Released layouts by formulas: what a release computes with its tensors, ours computes after the import.

The formulas are written here as the releases' code has them, from their fused tensors. Tiny random weights, float32.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from released_fixtures import DIM, HEADS, SIDE, VOCAB, publish, random_state, small, taken
from torch import Tensor, nn

from quintet.components.connectors.qformer import QFormer
from quintet.components.connectors.resampler import sincos
from quintet.components.fusion.prefix import AdaptionPrompts
from quintet.components.llms.decoder import Decoder
from quintet.model.mllm import MLLM
from quintet.model.released.systems import layout_of
from quintet.model.released.table import released_state
from quintet.values import Features

TOLERANCE = 2e-5
"""float32, values up to 13; the same sums in another order. Worst measured: 3e-6."""


def imported(name: str, folder: Path) -> tuple[dict[str, Tensor], MLLM]:
    """A random release and what the import makes of it."""
    layout = layout_of(name, small(name).model)
    model = layout.model.build(vocab=VOCAB)
    theirs = {key: value.clone() for key, value in released_state(layout, random_state(model)).items()}
    torch.save(theirs, folder / "pytorch_model.bin")
    return theirs, taken(layout, folder)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0.0)


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: Mapping[str, Tensor], name: str, x: Tensor, *, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def features(model: MLLM, x: Tensor) -> Tensor:
    """What the connector makes of one picture's features."""
    connector = model.connectors["image"]
    layout = model.config.encoders["image"].layout((SIDE, SIDE))
    with torch.no_grad():
        return connector(Features(x, (layout,))).values


def attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """float[T, D] of queries and float[U, D] of keys and values, head beside head."""
    parts = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    q, k, v = parts
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)


@torch.no_grad()
def test_qwen_vls_tower_has_its_heads_one_after_the_other_and_its_llm_its_blocks(tmp_path: Path) -> None:
    state, model = imported("qwen_vl", tmp_path)
    x = torch.randn(5, DIM)
    mixed = linear(state, "transformer.visual.transformer.resblocks.1.attn.in_proj", x)
    split = mixed.view(5, HEADS, 3 * DIM // HEADS).split(DIM // HEADS, dim=-1)
    attn: Any = model.encoders["image"].layers[1].self_attn  # type: ignore[union-attr, index]
    for ours, theirs in zip((attn.q_proj, attn.k_proj, attn.v_proj), split, strict=True):
        close(ours(x), theirs.flatten(1))
    block: Any = model.llm.blocks[1]  # type: ignore[union-attr]
    x = torch.randn(5, model.llm.dim)
    split = linear(state, "transformer.h.1.attn.c_attn", x).split(model.llm.dim, dim=-1)
    for ours, theirs in zip((block.attn.q_proj, block.attn.k_proj, block.attn.v_proj), split, strict=True):
        close(ours(x), theirs)
    fed = linear(state, "transformer.h.1.mlp.w1", x) * F.silu(linear(state, "transformer.h.1.mlp.w2", x))
    close(block.mlp(x), linear(state, "transformer.h.1.mlp.c_proj", fed))


@torch.no_grad()
def test_qwen_vls_resampler_is_torchs_attention(tmp_path: Path) -> None:
    state, model = imported("qwen_vl", tmp_path)
    pool, dim = "transformer.visual.attn_pool", model.llm.dim
    attend = nn.MultiheadAttention(dim, 4, batch_first=True)
    attend.load_state_dict({k.removeprefix(f"{pool}.attn."): v for k, v in state.items() if f"{pool}.attn." in k})
    x = torch.randn(16, DIM)
    keys = norm(state, f"{pool}.ln_kv", x @ state[f"{pool}.kv_proj.weight"].T, eps=1e-6)
    queries = norm(state, f"{pool}.ln_q", state[f"{pool}.query"], eps=1e-6)
    side = round(len(queries) ** 0.5)
    asked, seen = queries + sincos(side, dim), keys + sincos(side, dim, grid=(4, 4))
    found = attend(asked[None], seen[None], keys[None])[0][0]
    close(
        features(model, x),
        norm(state, "transformer.visual.ln_post", found, eps=1e-6) @ state["transformer.visual.proj"],
    )


@torch.no_grad()
def test_mplug_owls_tower_and_abstractor(tmp_path: Path) -> None:
    state, model = imported("mplug_owl", tmp_path)
    x = torch.randn(5, DIM)
    mixed = linear(state, "vision_model.encoder.layers.1.self_attn.query_key_value", x)
    split = mixed.reshape(5, HEADS, 3, DIM // HEADS).permute(2, 0, 1, 3)
    attn: Any = model.encoders["image"].layers[1].self_attn  # type: ignore[union-attr, index]
    for ours, theirs in zip((attn.q_proj, attn.k_proj, attn.v_proj), split, strict=True):
        close(ours(x), theirs.flatten(1))
    image = torch.randn(17, DIM)
    hidden = state["query_tokens"].view(-1, DIM)
    for n in range(2):
        layer = f"abstractor.encoder.layers.{n}.crossattention"
        hidden = norm(state, f"{layer}.norm1", hidden, eps=1e-6)
        seen = torch.cat([hidden, norm(state, f"{layer}.normk", image, eps=1e-6)])
        q, k, v = (
            linear(state, f"{layer}.attention.{name}", at)
            for name, at in (("query", hidden), ("key", seen), ("value", seen))
        )
        hidden = hidden + linear(state, f"{layer}.output.out_proj", attention(q, k, v, heads=4))
        mlp, normed = f"{layer}.output.mlp", norm(state, f"{layer}.output.norm2", hidden, eps=1e-6)
        fed = F.silu(linear(state, f"{mlp}.w1", normed)) * linear(state, f"{mlp}.w3", normed)
        hidden = hidden + linear(state, f"{mlp}.w2", norm(state, f"{mlp}.ffn_ln", fed, eps=1e-6))
    made = torch.cat([linear(state, "abstractor.visual_fc", hidden), state["abstractor.vit_eos"].view(1, -1)])
    close(features(model, image), made)


@torch.no_grad()
def test_cogvlms_experts_and_adapter(tmp_path: Path) -> None:
    state, model = imported("cogvlm", tmp_path)
    x = torch.randn(5, model.llm.dim)
    layers: Any = {"language": model.llm.blocks[1], "vision": model.fusion.layers[1]}  # type: ignore[union-attr, index]
    for mine, layer in layers.items():
        split = linear(state, f"model.layers.1.self_attn.{mine}_expert_query_key_value", x).chunk(3, dim=-1)
        for ours, theirs in zip((layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj), split, strict=True):
            close(ours(x), theirs)
        mlp = f"model.layers.1.mlp.{mine}_mlp"
        fed = F.silu(linear(state, f"{mlp}.gate_proj", x)) * linear(state, f"{mlp}.up_proj", x)
        close(layer.mlp(x), linear(state, f"{mlp}.down_proj", fed))
    image, glu = torch.randn(16, DIM), "model.vision.linear_proj"
    hidden = F.gelu(norm(state, f"{glu}.norm1", linear(state, f"{glu}.linear_proj", image)))
    fed = F.silu(linear(state, f"{glu}.gate_proj", hidden)) * linear(state, f"{glu}.dense_h_to_4h", hidden)
    ends = [state[f"model.vision.{name}"].flatten(0, 1) for name in ("boi", "eoi")]
    close(features(model, image), torch.cat([ends[0], linear(state, f"{glu}.dense_4h_to_h", fed), ends[1]]))


@torch.no_grad()
def test_moe_llavas_experts(tmp_path: Path) -> None:
    state, model = imported("moe_llava", tmp_path)
    x = torch.randn(1, 5, model.llm.dim)
    moe = "transformer.h.0.mlp.deepspeed_moe"
    probs = linear(state, f"{moe}.gate.wg", x).softmax(-1)
    best = probs.topk(2, dim=-1).indices
    kept = torch.zeros_like(probs).scatter(-1, best, probs.gather(-1, best))
    kept = kept / kept.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for n in range(4):
        expert = f"{moe}.experts.deepspeed_experts.{n}"
        fed = linear(state, f"{expert}.w1", x) * F.silu(linear(state, f"{expert}.w2", x))
        out += kept[..., n, None] * linear(state, f"{expert}.c_proj", fed)
    layer: Any = model.fusion.layers[0]  # type: ignore[union-attr, index]
    close(layer(x, torch.ones(1, 5, dtype=torch.bool).flatten())[0], out)


@torch.no_grad()
def test_ferrets_mixing_is_a_convolution_of_width_one(tmp_path: Path) -> None:
    state, model = imported("ferret", tmp_path)
    sampler = "model.region_geo_sampler.agg_projector_list.1"
    weight = state[f"{sampler}.net.0.weight"]
    x = torch.randn(2, weight.shape[1], 6)
    theirs = F.relu(F.conv1d(x, weight.reshape(*weight.shape[:2], 1), state[f"{sampler}.net.0.bias"])).mT
    step: Any = model.regions.steps[1]  # type: ignore[union-attr, index]
    close(step.norm(F.relu(step.mix(x.mT))), norm(state, f"{sampler}.norm", theirs))


@torch.no_grad()
def test_open_flamingos_keys_and_values_and_its_markers_row(tmp_path: Path) -> None:
    recipe = small("open_flamingo")
    layout = layout_of("open_flamingo", recipe.model)
    model = layout.model.build(vocab=VOCAB)
    layout = publish(layout, model, tmp_path)
    state = {key: value.clone() for key, value in released_state(layout, random_state(model)).items()}
    (tmp_path / "release").mkdir()
    torch.save(state, tmp_path / "release" / "checkpoint.pt")
    back = taken(layout, tmp_path / "release")
    embedding = state["lang_encoder.model.embed_tokens.weight"]
    assert len(embedding) == VOCAB + 2
    assert torch.equal(back.fusion.marker, embedding[VOCAB])  # type: ignore[arg-type]
    assert torch.equal(back.llm.embedding.weight, embedding[:VOCAB])  # type: ignore[union-attr, arg-type]
    x, hidden = torch.randn(16, DIM), state["perceiver.latents"]
    for n in range(2):
        attend, feed = f"perceiver.layers.{n}.0", f"perceiver.layers.{n}.1"
        latents = norm(state, f"{attend}.norm_latents", hidden)
        seen = torch.cat([norm(state, f"{attend}.norm_media", x), latents])
        k, v = linear(state, f"{attend}.to_kv", seen).chunk(2, dim=-1)
        found = attention(linear(state, f"{attend}.to_q", latents), k, v, heads=2)
        hidden = hidden + linear(state, f"{attend}.to_out", found)
        hidden = hidden + linear(
            state, f"{feed}.3", F.gelu(linear(state, f"{feed}.1", norm(state, f"{feed}.0", hidden)))
        )
    close(features(back, x), norm(state, "perceiver.norm", hidden))


@torch.no_grad()
def test_minigpt_v2s_adapters_are_added_to_llama_and_its_norm_is_as_it_was_made(tmp_path: Path) -> None:
    """α / r is 16 / 64; the norm of the published encoder, which is BLIP-2's, must not come in."""
    recipe = small("minigpt_v2")
    layout = layout_of("minigpt_v2", recipe.model)
    model = layout.model.build(vocab=VOCAB)
    model.load_state_dict(random_state(model))
    layout = publish(layout, model, tmp_path)
    state = {key: value.clone() for key, value in released_state(layout, model.state_dict()).items()}
    dim, names = model.llm.dim, [(n, name) for n in range(model.llm.depth) for name in ("q_proj", "v_proj")]
    for n, name in names:
        peft = f"llama_model.base_model.model.model.layers.{n}.self_attn.{name}"
        state |= {f"{peft}.lora_A.weight": torch.randn(8, dim), f"{peft}.lora_B.weight": torch.randn(dim, 8)}
    (tmp_path / "release").mkdir()
    torch.save({"model": state}, tmp_path / "release" / "checkpoint.pth")
    back = taken(layout, tmp_path / "release").state_dict()
    x = torch.randn(3, dim)
    for n, name in names:
        peft, ours = (
            f"llama_model.base_model.model.model.layers.{n}.self_attn.{name}",
            f"llm.blocks.{n}.attn.{name}.weight",
        )
        thin = F.linear(x, state[f"{peft}.lora_A.weight"])
        theirs = F.linear(x, model.state_dict()[ours]) + 0.25 * F.linear(thin, state[f"{peft}.lora_B.weight"])
        close(F.linear(x, back[ours]), theirs)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(back[key], value)}
    fixed = {"encoders.image.norm.weight", "encoders.image.norm.bias"}
    assert changed == fixed | {f"llm.blocks.{n}.attn.{name}.weight" for n, name in names}
    assert (back["encoders.image.norm.weight"] == 1).all()
    assert (back["encoders.image.norm.bias"] == 0).all()


@torch.no_grad()
def test_llama_adapters_prompts_stand_from_the_lowest_adapted_layer_up(tmp_path: Path) -> None:
    """Four layers, of which the release adapts the upper two, with ten prompts each; all four have a gate."""
    full = layout_of("llama_adapter", small("llama_adapter").model).model
    llm, fusion = full.llm, full.fusion
    assert isinstance(llm, Decoder.Config)
    assert isinstance(fusion, AdaptionPrompts.Config)
    layout = layout_of(
        "llama_adapter", replace(full, llm=replace(llm, depth=4), fusion=replace(fusion, skip=2, length=10))
    )
    model = layout.model.build(vocab=VOCAB)
    layout = publish(layout, model, tmp_path)
    prompts = torch.randn(20, llm.dim)
    gates = {f"layers.{n}.attention.gate": torch.full((1, llm.heads, 1, 1), float(n)) for n in range(4)}
    (tmp_path / "release").mkdir()
    torch.save({"adapter_query.weight": prompts, **gates}, tmp_path / "release" / "adapter.pth")
    fused: Any = taken(layout, tmp_path / "release").fusion
    for n, layer in enumerate(fused.prompts):
        assert torch.equal(layer.prompt, prompts.view(2, 10, -1)[n])
        assert (layer.gate == n + 2).all()


@torch.no_grad()
def test_lavins_adapters_are_grouped_convolutions_and_its_towers_tokens_route_themselves(tmp_path: Path) -> None:
    """The file is a training loop's, which holds its arguments too."""
    layout = layout_of("lavin", small("lavin").model)
    model = layout.model.build(vocab=VOCAB)
    layout = publish(layout, model, tmp_path)
    theirs = {k: v.clone() for k, v in released_state(layout, random_state(model)).items() if "adapter" in k}
    (tmp_path / "release").mkdir()
    torch.save(
        {"model": {f"module.{k}": v for k, v in theirs.items()}, "epoch": 14, "args": Namespace(adapter_dim=8)},
        tmp_path / "release" / "checkpoint-14.pth",
    )
    back: Any = taken(layout, tmp_path / "release")

    def router(name: str, x: Tensor, *, by: Tensor) -> Tensor:
        """float[L, D], mixed by the numbers of `by` float[L, D]."""
        weights = (linear(theirs, f"{name}.expert_weights", by) / 5.0).softmax(-1)

        def conv(which: str, x: Tensor, groups: int = 1) -> Tensor:
            weight, bias = theirs[f"{name}.conv_{which}.weight"], theirs[f"{name}.conv_{which}.bias"]
            return F.conv1d(x.T[None], weight.reshape(*weight.shape[:2], 1), bias, groups=groups)[0].T

        inside = conv("A", x)
        return x + conv("B", inside, 2) * weights[:, :1] + conv("D", inside, 2) * weights[:, 1:]

    x = torch.randn(5, back.llm.dim)
    close(
        back.fusion.adapters[1](x, x[:1], torch.zeros(5, dtype=torch.long)),
        router("layers.1.adapter_attn", x, by=x[:1].expand_as(x)),
    )
    tower: Any = back.encoders["image"]
    x = torch.randn(5, DIM)
    layer = tower.tower.layers[1]
    name = "backbone.visual.transformer.resblocks.1.adapter_attn"
    normed = layer.layer_norm1(x)
    attended = x + layer.self_attn(router(name, normed, by=normed)[None], attention_mask=None)[0][0]
    found = layer(x[None], tower.adapters[1], routed_by=tower.config.routed_by)[0]
    close(found, attended + layer.mlp(layer.layer_norm2(attended)))


@torch.no_grad()
def test_minigpt4s_q_former_is_that_of_lavis_as_transformers_renames_it(tmp_path: Path) -> None:
    """`Blip2QFormerModel` under LAVIS' names: `self` for its inner `attention`, `Qformer.bert` before all."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    recipe = small("minigpt4")
    config = recipe.model.connectors["image"]
    assert isinstance(config, QFormer.Config)
    shape: dict[str, Any] = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
    }
    theirs: Any = Blip2QFormerModel(
        Blip2QFormerConfig(**shape, intermediate_size=config.ffn, encoder_hidden_size=DIM, vocab_size=9)
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    bert = {name.replace("attention.attention.", "attention.self."): p for name, p in theirs.state_dict().items()}
    bert = {f"encoder.{n.removeprefix('encoder.')}" if "layer." in n else n: p for n, p in bert.items()}
    state = {f"Qformer.bert.{name.replace('layernorm', 'embeddings.LayerNorm')}": p for name, p in bert.items()}
    state |= {"query_tokens": torch.randn(1, config.queries, config.dim), "llama_proj.bias": torch.randn(DIM)}
    state |= {"ln_vision.weight": torch.randn(DIM), "ln_vision.bias": torch.randn(DIM)}
    state["llama_proj.weight"] = torch.randn(DIM, config.dim)
    layout = layout_of("minigpt4", recipe.model)
    layout = publish(layout, layout.model.build(vocab=VOCAB), tmp_path)
    (tmp_path / "release").mkdir()
    torch.save(state, tmp_path / "release" / "both.pth")
    model = taken(layout, tmp_path / "release")
    count = layout.model.encoders["image"].layout((SIDE, SIDE)).count
    x = torch.randn(count, DIM)
    seen = norm(state, "ln_vision", x, eps=config.norm_eps)
    found = theirs(state["query_tokens"], encoder_hidden_states=seen[None]).last_hidden_state[0]
    close(features(model, x), linear(state, "llama_proj", found))
