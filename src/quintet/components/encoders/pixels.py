"""No encoder: a picture's patches as they are, so that one linear layer is the whole of a model's sight.

Fuyu (Bavishi et al. 2023, https://www.adept.ai/blog/fuyu-8b): patches of 30 × 30 pixels of a picture of any size.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from quintet.components.encoders.pictures import normalised
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Pixels"]


class Pixels(nn.Module):
    """Patches in raster order; a patch is its pixels' colours, row by row, the channels of a pixel side by side."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """The patch, and how pictures are prepared."""

        patch: int = 30
        """Side of a patch, pixels."""
        image: ImageSpec = field(
            default_factory=lambda: ImageSpec(
                size=(1080, 1920),
                fit="native",
                resample="bilinear",
                background=(1, 1, 1),
                multiple=30,
                most=(1080, 1920),
            )
        )
        """As published: at most 1080 × 1920, filled up to whole patches at the right and at the bottom with ones,
        which its processor means as white and applies to 0 … 255."""

        def __post_init__(self) -> None:
            if self.patch < 1:
                raise ConfigError(f"patch is {self.patch}; a patch has at least 1 pixel a side")

        @property
        def spec(self) -> ImageSpec:
            return self.image

        @property
        def dim(self) -> int:
            return 3 * self.patch**2

        def layout(self, size: tuple[int, ...]) -> Layout:
            """Raises ConfigError: no whole patch fits."""
            return Layout((size[0] // self.patch, size[1] // self.patch))

        def starter(self) -> Self:
            return self._small(64)

        def tiny(self) -> Self:
            return self._small(32)

        def _small(self, side: int) -> Self:
            """Patches of 8 pixels; pictures of up to twice the side that shows."""
            image = replace(self.image, size=(side, side), multiple=8, most=(2 * side, 2 * side))
            return replace(self, patch=8, image=image)

        def build(self) -> "Pixels":
            return Pixels(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        """float[S, 3 · patch²] of pictures uint8[3, H, W], normalised with the mean and deviation of `image`."""
        patch = self.config.patch
        pieces: list[Tensor] = []
        layouts: list[Layout] = []
        for picture in values:
            layout = self.config.layout(tuple(picture.shape[-2:]))
            pixels = normalised(picture, self.config.image)
            whole = pixels[:, : layout.grid[0] * patch, : layout.grid[1] * patch]
            grid = whole.unflatten(1, (-1, patch)).unflatten(3, (-1, patch))
            pieces.append(grid.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1))
            layouts.append(layout)
        return Features(torch.cat(pieces) if pieces else torch.empty(0, self.dim), tuple(layouts))
