"""What is special about the systems of projections, divided pictures and no encoder: their counts, orders and views.

transformers' LLaVA-NeXT says how a picture is divided and what is left of it; the rest is counted by hand. About 10 s.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import picture
from quintet.components.connectors.concat import Concat
from quintet.components.connectors.ldp import Ldp
from quintet.components.connectors.linear import Linear
from quintet.components.connectors.mlp import Mlp
from quintet.components.connectors.newline import Newline
from quintet.components.connectors.pool import AveragePool
from quintet.components.connectors.prefix import Prefix
from quintet.components.encoders.mix import Mix
from quintet.components.encoders.nf_resnet import NFResNet
from quintet.components.encoders.pixels import Pixels
from quintet.components.encoders.presets import CLIP_L_336, DINOV2_L, SIGLIP_SO400M_384
from quintet.components.encoders.tiles import Tiles
from quintet.components.roles import ConnectorConfig, EncoderConfig, ImageSpec
from quintet.data.collate import Loaded, collate
from quintet.data.features import FeatureCache
from quintet.data.media import fit_image, image_size, load_image
from quintet.data.processor import Processor
from quintet.data.sources.mix import Mix as MixedSources
from quintet.data.sources.open import open_source
from quintet.errors import ConfigError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.run import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate
from quintet.values import Features, Layout, Media, Node, Origin, Ref, Sample, Text, Turn

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SIZES = [(336, 336), (480, 640), (640, 480), (100, 1000), (1000, 100), (333, 500), (672, 672), (1344, 900), (7, 5)]


def recipe(name: str) -> Recipe:
    return load_recipe(name)[1]


def tiny(name: str) -> tuple[MLLM, Processor]:
    small = at_scale(recipe(name), "tiny")
    tokenizer = load_tokenizer(small.model)
    model = build_model(small.model, vocab=tokenizer.vocab).eval()
    return model, Processor(tokenizer, small.template, small.model)


def noise(height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def png(number: int, *, height: int = 40, width: int = 40) -> Media:
    file = io.BytesIO()
    picture(number, height=height, width=width).save(file, "PNG")
    return Media("image", Ref(f"{number}.png", data=file.getvalue()))


# ---- LLaVA-NeXT: pictures in tiles -------------------------------------------------------------------------------
def test_a_picture_is_divided_and_unpadded_as_transformers_does() -> None:
    """Over sizes from 5 to 1400 pixels a side: the canvas, and the rows and columns of features that are left."""
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    config: Any = recipe("llava_next").model.encoders["image"]
    for height in range(7, 1400, 43):
        for width in range(5, 1400, 47):
            canvas = select_best_resolution((height, width), PINPOINTS)
            assert config.divide((height, width)).canvas == canvas
            left = unpad_image(torch.empty(1, canvas[0] // 14, canvas[1] // 14, device="meta"), (height, width))
            assert config.layout((height, width)).more[0].grid == tuple(left.shape[1:])


@pytest.mark.parametrize("size", SIZES)
def test_the_count_of_tokens_depends_on_the_aspect(size: tuple[int, int]) -> None:
    """As transformers' processor counts: 576 of the whole, the unpadded rows and columns, and a newline a row."""
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    count = LlavaNextProcessor._get_number_of_features
    processor: Any = type("Told", (), {})()
    processor.image_processor = type("Grid", (), {"image_grid_pinpoints": PINPOINTS})
    assert LlavaNextImageProcessorPil.image_grid_pinpoints == PINPOINTS
    processor.patch_size, processor.num_additional_image_tokens, processor.vision_feature_select_strategy = (
        14,
        0,
        "full",
    )
    processor._get_unpadded_features = lambda *a: LlavaNextProcessor._get_unpadded_features(processor, *a)
    model = recipe("llava_next").model
    assert model.columns("image", size) == count(processor, *size, 336, 336)
    square, wide = model.columns("image", (500, 500)), model.columns("image", (250, 1000))
    assert (square, wide) == (576 + 48 * 49, 576 + 18 * 73)


def test_tiles_show_what_transformers_processor_cuts() -> None:
    """Bicubic on both sides, ours by torch's 8-bit kernel and theirs by Pillow's: at most 2 levels of 255 apart."""
    from transformers import LlavaNextImageProcessorPil

    encoder = CLIP_L_336.at(layer=-2, select="patch", fit="squash")
    config = replace(Tiles.Config(encoder=encoder), encoder=replace(encoder, depth=2))
    tiles = config.build()
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = LlavaNextImageProcessorPil(do_normalize=False, do_rescale=False, **size)  # type: ignore[arg-type]
    for height, width in ((48, 64), (200, 700), (500, 330)):
        pixels = picture(3, height=height, width=width)
        theirs = processor(pixels, return_tensors="np")
        mine = tiles.divided(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
        wanted = torch.from_numpy(np.array(theirs["pixel_values"][0])).int()
        assert len(mine) == len(wanted)
        assert int((torch.stack(mine).int() - wanted).abs().max()) <= 2


def test_tiles_become_one_map_with_a_newline_after_each_row() -> None:
    """An encoder that tells what it sees: 2 × 2 patches a tile, the mean of the red channel, over 100 the canvas's."""

    tiles = Tiles(Tiles.Config(encoder=_Means.Config(), grids=((1, 2), (2, 1))))
    picture = torch.zeros(3, 4, 8, dtype=torch.uint8)
    picture[0] = torch.arange(8).repeat_interleave(1).expand(4, 8)
    found = tiles((picture,))
    assert found.layouts == (Layout((2, 2), more=(Layout((2, 4)),)),)
    assert found.values[4:, 0].tolist() == [0.5, 2.5, 4.5, 6.5] * 2, "columns run on over the border of the tiles"
    newline = Newline.Config(inner=Linear.Config()).build(d_in=1, d_out=3)
    through = newline(found)
    assert through.layouts == (Layout((2, 2), more=(Layout((2, 5)),)),)
    ends = through.values[4:].view(2, 5, 3)[:, -1]
    assert torch.equal(ends, newline.newline.expand(2, 3)), "each row of the details ends in the newline"
    assert not any(torch.equal(row, newline.newline) for row in through.values[:4]), "the whole has none"


def test_padding_is_cut_off_and_views_may_stay_apart() -> None:
    config = Tiles.Config(encoder=_Means.Config(), grids=((2, 2),))
    assert config.layout((4, 8)).more == (Layout((2, 4)),), "half of the canvas is padding"
    assert config.layout((8, 4)).more == (Layout((4, 2)),)
    apart = replace(config, join="views")
    assert apart.layout((4, 8)) == Layout((2, 2), more=(Layout((2, 2)),) * 4)
    found = Tiles(apart)((torch.full((3, 4, 8), 7, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)))
    assert found.counts == [20, 20]
    assert found.values[:, 0].max() == 7


def test_divided_pictures_are_refused_where_a_grid_is_needed() -> None:
    divided = Layout((4, 4), more=(Layout((8, 8)),))
    for connector in (AveragePool.Config(), Ldp.Config(), Concat.Config()):
        with pytest.raises(ConfigError):
            connector.layout(divided)
    pooled = Newline.Config(inner=AveragePool.Config(factor=2))
    assert pooled.layout(divided) == Layout((2, 2), more=(Layout((4, 5)),)), "inside a newline each view is alone"
    made = pooled.build(d_in=3, d_out=5)(Features(torch.randn(80, 3), (divided,)))
    assert made.counts == [24] == [len(made.values)]


def test_tiles_of_no_fixed_size_and_grids_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="not native"):
        Tiles.Config(encoder=CLIP_L_336.at(fit="native", select="patch"))
    with pytest.raises(ConfigError, match="row and a column"):
        Tiles.Config(encoder=CLIP_L_336, grids=((0, 1),))
    with pytest.raises(ConfigError, match="make no map"):
        Tiles.Config(encoder=CLIP_L_336.at(select="full"))


class _Means(nn.Module):
    """Pictures of 4 × 4 pixels, 2 × 2 patches, each the mean of its red pixels."""

    class Config(EncoderConfig):
        @property
        def spec(self) -> ImageSpec:
            return ImageSpec(size=(4, 4), resample="bilinear")

        @property
        def dim(self) -> int:
            return 1

        def layout(self, size: tuple[int, ...]) -> Layout:
            return Layout((2, 2))

        def build(self) -> "_Means":
            return _Means()

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        reds = [v[0].float().unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean((1, 3)).view(4, 1) for v in values]
        return Features(torch.cat(reds), (Layout((2, 2)),) * len(values))


# ---- layouts of views --------------------------------------------------------------------------------------------
def test_views_come_apart_and_together_again() -> None:
    layouts = (Layout((2, 2), more=(Layout((1, 3)), Layout((2,)))), Layout((3,), extra=1))
    features = Features(torch.randn(13, 2), layouts)
    apart = features.apart()
    assert apart.counts == [4, 3, 2, 4]
    assert apart.together(layouts) == features


def test_kept_features_keep_their_views(tmp_path: Path) -> None:
    layout = Layout((2, 2), more=(Layout((1, 3), extra=1), Layout((2,))))
    ref, value = Ref("a.png", data=b"a"), torch.randn(layout.count, 3)

    def cache() -> FeatureCache:
        return FeatureCache(tmp_path, kind="image", encoder="e", dim=3, dtype=torch.float32)

    cache().fill([ref], lambda refs: iter([(refs, Features(value, (layout,)))]))
    again = cache()
    (place,) = again.places.values()
    assert place.layout == layout
    found = again.lookup(_item(ref, layout))
    assert found is not None
    assert found.layout == layout
    assert torch.equal(found.value, value)


def _item(ref: Ref, layout: Layout) -> Any:
    from quintet.values import Item

    return Item("image", ref, (4, 4), 0, layout.count)


# ---- Fuyu: no encoder --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(30, 30), (31, 29), (300, 400), (1080, 1920), (2000, 1000), (100, 5000)])
def test_a_picture_of_any_size_is_rows_of_patches_with_a_newline_each(size: tuple[int, int]) -> None:
    """As the processor of transformers scales and cuts it."""
    from transformers import FuyuImageProcessorPil
    from transformers.image_utils import SizeDict

    model = recipe("fuyu").model
    spec = model.spec("image")
    scaled = FuyuImageProcessorPil().resize(np.zeros((3, *size), dtype=np.uint8), SizeDict(height=1080, width=1920))
    assert spec.within(*size) == scaled.shape[1:]
    rows, cols = (-(-side // 30) for side in scaled.shape[1:])
    assert model.columns("image", spec.output_size(*size)) == rows * (cols + 1)
    assert tuple(fit_image(noise(*size), spec).shape[1:]) == (30 * rows, 30 * cols)


def test_patches_are_those_of_the_published_processor() -> None:
    from transformers import FuyuImageProcessorPil
    from transformers.image_utils import SizeDict

    pixels = noise(60, 90)
    theirs = FuyuImageProcessorPil().patchify_image(pixels.numpy(), SizeDict(height=30, width=30))
    found = Pixels(Pixels.Config())((pixels, noise(30, 30)))
    assert found.layouts == (Layout((2, 3)), Layout((1, 1)))
    wanted = (torch.from_numpy(np.asarray(theirs)).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(found.values[:6], wanted.view(6, -1), atol=1e-6, rtol=0)


def test_fuyu_sees_by_one_linear_layer_and_a_newline_ends_each_row() -> None:
    model, processor = tiny("fuyu")
    assert not list(model.encoders["image"].parameters())
    assert {n for n, _ in model.connectors["image"].named_parameters()} == {
        "newline",
        "inner.project.weight",
        "inner.project.bias",
    }
    media = png(1, height=20, width=36)
    sample = Sample(Node((Turn("user", (media, Text("What?"))), Turn("assistant", (Text("Red."),)))))
    tokens = processor.tokens(sample)
    assert (tokens.items[0].size, tokens.items[0].columns, tokens.items[0].start) == ((24, 40), 3 * 6, 0)
    with model.inference():
        batch = processor.batch([sample])
        found = model.connectors["image"](model.encode("image", batch)).values.view(3, 6, -1)
    newline = dict(model.connectors["image"].named_parameters())["newline"]
    assert torch.equal(found[:, -1], newline.expand(3, -1))


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
    model, processor = tiny("minigpt_v2")
    for stage in at_scale(recipe("minigpt_v2"), "tiny").stages:
        set_trainable(model, stage.train)
        learnt = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("connectors.")}
        assert learnt
        assert all(".lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in learnt)
        break
    spelt = processor.tokenizer.decode(
        processor.tokens(
            Sample(Node((Turn("user", (png(0), Text("[vqa] What?"))), Turn("assistant", (Text("A."),)))))
        ).ids.tolist()
    )
    assert spelt.startswith("[INST] <Img>")
    assert "</Img> [vqa] What? [/INST] A." in spelt


# ---- VILA: interleaved documents, and text in the mix ------------------------------------------------------------
def test_pictures_stand_anywhere_and_every_word_of_a_document_is_learnt() -> None:
    vila = at_scale(recipe("vila"), "tiny")
    stage = next(s for s in vila.stages if s.name == "interleaved")
    assert {"connectors", "llm"} == stage.train.keys(), "the LLM is updated in pre-training"
    tokenizer = load_tokenizer(vila.model)
    processor = Processor(tokenizer, stage.template, vila.model)
    parts = (Text("one "), png(0), Text(" two "), png(1), Text(" three"))
    tokens = processor.tokens(
        Sample(Node((Turn("user", parts), Turn("assistant", (png(2), Text("four"))))), Origin("x", 1))
    )
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
    from conftest import picture_rows

    (tmp_path / "words").mkdir()
    both = [open_source(picture_rows(tmp_path, 4)), open_source(picture_rows(tmp_path / "words", 0, text_only=4))]
    source = MixedSources.weighted(both, weights=[1, 1])
    model, processor = tiny("vila")
    stage = recipe("vila").stages[-1]
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
    full = recipe("sharegpt4v")
    with torch.device("meta"):
        model = full.model.build()
    learnt: dict[str, set[int]] = {}
    for stage in full.stages:
        set_trainable(model, stage.train)
        names = [n for n, p in model.encoders["image"].named_parameters() if p.requires_grad]
        assert all(name.startswith("layers.") for name in names)
        learnt[stage.name] = {int(name.split(".")[1]) for name in names}
    assert learnt == {"align": set(), "pretrain": set(range(12, 23)), "instruct": set()}


def test_upper_layers_through_an_encoder_inside_another_and_where_there_are_none() -> None:
    tiles = at_scale(recipe("llava_next"), "tiny").model.encoders["image"].build()
    mix = at_scale(recipe("multi_encoder"), "tiny").model.encoders["image"].build()
    assert [len(list(each.upper(0.5))) for each in (tiles, mix)] == [2, 4]  # type: ignore[operator]
    model, _ = tiny("fuyu")
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
    sizes = [sum(p.numel() for p in each.parameters()) for each in (one, two)]
    assert [round(size / 1e4) for size in sizes] == [1894, 632]
    blocks = [sum(p.numel() for p in each.blocks.parameters()) for each in (one, two)]
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
    frozen = recipe("frozen_lm")
    assert [frozen.model.columns("image", size) for size in ((224, 224), (64, 500))] == [2, 2]
    with torch.device("meta"):
        model = frozen.model.build()
    set_trainable(model, frozen.stages[0].train)
    assert not any(p.requires_grad for p in model.llm.parameters())
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert abs(learnt / 40.3e6 - 1) < 0.01


def test_frozen_asks_as_published_though_it_learnt_captions() -> None:
    _, processor = tiny("frozen_lm")
    sample = Sample(Node((Turn("user", (png(0), Text("What is this?"))),)))
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


# ---- pictures that are too large ---------------------------------------------------------------------------------
def test_a_native_picture_is_scaled_down_to_fit(tmp_path: Path) -> None:
    Image.new("RGB", (300, 100)).save(tmp_path / "a.png")
    ref = Ref("a.png", path=tmp_path / "a.png")
    spec = ImageSpec(size=(64, 64), fit="native", multiple=8, most=(60, 120))
    assert spec.output_size(*image_size(ref)) == (40, 120)
    assert tuple(load_image(ref, spec).shape[1:]) == (40, 120)


def test_no_pictures_give_no_features() -> None:
    for name in ("llava_next", "fuyu", "multi_encoder", "mobilevlm_v2", "frozen_lm", "minigpt_v2"):
        model, _ = tiny(name)
        found = model.connectors["image"](model.encoders["image"](()))
        assert (len(found.values), found.layouts) == (0, ()), name


def test_a_wider_first_layer_is_as_wide_as_it_says() -> None:
    config: ConnectorConfig = Mlp.Config(depth=3, widen=4)
    assert [tuple(p.shape) for p in config.build(d_in=5, d_out=7).parameters() if p.ndim == 2] == [
        (20, 5),
        (7, 20),
        (7, 7),
    ]
