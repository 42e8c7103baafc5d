"""Stacks squares of neighbouring patches in depth, then projects: fewer tokens an image, and nothing averaged away.

Source: InternVL 1.5 (Chen et al. 2024, arXiv:2404.16821, section 3.2; LayerNorm and a two-layer MLP after) and
Idefics3 / SmolVLM (Laurençon et al. 2024, arXiv:2408.12637; one linear layer without bias).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from quintet.components.connectors.mlp import Stack
from quintet.components.connectors.pool import merged_grid
from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["PixelShuffle", "shuffle"]


def shuffle(values: Tensor, *, rows: int, cols: int, factor: int) -> Tensor:
    """Patches float[N, rows·cols, C] as float[N, rows/f · cols/f, f²·C].

    A merged feature holds its patches in raster order: channel c of the patch at (down, right) in the square becomes
    channel (down·f + right)·C + c. This is the order of Idefics3's and of InternVL's `pixel_shuffle` (ps_version v2)
    in transformers, and tests/unit/test_connectors.py compares with both.
    """
    square = values.unflatten(1, (rows // factor, factor, cols // factor, factor))
    return square.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class PixelShuffle(nn.Module):
    """Each square of `factor` × `factor` patches as one long feature, optionally normalised, then linear layers."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """How many patches become one, and what projects them."""

        factor: int = 2
        """Side of the square, in patches; an image takes factor² times fewer tokens."""
        depth: int = 2
        """Linear layers after it."""
        norm: bool = True
        """LayerNorm before them (InternVL has it, Idefics3 has not)."""
        bias: bool = True

        def __post_init__(self) -> None:
            if self.factor < 1 or self.depth < 1:
                raise ConfigError(f"factor is {self.factor} and depth is {self.depth}; both must be at least 1")

        def layout(self, layout: Layout) -> Layout:
            if layout.extra:
                raise ConfigError(
                    "pixel shuffle merges patches only, and the encoder also gives a class token; "
                    "let it select patches (select='patch')"
                )
            return Layout(merged_grid(layout, self.factor))

        def build(self, *, d_in: int, d_out: int) -> "PixelShuffle":
            return PixelShuffle(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        wide = d_in * config.factor**2
        self.norm = nn.LayerNorm(wide) if config.norm else nn.Identity()
        self.project = Stack(d_in=wide, d_out=d_out, depth=config.depth, bias=config.bias)

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            empty = features.values.new_empty(0, features.values.shape[-1] * self.config.factor**2)
            return Features(self.project(self.norm(empty)), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in features.groups():
            after = self.config.layout(layout)
            rows, cols = layout.grid
            merged = shuffle(values, rows=rows, cols=cols, factor=self.config.factor)
            pieces.append((after, items, self.project(self.norm(merged))))
        return Features.join(pieces)
