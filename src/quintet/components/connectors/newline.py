"""A learned feature after each row of a picture's features, so that the LLM reads where a row ends.

LLaVA-NeXT's `image_newline`, after the rows of its tiles (https://llava-vl.github.io/blog/2024-01-30-llava-next/), and
Fuyu's |NEWLINE| token after every row of patches (https://www.adept.ai/blog/fuyu-8b).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from quintet.components.connectors.views import Views
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Newline"]


class Newline(Views):
    """Another connector, on each view by itself, and a vector float[D] after each row of what it gives."""

    config: "Newline.Config"

    @dataclass(frozen=True, kw_only=True)
    class Config(Views.Config):
        """The connector of a view, and which rows end in a newline."""

        rows: Literal["details", "all"] = "details"
        """"details": of all views but the first. "all": of the first as well."""

        def layout(self, layout: Layout) -> Layout:
            inner = super().layout(layout).views
            return Layout.of([self._ended(view, first=not i) for i, view in enumerate(inner)])

        def _ended(self, view: Layout, *, first: bool) -> Layout:
            if first and self.rows == "details":
                return view
            if len(view.grid) != 2:
                raise ConfigError(f"features of shape {view.grid} have no rows that a newline could end")
            return replace(view, grid=(view.grid[0], view.grid[1] + 1))

        def build(self, *, d_in: int, d_out: int) -> "Newline":
            return Newline(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__(config, d_in=d_in, d_out=d_out)
        self.newline = nn.Parameter(torch.randn(d_out) * d_out**-0.5)

    def forward(self, features: Features) -> Features:
        found = super().forward(features)
        if not features.layouts:
            return found
        firsts = [not i for layout in found.layouts for i, _ in enumerate(layout.views)]
        views = found.apart()
        pieces = [
            piece if first and self.config.rows == "details" else self._ended(piece, view)
            for piece, view, first in zip(views.split(), views.layouts, firsts, strict=True)
        ]
        return Features(torch.cat(pieces), tuple(self.config.layout(layout) for layout in features.layouts))

    def _ended(self, piece: Tensor, view: Layout) -> Tensor:
        rows, cols = view.grid
        grid = piece[view.extra :].view(rows, cols, piece.shape[-1])
        ends = self.newline.to(grid.dtype).expand(rows, 1, -1)
        return torch.cat([piece[: view.extra], torch.cat([grid, ends], 1).flatten(0, 1)])
