"""What is special about the systems whose LLM is an encoder–decoder. Seconds.

Tolerance: the layer of ViT-22B against its formula in float64, to rounding.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.components.encoders.parallel import ParallelLayer
from quintet.components.encoders.presets import VIT_22B
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.regions import RegionFormat
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.recipes._templates_regions import PALI_X_REGIONS
from quintet.values import Batch, Node, Origin, Region, Sample, Text, Turn
from systems import shown


@cache
def tiny() -> tuple[Recipe, MLLM, Processor]:
    recipe = at_scale(load_recipe("pali_x")[1], "tiny")
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=range(tokenizer.vocab)[-100:]).eval()
    return recipe, model, Processor(tokenizer, recipe.template, recipe.model)


def asked(number: int = 0) -> Sample:
    turns = (
        Turn("user", (Text("What is it?"), shown(number, height=40, width=40))),
        Turn("assistant", (Text("A red circle."),)),
    )
    return Sample(Node(turns), Origin("memory", 1))


def batch(sample: Sample) -> Batch:
    _, _, processor = tiny()
    tokens = processor.tokens(sample)
    media = {n: Loaded(load_image(i.ref, processor.spec("image"))) for n, i in enumerate(tokens.items)}
    return collate([[tokens]], media, pad=processor.tokenizer.pad_id)


def test_pictures_enter_the_encoder_in_front_of_the_text_and_the_decoder_never() -> None:
    _, model, processor = tiny()
    read: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    hooks = [
        getattr(model.llm.model, name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: read[name].append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        for name in read
    ]
    batches = [batch(asked(n)) for n in (0, 1)]
    with model.inference():
        out = [model.logits(model(b).hidden) for b in batches]
        features = [model.connectors["image"](model.encode("image", b)).values for b in batches]
    for hook in hooks:
        hook.remove()
    columns = len(features[0])
    tokens = processor.tokens(asked())
    words = int(tokens.weight.nonzero()[0]) - columns
    for seen, feature in zip(read["encoder"], features, strict=True):
        assert seen.shape[1] == columns + words, "the encoder reads the picture and the question, no answer"
        torch.testing.assert_close(seen[0, :columns], feature, atol=1e-6, rtol=0)
    first, second = read["decoder"]
    assert first.shape[1] == int((tokens.weight != 0).sum())
    assert torch.equal(first, second), "the picture is in what the decoder reads"
    assert not torch.allclose(out[0], out[1], atol=1e-4), "the picture moves nothing"


def test_the_encoder_looks_both_ways() -> None:
    """The first word of the question moves with the last: what a decoder-only prefix never does."""
    _, model, _ = tiny()
    one = batch(asked())
    ids = one.tokens.clone()
    last = int(one.targets.slots[0])
    ids[0, last] = (ids[0, last] + 1) % 100
    states: list[Tensor] = []
    hook = model.llm.model.encoder.register_forward_hook(lambda _, args, out: states.append(out.last_hidden_state))
    with model.inference():
        model(one)
        model(replace(one, tokens=ids))
    hook.remove()
    assert bool(((states[0] - states[1])[0].abs().amax(-1) > 1e-6).all())


def test_the_mixture_completes_prefixes_and_masked_spans_and_answers_whole() -> None:
    recipe, _, processor = tiny()
    stage = recipe.stages[0]
    assert stage.completion is not None
    spelt = replace(processor, template=stage.template)
    text = "a large red circle stands beside a small blue square, and a word is written below the two of them"
    turns = (asked().root.turns[0], Turn("assistant", (Text(text),)))
    whole = spelt.tokens(Sample(Node(turns), Origin("memory", 1)))
    made = [stage.completion(whole, processor.tokenizer, seed=(0, n)) for n in range(400)]
    spans = sum(processor.tokenizer.id("<extra_id_0>") in t.ids.tolist() for t in made)
    prefix = sum(len(t) == len(whole) and t.count < whole.count for t in made)
    assert 20 < spans < 60
    assert 200 < prefix < 280
    assert spans + prefix + sum(t is whole for t in made) == len(made)
    assert all(t.items == whole.items for t in made), "the picture stays in front of what is given"


def test_every_stage_asks_one_thing_a_sample() -> None:
    for stage in load_recipe("pali_x")[1].stages:
        assert stage.completion is not None
        assert stage.completion.one


def test_spelling_and_places() -> None:
    _, _, processor = tiny()
    tokens = processor.tokens(asked())
    item = tokens.items[0]
    assert item.start == 0
    shown = processor.tokenizer.decode(tokens.ids[item.columns :].tolist(), keep_special=True)
    assert shown == "Answer in EN: What is it?A red circle.</s>"
    box = Region("box", (0.0121, 0.25, 0.5, 0.9999))
    form: RegionFormat = PALI_X_REGIONS
    assert form.format([box]) == "250 12 999 500"
    (back,) = form.parse("the circle 250 12 999 500")
    assert all(abs(a - b) <= 1e-3 for a, b in zip(back.points, box.points, strict=True))
    assert form.format([back]) == "250 12 999 500"
    for malformed in ("12 250", "500 12 250 999", "7", "two circles", "1 2 3"):
        assert not [r for r in form.parse(malformed) if r.kind == "box"]


def test_the_layer_of_vit_22b_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = ParallelLayer(width=12, heads=3, ffn=20, eps=1e-6).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 12, dtype=torch.float64)

    def rms(v: Tensor, w: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w

    y = rms(x, layer.norm.weight)
    q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in (y @ layer.qkv.weight.T).chunk(3, -1))
    scores = rms(q, layer.q_norm.weight) @ rms(k, layer.k_norm.weight).mT / 2
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 12)
    fed = F.gelu(y @ layer.up.weight.T + layer.up.bias) @ layer.down.weight.T + layer.down.bias
    expected = x + mixed @ layer.o_proj.weight.T + layer.o_proj.bias + fed
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)
    assert layer.qkv.bias is None


def test_vit_22b_encodes_all_patches_at_any_size() -> None:
    small = replace(VIT_22B, width=12, depth=2, heads=3, ffn=20, patch=4, trained_size=16).at(size=16)
    encoder = small.build().eval()
    with torch.no_grad():
        made = encoder((torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((3, 16, 24), 9, dtype=torch.uint8)))
    assert made.counts == [16, 24]
    assert encoder.cls is None
    assert len(encoder.positions) == 16
    assert isinstance(encoder.norm, torch.nn.RMSNorm)


@pytest.mark.parametrize("scale", ["starter", "tiny"])
def test_small_scales_keep_an_encoder_decoder(scale: str) -> None:
    full = load_recipe("pali_x")[1]
    small = at_scale(full, scale)
    assert type(small.model.llm) is type(full.model.llm)
    assert small.stages[0].completion == full.stages[0].completion
    with torch.device("meta"):
        llm: Any = small.model.llm.build()
    t5 = llm.model
    assert t5.encoder.config.num_layers == t5.decoder.config.num_layers == small.model.llm.depth
    assert t5.lm_head.weight is not t5.shared.weight
