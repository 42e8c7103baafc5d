"""LaVIN: adapters that a modality token routes, in both towers, against a plain writing of its code. About 10 s."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.connectors.levels import Levels
from quintet.components.encoders.adapted import Adapted
from quintet.components.encoders.presets import CLIP_L, SIGLIP_B_224
from quintet.components.fusion.modality import IMAGE, TEXT, ModalityAdapters
from quintet.components.llms.decoder import Block
from quintet.components.roles import Context
from quintet.components.routed import RoutedAdapter
from quintet.data.processor import Processor
from quintet.data.sources import open_source
from quintet.errors import ConfigError
from quintet.lab.features import keep_features
from quintet.lab.pretrained import build_model
from quintet.lab.recipe import load_recipe
from quintet.lab.run import scenes_folder, scenes_rows
from quintet.model.mllm import MLLM
from quintet.recipes._scale import at_scale
from quintet.training.loop import Settings
from quintet.training.optim import set_trainable
from quintet.values import Features, Layout, Media, Node, Sample, Text, Turn
from systems import begun, shown

LOGITS = 2e-5
"""The same sums in float32 in another order; logits reach 5."""


def fresh(scale: str = "tiny") -> tuple[MLLM, Processor]:
    """As it begins."""
    return begun(at_scale(load_recipe("lavin")[1], scale))


def learnt() -> tuple[MLLM, Processor]:
    """With adapters drawn as after some steps, routers so that they decide."""
    model, processor = fresh()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "up_" in name and "adapters" in name:
                parameter.normal_(std=0.5)
            if ".router." in name:
                parameter.normal_(std=3.0)
            if name.startswith("llm.") and parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model, processor


def said(*media: Media) -> Sample:
    question = Turn("user", (*media, Text("Describe it, please.")))
    return Sample(Node((question, Turn("assistant", (Text("A small red circle."),)))))


def logits(model: MLLM, processor: Processor, sample: Sample) -> Tensor:
    """float[T, V]."""
    with model.inference():
        return model.logits(model(processor.batch([sample])).hidden)[0]


# ---- the token routes --------------------------------------------------------------------------------------------
def test_it_begins_as_the_llm_and_as_clip() -> None:
    model, processor = fresh()
    for sample in (said(), said(shown(3))):
        found = logits(model, processor, sample)
        model.fused = False
        assert torch.equal(found, logits(model, processor, sample))
        model.fused = True
    pixels = (torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8),)
    encoder: Adapted = model.encoders["image"]  # type: ignore[assignment]
    plain = Adapted.Config.tiny(encoder.config).tower.build().eval()
    plain.load_state_dict(encoder.tower.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels).values, plain(pixels).values, atol=1e-6, rtol=0)


def test_text_takes_the_ways_of_one_token_and_pictures_those_of_the_other() -> None:
    """The distinctive line: another modality token moves what is of its modality, and to the bit nothing else."""
    model, processor = learnt()
    fusion: ModalityAdapters = model.fusion  # type: ignore[assignment]
    text, seen = said(), said(shown(3))
    start = processor.tokens(seen).items[0].start
    before = {"text": logits(model, processor, text), "seen": logits(model, processor, seen)}
    for token, moves in ((TEXT, "text"), (IMAGE, "seen")):
        kept = fusion.tokens[token].clone()
        with torch.no_grad():
            fusion.tokens[token] = -kept
        after = {"text": logits(model, processor, text), "seen": logits(model, processor, seen)}
        with torch.no_grad():
            fusion.tokens[token] = kept
        moved = {name: (after[name] - before[name]).abs().amax(-1) for name in after}
        if moves == "text":
            assert bool((moved["text"] > 1e-3).all())
        else:
            assert not moved["text"].any()
            assert not moved["seen"][:start].any(), "before the picture it is text"
            assert bool((moved["seen"][start:] > 1e-3).all())


def test_it_computes_what_the_published_code_computes() -> None:
    """There the token is a column at the front that nobody looks at, and every layer routes by its state.

    A text alone, and one whose picture stands at its very beginning: there both agree on the kind of every column.
    """
    model, processor = learnt()
    template = replace(processor.template, bos=False, media={}, blank="")
    processor = replace(processor, template=template)
    for sample, kind in ((said(), TEXT), (said(shown(3)), IMAGE)):
        torch.testing.assert_close(
            logits(model, processor, sample), published(model, processor, sample, kind), atol=LOGITS, rtol=0
        )


def published(model: MLLM, processor: Processor, sample: Sample, kind: int) -> Tensor:
    """LaVIN's forward as its code has it, float[T, V]: the modality token in front, grouped 1 × 1 convolutions."""
    fusion: ModalityAdapters = model.fusion  # type: ignore[assignment]
    batch = processor.batch([sample])
    with model.inference():
        embeds = model.llm.embed(batch.tokens)
        if batch.media:
            embeds = fusion.inputs(embeds, {"image": model.connectors["image"](model.encode("image", batch))}, batch)
        embeds = torch.cat([fusion.tokens[kind][None, None], embeds], 1)
        columns = torch.arange(embeds.shape[1])[None]
        # Two nodes side by side: the token sees itself, the others see each other.
        enter = (columns > 0).long()
        ctx = Context(enter=enter, exit=enter + 1, order=columns, positions=columns)

        def around(index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
            assert isinstance(block, Block)
            adapter: RoutedAdapter = fusion.adapters[index]  # type: ignore[assignment]
            x = block.attend_norm(hidden)
            weights = torch.softmax(adapter.router(x[:, 0]) / adapter.temperature, -1)
            inside = adapter.down_proj(x).mT
            out = x.mT
            for way in range(2):
                kernel = adapter.up_weight[way].flatten(0, 1)[..., None]
                made = F.conv1d(inside, kernel, adapter.up_bias[way], groups=adapter.groups)
                out = out + made * weights[:, way, None, None]
            hidden = hidden + block.attn(out.mT, ctx)
            return hidden + block.feed(hidden)

        return model.logits(model.llm(embeds, ctx, around))[0, 1:]


def test_a_higher_temperature_mixes_the_ways_more_evenly() -> None:
    torch.manual_seed(0)
    x, tokens, which = torch.randn(5, 8), torch.randn(2, 8) * 9, torch.tensor([0, 1, 0, 1, 1])
    made = [RoutedAdapter(8, narrow=4, groups=2, temperature=t) for t in (1e-4, 1e6)]
    with torch.no_grad():
        made[0].up_weight.normal_()
    made[1].load_state_dict(made[0].state_dict())
    ways = []
    for way in range(2):
        one = RoutedAdapter(8, narrow=4, groups=2, temperature=1.0)
        one.load_state_dict(made[0].state_dict())
        with torch.no_grad():
            one.up_weight[1 - way] = one.up_weight[way]
        ways.append(one(x, tokens, which))
    torch.testing.assert_close(made[1](x, tokens, which), (ways[0] + ways[1]) / 2, atol=1e-4, rtol=0)
    best = made[0].router(tokens).argmax(-1)[which]
    torch.testing.assert_close(made[0](x, tokens, which), torch.stack(ways)[best, torch.arange(5)])


# ---- six tokens --------------------------------------------------------------------------------------------------
def test_each_depths_class_token_is_a_token() -> None:
    connector = Levels.Config(levels=3, hidden=4).build(d_in=6, d_out=5)
    values = torch.arange(12.0).view(2, 6)
    found = connector(Features(values, (Layout((1,)),) * 2))
    assert found.counts == [3, 3]
    alone = connector.up_proj(F.silu(connector.down_proj(values.view(6, 2))))
    torch.testing.assert_close(found.values, alone)


def test_class_tokens_come_from_the_six_depths_of_the_paper() -> None:
    recipe = load_recipe("lavin")[1]
    encoder = recipe.model.encoders["image"]
    assert isinstance(encoder, Adapted.Config)
    assert (encoder.tower.indices, encoder.tower.select) == ((4, 8, 12, 16, 20, 24), "cls")
    assert recipe.model.columns("image", (224, 224)) == 6


# ---- what is published -------------------------------------------------------------------------------------------
def test_what_learns_is_the_papers_three_point_eight_million() -> None:
    recipe = load_recipe("lavin")[1]
    with torch.device("meta"):
        model = recipe.build()
    set_trainable(model, recipe.stages[0].train)
    counts = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in model.parts().items()
    }
    assert counts["encoders.image.tower"] == counts["llm"] == 0
    assert abs(sum(counts.values()) - 3.8e6) < 0.01 * 3.8e6
    assert model.frozen_encoders == frozenset(), "gradients go through CLIP to its adapters"


def test_the_template_says_whether_there_is_a_picture() -> None:
    _, processor = fresh()

    def spelt(sample: Sample) -> str:
        tokens = processor.tokens(sample)
        return processor.tokenizer.decode(tokens.ids.tolist(), keep_special=True).replace("<pad>", "▣")

    asked = "Instruction: Describe it, please.\nResponse:A small red circle.</s>"
    assert spelt(said(shown(3))) == f"<s>Image: ▣▣▣▣▣▣ {asked}"
    assert spelt(said()) == f"<s>Image: N/A {asked}"
    again = Sample(Node((*said().root.turns, *said(shown(3)).root.turns)))
    assert spelt(again) == f"<s>Image: N/A {asked}Image: ▣▣▣▣▣▣ {asked}", "only the first turn says that there is none"


def test_published_weights_go_into_the_tower_and_the_adapters_stay_as_drawn() -> None:
    """At the starter scale: the encoder that ships with the package, by the names of its file."""
    model, _ = fresh("starter")
    encoder: Adapted = model.encoders["image"]  # type: ignore[assignment]
    starter = build_model(
        replace(
            at_scale(load_recipe("llava15")[1], "starter").model,
            encoders={"image": encoder.config.tower},
        ),
        vocab=model.llm.vocab,
    ).encoders["image"]
    ours = encoder.tower.state_dict()
    assert ours.keys() == starter.state_dict().keys()
    assert all(torch.equal(value, ours[name]) for name, value in starter.state_dict().items())
    assert not any(adapter.up_weight.any() for adapter in encoder.adapters)  # type: ignore[union-attr]


def test_features_are_not_kept_while_adapters_inside_the_encoder_learn(tmp_path: Path) -> None:
    recipe = at_scale(load_recipe("lavin")[1], "tiny")
    model, _ = fresh()
    source = open_source(scenes_rows(scenes_folder(64), recipe.stages[0].data.kind))
    kept = keep_features(
        model,
        recipe.stages[0],
        recipe.stages,
        source,
        settings=Settings(features="on"),
        folder=tmp_path,
        note=lambda text: None,
    )
    assert kept is None


# ---- what does not fit -------------------------------------------------------------------------------------------
def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="the class token of a CLIP routes; the tower is siglip"):
        Adapted.Config(tower=SIGLIP_B_224.at(select="full"))
    with pytest.raises(ConfigError, match="3 groups do not divide widths of 8 and 4"):
        RoutedAdapter(8, narrow=4, groups=3, temperature=1.0)
    with pytest.raises(ConfigError, match="depths are told apart for one feature"):
        Levels.Config(levels=6).layout(CLIP_L.layout((224, 224)))
    with pytest.raises(ConfigError, match="10 channels are not those of 6 depths"):
        Levels.Config(levels=6).build(d_in=10, d_out=4)
    with pytest.raises(ConfigError, match="all are positive"):
        ModalityAdapters.Config(temperature=0.0)
