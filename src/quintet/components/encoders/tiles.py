"""A picture divided into views for an encoder of one fixed size: the whole of it, and tiles of it at higher resolution.

LLaVA-NeXT's AnyRes (Liu et al. 2024, https://llava-vl.github.io/blog/2024-01-30-llava-next/; `process_anyres_image` and
`spatial_unpad` of its code). Of a list of canvases, each a grid of tiles, the one is taken that shows most of the
picture, and among equals the one that wastes least. The picture is scaled into it, aspect kept, on black; the canvas is
cut into tiles, and the first view is the whole picture squeezed into one tile.

Pictures come as they are and are divided here, where the encoder is: what a tile shows and how many features are left
is then a function of the picture's size alone, and nothing but pictures and layouts travels. All views of a batch run
together. Letters: R rows and C columns of tiles, r rows and c columns of features in a tile, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from quintet.components.encoders.resize import resized
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Division", "Tiles"]

MOST = 4096
"""Longest side of a picture that is handed over, pixels: it bounds what waits in memory."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a picture of some size is divided. Sizes are (height, width)."""

    grid: tuple[int, int]
    """Rows and columns of tiles."""
    canvas: tuple[int, int]
    """Pixels of all tiles."""
    content: tuple[int, int]
    """Pixels of the canvas that the picture takes, in its middle."""

    @property
    def corner(self) -> tuple[int, int]:
        """Where the picture begins: its top and left edges."""
        return (self.canvas[0] - self.content[0]) // 2, (self.canvas[1] - self.content[1]) // 2


class Tiles(nn.Module):
    """The features of the whole picture, then those of its tiles."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """The encoder of a view, and into what a picture may be divided."""

        encoder: EncoderConfig
        """Its pictures have one size, which is that of a tile."""
        grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        """Rows and columns of tiles of the canvases, in LLaVA-NeXT's order: the first of equals is taken."""
        join: Literal["map", "views"] = "map"
        """"map": the tiles' features become one map, and what shows padding alone is cut off (`spatial_unpad`).
        "views": each tile stays a view of its own."""

        def __post_init__(self) -> None:
            if not self.encoder.spec.fixed:
                raise ConfigError("tiles have one size; give their encoder a fit of pad, crop or squash, not native")
            if not self.grids or any(min(grid) < 1 for grid in self.grids):
                raise ConfigError(f"grids are {self.grids}; there must be one, and each needs a row and a column")
            tile = self.encoder.layout(self.tile)
            if self.join == "map" and (tile.extra or tile.more or len(tile.grid) != 2):
                raise ConfigError(
                    f"features of a tile are {tile}, no grid of rows and columns, so they make no map; let the "
                    "encoder select patches (select='patch'), or join='views'"
                )

        @property
        def tile(self) -> tuple[int, int]:
            """Height and width of a view, pixels."""
            return self.encoder.spec.size

        @property
        def spec(self) -> ImageSpec:
            """Pictures as they are; planned with one that fills the canvas of most tiles."""
            rows, cols = max(self.grids, key=lambda grid: grid[0] * grid[1])
            size = rows * self.tile[0], cols * self.tile[1]
            return replace(self.encoder.spec, size=size, fit="native", multiple=1, most=(MOST, MOST))

        @property
        def dim(self) -> int:
            return self.encoder.dim

        def divide(self, size: tuple[int, ...]) -> Division:
            """The canvas for a picture of this size.

            >>> from quintet.components.encoders.presets import CLIP_L_336
            >>> Tiles.Config(encoder=CLIP_L_336.at(fit="squash")).divide((480, 640))
            Division(grid=(2, 2), canvas=(672, 672), content=(504, 672))
            """
            height, width = size
            best, found = (-1, 0), self.grids[0]
            for rows, cols in self.grids:
                high, wide = _inside(height, width, rows * self.tile[0], cols * self.tile[1], up=False)
                shown = min(high * wide, height * width)
                score = shown, shown - rows * cols * self.tile[0] * self.tile[1]
                if score > best:
                    best, found = score, (rows, cols)
            canvas = found[0] * self.tile[0], found[1] * self.tile[1]
            return Division(found, canvas, _inside(height, width, *canvas, up=True))

        def kept(self, size: tuple[int, ...]) -> tuple[slice, slice]:
            """Rows and columns of the map that show something of a picture of this size."""
            height, width = size
            division, tile = self.divide(size), self.encoder.layout(self.tile)
            rows, cols = division.grid[0] * tile.grid[0], division.grid[1] * tile.grid[1]
            high, wide = _inside(height, width, rows, cols, up=False)
            top, left = (rows - high) // 2, (cols - wide) // 2
            return slice(top, rows - top), slice(left, cols - left)

        def layout(self, size: tuple[int, ...]) -> Layout:
            tile = self.encoder.layout(self.tile)
            if self.join == "views":
                rows, cols = self.divide(size).grid
                return Layout.of([*tile.views, *tile.views * (rows * cols)])
            down, right = self.kept(size)
            return Layout.of([tile, Layout((down.stop - down.start, right.stop - right.start))])

        def starter(self) -> Self:
            return replace(self, encoder=self.encoder.starter())

        def tiny(self) -> Self:
            return replace(self, encoder=self.encoder.tiny())

        def build(self) -> "Tiles":
            return Tiles(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.encoder = config.encoder.build()

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def upper(self, share: float) -> Iterator[nn.Module]:
        """The upper layers of the encoder of a view."""
        return self.encoder.upper(share)  # type: ignore[operator]

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        """Features of pictures uint8[3, H, W] of any size, in their order."""
        views = [view for picture in values for view in self.divided(picture)]
        found = self.encoder(tuple(views))
        if not values:
            return found
        sizes = [(value.shape[-2], value.shape[-1]) for value in values]
        counts = [1 + self.config.divide(size).grid[0] * self.config.divide(size).grid[1] for size in sizes]
        per_view = found.counts[0]
        pieces = found.values.unflatten(0, (-1, per_view)).split(counts)
        if self.config.join == "map":
            pieces = [self._mapped(piece, size) for piece, size in zip(pieces, sizes, strict=True)]
        joined = torch.cat([piece.reshape(-1, self.dim) for piece in pieces])
        return Features(joined, tuple(self.config.layout(size) for size in sizes))

    def divided(self, picture: Tensor) -> tuple[Tensor, ...]:
        """uint8[3, H, W] as its views, uint8[3, h, w] each: the whole, then R·C tiles in raster order."""
        config, tile = self.config, self.config.tile
        division = config.divide(tuple(picture.shape[-2:]))
        resample = config.encoder.spec.resample
        canvas = picture.new_zeros(3, *division.canvas)
        (top, left), (high, wide) = division.corner, division.content
        canvas[:, top : top + high, left : left + wide] = resized(picture, (high, wide), resample)
        tiles = canvas.unflatten(1, (-1, tile[0])).unflatten(3, (-1, tile[1])).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return resized(picture, tile, resample), *tiles

    def _mapped(self, views: Tensor, size: tuple[int, int]) -> Tensor:
        """float[1 + R·C, r·c, D] → float[r·c + rows · cols, D]: the tiles as one map, without what shows padding."""
        rows, cols = self.config.encoder.layout(self.config.tile).grid
        grid = self.config.divide(size).grid
        down, right = self.config.kept(size)
        tiles = views[1:].unflatten(1, (rows, cols)).unflatten(0, grid)
        whole = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return torch.cat([views[0], whole[down, right].flatten(0, 1)])


def _inside(height: int, width: int, rows: int, cols: int, *, up: bool) -> tuple[int, int]:
    """The largest size of the picture's aspect inside rows × cols; the shorter side is rounded `up` or down.

    In whole numbers: published code does it in floats, whose last bit now and then adds a row.
    """
    if cols * height < rows * width:
        return min(rows, -(-height * cols // width) if up else height * cols // width), cols
    return rows, min(cols, -(-width * rows // height) if up else width * rows // height)
