"""The light downsample projectors of MobileVLM: an MLP, then convolutions that leave a quarter of the tokens.

LDP (Chu et al. 2023, arXiv:2312.16886, section 3.3) has two blocks of depthwise and pointwise convolutions, the second
with stride 2. LDPv2 (Chu et al. 2024, arXiv:2402.03766, section 3.2) pools instead and keeps one depthwise convolution
with a skip, which tells positions: 99.8 % fewer parameters than those blocks. As in the released code
(`mobilevlm/model/vision_projector.py`). Letters: N items, r × c features, D the LLM's width.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from quintet.components.connectors.mlp import Stack
from quintet.components.connectors.pool import merged_grid
from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Ldp"]


class Ldp(nn.Module):
    """Two linear layers on every feature, then 2 × 2 of them become one."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Which of the two."""

        version: Literal[1, 2] = 2

        def layout(self, layout: Layout) -> Layout:
            if layout.extra:
                raise ConfigError("a class token has no place on the grid; let the encoder select patches")
            return Layout(merged_grid(layout, 2))

        def build(self, *, d_in: int, d_out: int) -> "Ldp":
            return Ldp(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.project = Stack(d_in=d_in, d_out=d_out, depth=2)
        blocks = [_Peg(d_out)] if config.version == 2 else [_Mobile(d_out, stride=1), _Mobile(d_out, stride=2)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: Features) -> Features:
        projected = Features(self.project(features.values), features.layouts)
        if not features.layouts:
            return projected
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in projected.groups():
            found = self.blocks(values.mT.unflatten(2, layout.grid))
            pieces.append((self.config.layout(layout), items, found.flatten(2).mT))
        return Features.join(pieces)


class _Peg(nn.Module):
    """The mean of 2 × 2, then x + depthwise 3 × 3 convolution (PEG, Chu et al. 2021, arXiv:2102.10882)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, grid: Tensor) -> Tensor:
        """float[N, D, r, c] → float[N, D, r / 2, c / 2]."""
        grid = self.pool(grid)
        return self.conv(grid) + grid


class _Mobile(nn.Module):
    """MobileNetV3's inverted residual without expansion, with layer norms over channels (arXiv:1905.02244)."""

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False)
        self.depthwise_norm = nn.LayerNorm(dim, eps=1e-6)
        self.squeeze = nn.Linear(dim, _multiple_of_8(dim // 4))
        self.excite = nn.Linear(_multiple_of_8(dim // 4), dim)
        self.pointwise = nn.Linear(dim, dim, bias=False)
        self.pointwise_norm = nn.LayerNorm(dim, eps=1e-6)
        self.skip = stride == 1

    def forward(self, grid: Tensor) -> Tensor:
        """float[N, D, r, c] → float[N, D, r / stride, c / stride]."""
        found = self.depthwise(grid).permute(0, 2, 3, 1)
        found = nn.functional.hardswish(self.depthwise_norm(found))
        gate = self.excite(nn.functional.relu(self.squeeze(found.mean((1, 2), keepdim=True))))
        found = self.pointwise_norm(self.pointwise(found * nn.functional.hardsigmoid(gate))).permute(0, 3, 1, 2)
        return grid + found if self.skip else found


def _multiple_of_8(width: int) -> int:
    """The nearest multiple of 8, at least 8 and not less than 90 % of the width (MobileNet's rule)."""
    near = max(8, (width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8
