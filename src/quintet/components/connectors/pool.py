"""Averages squares of neighbouring patches, then projects: fewer tokens an image for almost no weights.

The 2-D average pool of LLaVA-NeXT-Video and PLLaVA (Xu et al. 2024, arXiv:2404.16994), and the simplest member of the
compressing connectors that Honeybee compares (Cha et al. 2023, arXiv:2312.06742).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.components.connectors.mlp import Stack
from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["AveragePool", "merged_grid"]


def merged_grid(layout: Layout, factor: int) -> tuple[int, int]:
    """The grid after `factor` × `factor` patches become one.

    >>> merged_grid(Layout((24, 24)), 3)
    (8, 8)

    Raises:
        ConfigError: the picture is divided, the features are no grid of rows and columns, or its sides are no
            multiples of the factor.
    """
    if layout.more:
        raise ConfigError(
            f"a picture divided into {len(layout.views)} views has a grid for each; wrap the connector, so that each "
            "view is its own: Views.Config(inner=…) (quintet.components.connectors.views), or Newline, which ends rows"
        )
    if len(layout.grid) != 2:
        raise ConfigError(
            f"features of shape {layout.grid} are not a grid of rows and columns, so squares of {factor} × {factor} "
            "cannot be merged; let the encoder select its patches (select='patch')"
        )
    rows, cols = layout.grid
    if rows % factor or cols % factor:
        fits = [f for f in range(2, min(rows, cols) + 1) if rows % f == 0 and cols % f == 0]
        near = [max(factor, round(side / factor) * factor) for side in (rows, cols)]
        raise ConfigError(
            f"a grid of {rows} × {cols} patches does not divide by {factor}; "
            f"factors that do: {', '.join(map(str, fits)) or 'none'}; "
            f"or choose the image size so that the grid is {near[0]} × {near[1]}"
        )
    return rows // factor, cols // factor


class AveragePool(nn.Module):
    """The mean of each square of `factor` × `factor` patches, then linear layers. A class token passes as it is."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """How many patches become one, and what projects them."""

        factor: int = 2
        """Side of the square, in patches."""
        depth: int = 1
        """Linear layers after the mean: 1 is linear, 2 an MLP with GELU."""

        def __post_init__(self) -> None:
            if self.factor < 1 or self.depth < 1:
                raise ConfigError(f"factor is {self.factor} and depth is {self.depth}; both must be at least 1")

        def layout(self, layout: Layout) -> Layout:
            return Layout(merged_grid(layout, self.factor), layout.extra)

        def build(self, *, d_in: int, d_out: int) -> "AveragePool":
            return AveragePool(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.project = Stack(d_in=d_in, d_out=d_out, depth=config.depth)

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            return Features(self.project(features.values), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in features.groups():
            rows, cols = merged_grid(layout, f := self.config.factor)
            extra, patches = values[:, : layout.extra], values[:, layout.extra :]
            means = patches.unflatten(1, (rows, f, cols, f)).mean((2, 4)).flatten(1, 2)
            pieces.append((self.config.layout(layout), items, self.project(torch.cat([extra, means], 1))))
        return Features.join(pieces)
