"""Pictures in tiles and in patches of any number: LLaVA-NeXT's views, their layouts, and Fuyu's rows. About 5 s.

transformers' processors say how a picture is divided and what is left of it; the rest is counted by hand.
"""

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
from quintet.components.connectors.newline import Newline
from quintet.components.connectors.pool import AveragePool
from quintet.components.connectors.qformer import QFormer
from quintet.components.connectors.views import Views
from quintet.components.encoders.pixels import Pixels
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.encoders.tiles import Tiles
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.data.features import FeatureCache
from quintet.data.media import fit_image, image_size, load_image
from quintet.errors import ConfigError
from quintet.lab.recipe import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.values import Features, Layout, Node, Ref, Sample
from systems import says, shown, tiny, user

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


SIZES = [(336, 336), (480, 640), (640, 480), (100, 1000), (1000, 100), (333, 500), (672, 672), (1344, 900), (7, 5)]


def recipe(name: str) -> Recipe:
    return load_recipe(name)[1]


def noise(height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


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
    processor.patch_size, processor.num_additional_image_tokens = 14, 0
    processor.vision_feature_select_strategy = "full"
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
    with pytest.raises(ConfigError, match=r"connectors\.views"):
        AveragePool.Config().layout(divided)
    pooled = Newline.Config(inner=AveragePool.Config(factor=2))
    assert pooled.layout(divided) == Layout((2, 2), more=(Layout((4, 5)),)), "inside a newline each view is alone"
    made = pooled.build(d_in=3, d_out=5)(Features(torch.randn(80, 3), (divided,)))
    assert made.counts == [24] == [len(made.values)]


def test_a_wrapped_connector_gets_each_view_by_itself() -> None:
    """Two pictures, of two views and of one: what the connector makes of the three views as pictures of their own."""
    divided, whole = Layout((2, 4), more=(Layout((4, 4)),)), Layout((2, 2))
    config = Views.Config(inner=AveragePool.Config(factor=2))
    torch.manual_seed(0)
    views, given = config.build(d_in=3, d_out=5), torch.randn(28, 3)
    found = views(Features(given, (divided, whole)))
    assert found.layouts == (Layout((1, 2), more=(Layout((2, 2)),)), Layout((1, 1)))
    assert found.layouts == (config.layout(divided), config.layout(whole))
    alone = views.inner(Features(given, (Layout((2, 4)), Layout((4, 4)), Layout((2, 2)))))
    assert torch.equal(found.values, alone.values)
    with pytest.raises(ConfigError, match="reads the instruction"):
        Views.Config(inner=QFormer.Config(reads=True))


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
    _, model, processor = tiny("fuyu")
    assert not list(model.encoders["image"].parameters())
    assert {n for n, _ in model.connectors["image"].named_parameters()} == {
        "newline",
        "inner.project.weight",
        "inner.project.bias",
    }
    sample = Sample(Node((user(shown(1, height=20, width=36), "What?"), says("Red."))))
    tokens = processor.tokens(sample)
    assert (tokens.items[0].size, tokens.items[0].columns, tokens.items[0].start) == ((24, 40), 3 * 6, 0)
    with model.inference():
        batch = processor.batch([sample])
        found = model.connectors["image"](model.encode("image", batch)).values.view(3, 6, -1)
    newline = dict(model.connectors["image"].named_parameters())["newline"]
    assert torch.equal(found[:, -1], newline.expand(3, -1))


def test_a_native_picture_is_scaled_down_to_fit(tmp_path: Path) -> None:
    Image.new("RGB", (300, 100)).save(tmp_path / "a.png")
    ref = Ref("a.png", path=tmp_path / "a.png")
    spec = ImageSpec(size=(64, 64), fit="native", multiple=8, most=(60, 120))
    assert spec.output_size(*image_size(ref)) == (40, 120)
    assert tuple(load_image(ref, spec).shape[1:]) == (40, 120)
