"""The systems of projections: what is special about them, by hand: counts, orders, and what learns. About 10 s."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import picture_rows
from quintet.components.connectors.concat import Concat
from quintet.components.connectors.ldp import Ldp
from quintet.components.connectors.prefix import Prefix
from quintet.components.encoders.mix import Mix
from quintet.components.encoders.nf_resnet import NFResNet
from quintet.components.encoders.presets import DINOV2_L, SIGLIP_SO400M_384
from quintet.components.roles import ImageSpec
from quintet.data.collate import Loaded, collate
from quintet.data.identifier import identified
from quintet.data.media import load_image
from quintet.data.scenes import make_scenes
from quintet.data.sources.mix import Mix as MixedSources
from quintet.data.sources.open import open_source
from quintet.errors import ConfigError
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.recipe import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate
from quintet.values import Features, Layout, Node, Origin, Region, Sample, Text, Turn
from systems import asked, count, full, shown, tiny, user


def recipe(name: str) -> Recipe:
    return load_recipe(name)[1]


def noise(height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- MiniGPT-v2: four neighbours become one ----------------------------------------------------------------------
def test_four_neighbours_in_raster_order_become_one_token() -> None:
    config = recipe("minigpt_v2").model
    assert config.encoders["image"].layout((448, 448)) == Layout((32, 32))
    assert config.layout("image", (448, 448)) == Layout((32, 8))
    connector = Concat.Config(run=4).build(d_in=2, d_out=8)
    with torch.no_grad():
        connector.project.weight.copy_(torch.eye(8))
        connector.project.bias.zero_()
    values = torch.arange(32.0).view(16, 2)
    found = connector(Features(values, (Layout((2, 8)),)))
    assert torch.equal(found.values, values.view(4, 8)), "a run's features stand side by side, the first first"
    assert found.layouts == (Layout((2, 2)),)
    assert Concat.Config(run=4).layout(Layout((6, 6))) == Layout((9,))
    with pytest.raises(ConfigError, match="do not divide into runs of 4"):
        Concat.Config(run=4).layout(Layout((5, 5)))


def test_minigpt_v2_only_trains_its_connector_and_adapters_on_queries_and_values() -> None:
    small, model, processor = tiny("minigpt_v2")
    for stage in small.stages:
        set_trainable(model, stage.train)
        learnt = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("connectors.")}
        assert learnt
        assert all(".lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in learnt)
        model.fold()
    spelt = processor.tokenizer.decode(processor.tokens(asked("What?", "A.")).ids.tolist())
    assert spelt.startswith("[INST] <Img>")
    assert "</Img> [vqa] What? [/INST] A." in spelt


BOX = Region("box", (0.125, 0.25, 0.5, 0.75))


@pytest.mark.parametrize(
    ("tag", "question"),
    [
        ("[vqa]", ("How many circles are there?",)),
        ("[vqa]", ("Where is the dog?\nAnswer the question using a single word or phrase.",)),
        ("[caption]", ("Briefly describe this image.",)),
        ("[grounding]", ("Describe this image in detail, with boxes.",)),
        ("[refer]", ("Give me the location of the dog.",)),
        ("[identify]", ("What is in ", BOX, "?")),
        ("[detection]", ("Detect all dogs.",)),
    ],
)
def test_minigpt_v2s_six_identifiers_begin_a_question_about_a_picture(
    tag: str, question: tuple[str | Region, ...]
) -> None:
    """A question has the one of its task, in training and in chat; one that has it keeps it; text alone has none."""
    _, _, processor = tiny("minigpt_v2")
    parts = tuple(Text(part) if isinstance(part, str) else part for part in question)

    def spelt(*parts: Any, open: bool = False) -> str:
        turns = Turn("user", parts), Turn("assistant", (Text("A."),))
        ids = processor.tokens(Sample(Node(turns[: 1 if open else 2])), open=open).ids
        return processor.tokenizer.decode(ids.tolist())

    first = str(question[0])
    assert f"</Img> {tag} {first}" in spelt(shown(), *parts)
    assert f"</Img> {tag} {first}" in spelt(shown(), *parts, open=True)
    assert f"</Img> [refer] {first}" in spelt(shown(), Text("[refer] "), *parts)
    assert f"{tag} " not in spelt(*parts) if tag != "[identify]" else True


def test_minigpt_v2_has_six_identifiers() -> None:
    tags = [each.tag for each in recipe("minigpt_v2").template.identifiers]
    assert sorted(tags) == sorted(["[vqa]", "[caption]", "[grounding]", "[refer]", "[identify]", "[detection]"])
    pairs, *tasks = (stage.template for stage in recipe("minigpt_v2").stages)
    assert all(template.identifiers for template in tasks)
    assert not pairs.identifiers, "weakly-labelled pairs have no instruction"


def test_minigpt_v2s_weakly_labelled_pairs_are_a_picture_and_its_caption() -> None:
    small, _, processor = tiny("minigpt_v2")
    pairs = replace(processor, template=small.stages[0].template)
    columns = pairs.tokens(asked("[caption] Describe it.", "A dog."))
    assert pairs.tokenizer.decode(columns.ids.tolist()).endswith("A dog.\n")
    assert "Describe" not in pairs.tokenizer.decode(columns.ids.tolist())
    assert "[INST]" not in pairs.tokenizer.decode(columns.ids.tolist())


IDENTIFIED = {
    "scenes.vqa": "[vqa]",
    "scenes.pope": "[vqa]",
    "scenes.digits": "[vqa]",
    "scenes.ocr": "[vqa]",
    "scenes.caption": "[caption]",
    "scenes.chair": "[caption]",
    "scenes.grounding": "[refer]",
    "scenes.referring": "[identify]",
}


def test_what_scenes_asks_and_teaches_begins_with_its_identifier(tmp_path: Path) -> None:
    """Every question of the tasks, and every one of the training rows."""
    scenes = make_scenes(tmp_path / "scenes", 30, 7, splits={"val": 4, "test": 12})
    _, _, made = tiny("minigpt_v2")
    known = made.template.identifiers
    for name, tag in IDENTIFIED.items():
        for item in scenes_task(name, scenes).items():
            first = next(part for part in identified(item.parts, known) if isinstance(part, Text))
            assert first.text == f"{tag} ", item.prompt
    found = Counter[str]()
    for file, kind in (("train.json", ""), ("train_captions.json", "[caption]"), ("train_regions.json", "")):
        source = open_source(scenes / file)
        for row in range(len(source)):
            text = made.tokenizer.decode(made.tokens(source.sample(row)).ids.tolist())
            users = text.split("[INST]")[1:]
            assert all(re.match(r" (<Img>.*</Img> )?\[\w+\] \S", each) for each in users), text
            assert all(kind in each for each in users)
            found.update(re.findall(r"\[(?!INST)\w+\]", text))
    assert found.keys() == set(IDENTIFIED.values())


# ---- VILA: interleaved documents, and text in the mix ------------------------------------------------------------
def test_pictures_stand_anywhere_and_every_word_of_a_document_is_learnt() -> None:
    vila, _, made = tiny("vila")
    stage = next(s for s in vila.stages if s.name == "interleaved")
    assert {"connectors", "llm"} == stage.train.keys(), "the LLM is updated in pre-training"
    processor = replace(made, template=stage.template)
    turns = user("one ", shown(0), " two ", shown(1), " three"), Turn("assistant", (shown(2), Text("four")))
    tokens = processor.tokens(Sample(Node(turns), Origin("x", 1)))
    starts, count = [item.start for item in tokens.items], tokens.items[0].columns
    pictures = torch.zeros(len(tokens), dtype=torch.bool)
    for start in starts:
        pictures[start : start + count] = True
    gaps = [later - earlier for earlier, later in zip([0, *starts], starts, strict=False)]
    assert gaps[0] > 1
    assert min(gaps[1:]) > count, "words stand between them"
    assert not tokens.weight[pictures].any()
    assert bool((tokens.weight[1:][~pictures[1:]] == 1).all()), "all words of both turns are learnt"


def test_text_alone_is_in_the_batches_of_the_last_stage(tmp_path: Path) -> None:
    """Rows without a picture from a second source share a step, and both kinds of rows move the LLM."""
    (tmp_path / "words").mkdir()
    both = [open_source(picture_rows(tmp_path, 4)), open_source(picture_rows(tmp_path / "words", 0, text_only=4))]
    source = MixedSources.weighted(both, weights=[1, 1])
    vila, model, processor = tiny("vila")
    stage = vila.stages[-1]
    assert "text" in stage.data.name
    tokens = [replace(processor, template=stage.template).tokens(source.sample(i)) for i in range(len(source))]
    assert {len(t.items) for t in tokens} == {0, 1}
    set_trainable(model, stage.train)
    for row in ([t for t in tokens if t.items], [t for t in tokens if not t.items], tokens):
        model.zero_grad()
        items = [item for t in row for item in t.items]
        media = {n: Loaded(load_image(i.ref, processor.spec("image"))) for n, i in enumerate(items)}
        OBJECTIVES["lm"](model, collate([row], media, pad=processor.tokenizer.pad_id))[0].backward()
        assert all(p.grad is not None for p in model.llm.parameters())
        assert any(p.grad is not None for p in model.connectors.parameters()) == bool(items)


# ---- ShareGPT4V: the upper half of the encoder -------------------------------------------------------------------
def test_the_upper_half_of_clip_learns_in_pre_training_only() -> None:
    sharegpt4v, model = full("sharegpt4v")
    learnt: dict[str, set[int]] = {}
    for stage in sharegpt4v.stages:
        set_trainable(model, stage.train)
        names = [n for n, p in model.encoders["image"].named_parameters() if p.requires_grad]
        assert all(name.startswith("layers.") for name in names)
        learnt[stage.name] = {int(name.split(".")[1]) for name in names}
    assert learnt == {"align": set(), "pretrain": set(range(12, 23)), "instruct": set()}


def test_upper_layers_through_an_encoder_inside_another_and_where_there_are_none() -> None:
    tiles = at_scale(recipe("llava_next"), "tiny").model.encoders["image"].build()
    mix = at_scale(recipe("multi_encoder"), "tiny").model.encoders["image"].build()
    assert [len(list(each.upper(0.5))) for each in (tiles, mix)] == [2, 4]  # type: ignore[operator]
    _, model, _ = tiny("fuyu")
    with pytest.raises(ConfigError, match="does not tell its upper layers"):
        set_trainable(model, {"connectors": Rate(lr=1.0, upper=0.5)})
    with pytest.raises(ConfigError, match="a share of a part's layers"):
        Rate(lr=1.0, upper=0.0)


# ---- two encoders ------------------------------------------------------------------------------------------------
def test_two_encoders_see_one_picture_and_each_feature_has_the_channels_of_both() -> None:
    config: Any = at_scale(recipe("multi_encoder"), "tiny").model.encoders["image"]
    mix = config.build().eval()
    pictures = (noise(32, 32), noise(32, 32, seed=1))
    found = mix(pictures)
    first, second = (encoder(pictures) for encoder in mix.encoders)
    assert found.layouts == first.layouts
    assert torch.equal(found.values, torch.cat([first.values, second.values], -1))
    assert not torch.equal(first.values, second.values)
    one_after_the_other = replace(config, join="sequence").build()
    one_after_the_other.load_state_dict(mix.state_dict())
    found = one_after_the_other(pictures)
    assert found.layouts == (Layout((4, 4), more=(Layout((4, 4)),)),) * 2
    assert torch.equal(found.values[:16], first.values[:16])
    assert torch.equal(found.values[16:32], second.values[:16])


def test_encoders_that_do_not_fit_together_are_refused() -> None:
    siglip = SIGLIP_SO400M_384.at(select="patch")
    with pytest.raises(ConfigError, match="they need one grid"):
        Mix.Config(encoders=(replace(DINOV2_L, patch=16), siglip), image=siglip.spec)
    with pytest.raises(ConfigError, match="wide"):
        Mix.Config(encoders=(DINOV2_L, siglip), image=siglip.spec, join="sequence")


# ---- MobileVLM: light projectors ---------------------------------------------------------------------------------
def test_ldp_leaves_a_quarter_of_the_tokens_and_v2_almost_none_of_the_weights() -> None:
    """18.94 M and 6.32 M as the two papers give them; a convolution with a skip has 99.8 % fewer than the blocks."""
    with torch.device("meta"):
        one, two = (Ldp.Config(version=v).build(d_in=1024, d_out=2048) for v in (1, 2))
    sizes = [count(each) for each in (one, two)]
    assert [round(size / 1e4) for size in sizes] == [1894, 632]
    blocks = [count(each.blocks) for each in (one, two)]
    assert round(100 * (1 - blocks[1] / blocks[0]), 1) == 99.8
    assert recipe("mobilevlm_v2").model.layout("image", (336, 336)) == Layout((12, 12))
    assert "llm" in recipe("mobilevlm_v2").stages[0].train, "the LLM trains in the first stage already"


@pytest.mark.parametrize("version", [1, 2])
def test_ldp_tells_positions_apart(version: int) -> None:
    """Equal patches everywhere: at the border the convolution sees the padding, so the corner differs."""
    connector = Ldp.Config(version=version).build(d_in=3, d_out=16)  # type: ignore[arg-type]
    found = connector(Features(torch.ones(64, 3), (Layout((8, 8)),))).values.view(4, 4, 16)
    assert not torch.allclose(found[0, 0], found[1, 1], atol=1e-3)
    torch.testing.assert_close(found[1, 1], found[2, 2] if version == 2 else found[1, 1])
    alone = Ldp.Config(version=version).build(d_in=3, d_out=16)  # type: ignore[arg-type]
    values = torch.randn(80, 3)
    both = alone(Features(values, (Layout((8, 8)), Layout((4, 4)))))
    assert both.counts == [16, 4]
    torch.testing.assert_close(both.values[16:], alone(Features(values[64:], (Layout((4, 4)),))).values)


# ---- Frozen: two tokens ------------------------------------------------------------------------------------------
def test_a_picture_is_two_tokens_whatever_its_size_and_only_the_vision_side_learns() -> None:
    frozen, model = full("frozen_lm")
    assert [frozen.model.columns("image", size) for size in ((224, 224), (64, 500))] == [2, 2]
    set_trainable(model, frozen.stages[0].train)
    assert not any(p.requires_grad for p in model.llm.parameters())
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert abs(learnt / 40.3e6 - 1) < 0.01


def test_frozen_asks_as_published_though_it_learnt_captions() -> None:
    *_, processor = tiny("frozen_lm")
    sample = Sample(Node((user(shown(), "What is this?"),)))
    tokens = processor.tokens(sample, open=True)
    assert tokens.items[0].start == 1
    assert tokens.items[0].columns == 2
    assert processor.tokenizer.decode(tokens.ids[3:].tolist()).strip() == "Question: What is this? Answer:"


def test_nf_resnet_takes_any_size_and_a_picture_does_not_see_its_neighbours() -> None:
    config = recipe("frozen_lm").model.encoders["image"].tiny()
    encoder = config.build()
    pictures = (noise(32, 32), noise(20, 44), noise(32, 32, seed=2))
    found = encoder(pictures)
    assert found.layouts == tuple(config.layout(tuple(p.shape[1:])) for p in pictures)
    assert found.layouts[1] == Layout((3, 6))
    for index, value in enumerate(found.split()):
        torch.testing.assert_close(encoder((pictures[index],)).values, value, atol=1e-5, rtol=1e-5)


def test_nf_resnet_keeps_the_variance_of_what_it_reads() -> None:
    """What batch norm is for: through all 16 blocks activations neither grow nor vanish."""
    torch.manual_seed(0)
    encoder = NFResNet.Config(image=ImageSpec(size=(64, 64))).build()
    with torch.no_grad():
        found = encoder((noise(64, 64),)).values
    assert 0.3 < float(found.std()) < 3


def test_a_prefix_is_a_map_of_the_mean() -> None:
    connector = Prefix.Config(tokens=3).build(d_in=4, d_out=5)
    values = torch.randn(10, 4)
    found = connector(Features(values, (Layout((2, 3)), Layout((4,)))))
    assert found.counts == [3, 3]
    torch.testing.assert_close(found.values[:3], connector.project(values[:6].mean(0)).view(3, 5))


# ---- all -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llava_next", "fuyu", "multi_encoder", "mobilevlm_v2", "frozen_lm", "minigpt_v2"])
def test_no_pictures_give_no_features(name: str) -> None:
    _, model, _ = tiny(name)
    found = model.connectors["image"](model.encoders["image"](()))
    assert (len(found.values), found.layouts) == (0, ())
