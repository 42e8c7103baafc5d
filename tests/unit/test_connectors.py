"""Connectors and token fusion: layouts are what is made, neighbours merge rightly, misfits are refused in words."""

import importlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quintet.components.connectors.abstractor import Abstractor, CAbstractor
from quintet.components.connectors.concat import Concat
from quintet.components.connectors.glu import Glu
from quintet.components.connectors.ldp import Ldp
from quintet.components.connectors.levels import Levels
from quintet.components.connectors.linear import Linear
from quintet.components.connectors.mlp import Mlp
from quintet.components.connectors.newline import Newline
from quintet.components.connectors.perceiver import Perceiver
from quintet.components.connectors.pool import AveragePool
from quintet.components.connectors.prefix import Prefix
from quintet.components.connectors.qformer import QFormer
from quintet.components.connectors.query_blocks import QueryBlocks
from quintet.components.connectors.resampler import AttentivePooling, Resampler
from quintet.components.connectors.shuffle import PixelShuffle, shuffle
from quintet.components.connectors.views import Views
from quintet.components.fusion.token import TokenFusion
from quintet.components.roles import ConnectorConfig
from quintet.errors import AlignmentError, ConfigError
from quintet.lab.parts import parts
from quintet.values import Batch, Features, Layout, MediaBatch, Targets

D_IN, D_OUT = 6, 12
ALL: dict[str, ConnectorConfig] = {
    "linear": Linear.Config(),
    "linear, no bias": Linear.Config(bias=False),
    "mlp": Mlp.Config(),
    "mlp of three": Mlp.Config(depth=3, act="gelu_tanh"),
    "mlp, silu": Mlp.Config(act="silu", bias=False),
    "pool": AveragePool.Config(factor=2),
    "pool and mlp": AveragePool.Config(factor=2, depth=2),
    "shuffle": PixelShuffle.Config(factor=2),
    "shuffle, as Idefics3": PixelShuffle.Config(factor=2, depth=1, norm=False, bias=False),
    "resampler": Perceiver.Config(latents=5, depth=2, heads=2, head_dim=4, act="gelu"),
    "resampler, as Flamingo's": Perceiver.Config(latents=3, heads=1, head_dim=4, width=8, act="squared_relu", frames=2),
    "abstractor": Abstractor.Config(queries=3, depth=2, heads=2, ffn=16),
    "c-abstractor": CAbstractor.Config(side=2, dim=8, depth=1),
    "runs": Concat.Config(run=2),
    "gated, with ends": Glu.Config(ffn=16),
    "gated, without ends": Glu.Config(ffn=16, ends=False),
    "ldp": Ldp.Config(version=1),
    "ldp v2": Ldp.Config(version=2),
    "newline": Newline.Config(inner=Mlp.Config(), rows="all"),
    "pooling": AttentivePooling.Config(queries=3, heads=2),
    "prefix": Prefix.Config(tokens=2),
    "q-former": QFormer.Config(queries=3, dim=8, depth=2, heads=2, ffn=16),
    "query blocks": QueryBlocks.Config(queries=3, width=8, depth=1, heads=2),
    "resampler on a grid": Resampler.Config(side=2, heads=2),
    "views": Views.Config(inner=AveragePool.Config(factor=2)),
}
EXEMPT: dict[type[ConnectorConfig], str] = {Levels.Config: "depths are told apart for one feature"}
"""What none of the pictures below is for, and how it refuses them: it has its tests elsewhere (test_lavin.py)."""
LAYOUTS = (Layout((4, 6)), Layout((2, 2)), Layout((6, 4)), Layout((4, 6)))
"""Of different sizes, and two with equal counts but other grids: a connector that ignores the grid is found out."""


def features(*layouts: Layout, dim: int = D_IN) -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(torch.randn(sum(la.count for la in layouts), dim, generator=generator), layouts)


def built(config: ConnectorConfig) -> Any:
    torch.manual_seed(0)
    return config.build(d_in=D_IN, d_out=D_OUT)


def test_every_connector_there_is_is_tried_here() -> None:
    found = {getattr(importlib.import_module(p.module), p.name).Config for p in parts() if p.role == "connector"}
    tried = {type(config) for config in ALL.values()}
    assert found == tried | EXEMPT.keys(), "add its Config to ALL"
    assert not tried & EXEMPT.keys()


@pytest.mark.parametrize("config", EXEMPT, ids=lambda config: config.__qualname__)
def test_what_is_not_tried_refuses_these_pictures(config: type[ConnectorConfig]) -> None:
    for layout in LAYOUTS:
        with pytest.raises(ConfigError, match=EXEMPT[config]):
            config().layout(layout)


@pytest.mark.parametrize("name", ALL)
def test_what_is_made_is_what_the_layout_says(name: str) -> None:
    found = built(ALL[name])(features(*LAYOUTS))
    assert found.layouts == tuple(ALL[name].layout(la) for la in LAYOUTS)
    assert found.values.shape == (sum(found.counts), D_OUT)


@pytest.mark.parametrize("name", ALL)
def test_an_item_alone_gives_what_it_gives_among_others(name: str) -> None:
    """Absolute 1e-6 on values of about 1: matrix products of another height round differently; measured 4.8e-07."""
    connector, given = built(ALL[name]), features(*LAYOUTS)
    for layout, item, found in zip(LAYOUTS, given.split(), connector(given).split(), strict=True):
        torch.testing.assert_close(connector(Features(item, (layout,))).values, found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_every_weight_learns_and_nothing_is_made_of_nothing(name: str) -> None:
    connector = built(ALL[name])
    empty = connector(Features(torch.zeros(0, D_IN), ()))
    assert empty.layouts == ()
    assert empty.values.shape == (0, D_OUT)
    connector(features(*LAYOUTS)).values.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in connector.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_config_survives_json(name: str) -> None:
    assert type(ALL[name]).from_json(json.loads(json.dumps(ALL[name].to_json()))) == ALL[name]


@pytest.mark.parametrize(
    ("config", "d_in", "d_out", "published"),
    [
        # LLaVA (7B): 1024 · 4096 + 4096. LLaVA-1.5 (7B): that and 4096 · 4096 + 4096. LLaVA-1.5 (13B): 5120 wide.
        (Linear.Config(), 1024, 4096, 4_198_400),
        (Mlp.Config(depth=2), 1024, 4096, 20_979_712),
        (Mlp.Config(depth=2), 1024, 5120, 31_467_520),
        (Mlp.Config(depth=1), 1024, 4096, 4_198_400),
        # InternVL2-8B's mlp1: LayerNorm 2 · 4096, 4096 · 4096 + 4096, twice.
        (PixelShuffle.Config(factor=2), 1024, 4096, 33_570_816),
        # SmolVLM-256M's: 768 · 16 · 576.
        (PixelShuffle.Config(factor=4, depth=1, norm=False, bias=False), 768, 576, 7_077_888),
    ],
)
def test_a_connector_has_the_published_number_of_weights(
    config: ConnectorConfig, d_in: int, d_out: int, published: int
) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in config.build(d_in=d_in, d_out=d_out).parameters()) == published


# ---- merging -----------------------------------------------------------------------------------------------------
def numbered(rows: int, cols: int, *, channels: int = 1) -> Tensor:
    """float[1, rows·cols, C]: the raster number of the patch, and 100 more for each further channel."""
    return (torch.arange(rows * cols)[:, None] + 100 * torch.arange(channels)).float()[None]


def identity(config: ConnectorConfig, d_in: int, d_out: int) -> Any:
    """A connector whose projection changes nothing."""
    connector: Any = config.build(d_in=d_in, d_out=d_out)
    with torch.no_grad():
        connector.project.layers[0].weight.copy_(torch.eye(d_out))
        if connector.project.layers[0].bias is not None:
            connector.project.layers[0].bias.zero_()
    return connector


def test_average_pool_takes_the_mean_of_squares_and_lets_a_class_token_pass() -> None:
    """Patches 0 … 7 in rows of four: the squares are 0 1 4 5 and 2 3 6 7, means 2.5 and 4.5."""
    given = torch.cat([torch.tensor([[-9.0]]), numbered(2, 4)[0]])
    found = identity(AveragePool.Config(factor=2), 1, 1)(Features(given, (Layout((2, 4), extra=1),)))
    assert found.layouts == (Layout((1, 2), extra=1),)
    assert found.values.flatten().tolist() == pytest.approx([-9.0, 2.5, 4.5])


def test_pixel_shuffle_stacks_patches_in_raster_order_channels_last() -> None:
    """Patches 0 … 7 in rows of four, channels p and 100 + p: first square 0 1 4 5, each with both its channels."""
    config = PixelShuffle.Config(factor=2, depth=1, norm=False, bias=False)
    found = identity(config, 2, 8)(Features(numbered(2, 4, channels=2)[0], (Layout((2, 4)),)))
    assert found.layouts == (Layout((1, 2)),)
    assert found.values.tolist() == [[0, 100, 1, 101, 4, 104, 5, 105], [2, 102, 3, 103, 6, 106, 7, 107]]


def test_pixel_shuffle_is_that_of_idefics3_and_of_internvl() -> None:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel

    values = torch.randn(2, 36, 4)
    ours = shuffle(values, rows=6, cols=6, factor=2)
    assert torch.equal(ours, Idefics3Connector.pixel_shuffle(None, values, scale_factor=2))
    theirs = InternVLModel.pixel_shuffle(None, values.view(2, 6, 6, 4), scale_factor=0.5)
    assert torch.equal(ours, theirs.reshape(2, 9, 16))


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (
            AveragePool.Config(factor=3),
            Layout((4, 4)),
            r"4 × 4 patches does not divide by 3; factors that do: 2, 4;.* 3 × 3",
        ),
        (PixelShuffle.Config(factor=2), Layout((27, 27)), r"27 × 27 .* by 2; factors that do: 3, 9, 27;.* 28 × 28"),
        (PixelShuffle.Config(factor=2), Layout((5, 7)), "factors that do: none"),
        (AveragePool.Config(), Layout((16,)), "not a grid of rows and columns"),
        (PixelShuffle.Config(), Layout((4, 4), extra=1), "class token"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_numbers_that_would(
    config: ConnectorConfig, layout: Layout, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config.layout(layout)


@pytest.mark.parametrize(
    "make", [lambda: Mlp.Config(depth=0), lambda: AveragePool.Config(factor=0), lambda: PixelShuffle.Config(depth=0)]
)
def test_a_connector_of_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="at least"):
        make()


# ---- token fusion ------------------------------------------------------------------------------------------------
def batch(counts: tuple[int, ...], slots: list[int]) -> Batch:
    """One row of eight columns with items at `slots`."""
    n = len(counts)
    row = torch.zeros(1, 8, dtype=torch.int64)
    where = torch.zeros(n, dtype=torch.int64)
    media = MediaBatch(
        values=(), slots=torch.tensor(slots), counts=counts, row=where, enter=where, exit=where + 1, order=where
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = Targets(nothing, nothing, nothing.float(), nothing)
    return Batch(row, row, row + 1, row, row, targets, media={"image": media}, lengths=(8,))


def test_token_fusion_writes_features_at_their_slots_and_nowhere_else() -> None:
    embeds = torch.zeros(1, 8, 2)
    given = features(Layout((1, 2)), Layout((1, 1)), dim=2)
    fused = TokenFusion.Config().build(dim=2, depth=1).inputs(embeds, {"image": given}, batch((2, 1), [1, 2, 6]))
    assert torch.equal(fused[0, [1, 2, 6]], given.values)
    assert fused[0, [0, 3, 4, 5, 7]].abs().sum() == 0
    assert embeds.abs().sum() == 0


def test_token_fusion_takes_a_column_a_feature_and_owns_no_weights() -> None:
    config = TokenFusion.Config()
    assert config.columns(576) == 576
    assert not config.needs_blocks
    assert not list(config.build(dim=2, depth=1).parameters())


def test_equal_totals_with_other_counts_per_item_are_refused() -> None:
    given = features(Layout((1,)), Layout((2,)), dim=2)
    with pytest.raises(AlignmentError, match="item 0: 2 columns, 1 features; item 1: 1 columns, 2 features"):
        TokenFusion().inputs(torch.zeros(1, 8, 2), {"image": given}, batch((2, 1), [1, 2, 6]))


def test_a_wider_first_layer_is_as_wide_as_it_says() -> None:
    config: ConnectorConfig = Mlp.Config(depth=3, widen=4)
    assert [tuple(p.shape) for p in config.build(d_in=5, d_out=7).parameters() if p.ndim == 2] == [
        (20, 5),
        (7, 20),
        (7, 7),
    ]


# ---- the resampler -----------------------------------------------------------------------------------------------
def resample(config: Perceiver.Config, values: Tensor, layout: Layout) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return config.build(d_in=12, d_out=10).eval()(Features(values, (layout,))).values


def test_any_number_of_features_becomes_the_latents() -> None:
    config = Perceiver.Config(latents=5, depth=2, heads=2, head_dim=4, act="gelu")
    for layout in (Layout((2, 3)), Layout((7, 7), extra=1), Layout((1,))):
        assert config.layout(layout) == Layout((5,))
        assert resample(config, torch.randn(layout.count, 12), layout).shape == (5, 10)


def test_patches_are_a_set_and_frames_are_not() -> None:
    """Without time the order of patches is nothing to it; with it, two frames may not change places."""
    config = Perceiver.Config(latents=3, depth=2, heads=2, head_dim=4, act="relu", qk_norm=True)
    values, layout = torch.randn(8, 12), Layout((2, 2, 2))
    swapped = torch.cat([values[4:], values[:4]])
    torch.testing.assert_close(resample(config, swapped, layout), resample(config, values, layout), atol=1e-5, rtol=0)
    timed = replace(config, frames=2)
    assert (resample(timed, swapped, layout) - resample(timed, values, layout)).abs().max() > 1e-3
    assert torch.equal(resample(timed, values, layout), resample(replace(timed, frames=2), values, layout))


def test_more_frames_than_embeddings_get_those_in_between() -> None:
    """Of two embeddings 0 and 1, three frames get 0, a half and 1 (two features each, after one that has no place)."""
    made = Perceiver.Config(depth=1, heads=1, head_dim=4, act="gelu", frames=2).build(d_in=4, d_out=4)
    with torch.no_grad():
        assert made.time is not None
        made.time.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
        assert made._times(Layout((3, 1, 2), extra=1))[:, 0].tolist() == [0, 0, 0, 0.5, 0.5, 1, 1]
