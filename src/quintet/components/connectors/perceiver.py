"""The Perceiver resampler: a few learned latents look at all features of an item and become its features.

Source: Flamingo (Alayrac et al. 2022, arXiv:2204.14198, section 3.1.1 and figure 5), after Perceiver (Jaegle et al.
2021). Each layer's keys are the features and the latents themselves. OpenFlamingo's and IDEFICS's differ in data only.
Letters: n items of one layout, D width, L latents.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.components.cross import Activation, CrossAttention, FeedForward
from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Perceiver"]


class Perceiver(nn.Module):
    """Any number of features an item → `latents` features."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes as published; heads and their width are given, since heads · head_dim need not be the width."""

        latents: int = 64
        """Features that an item has afterwards."""
        depth: int = 6
        heads: int
        head_dim: int
        width: int = 0
        """Width inside; 0 is the encoder's. Where it is not the encoder's or the reader's, a linear layer maps."""
        act: Activation
        expand: int = 4
        """Width inside the feed-forward layers as a multiple of the width."""
        qk_norm: bool = False
        """LayerNorm over each head of queries and keys (IDEFICS)."""
        frames: int = 0
        """Learned embeddings of time, one a frame, added to its features (Flamingo: 8); a picture is one frame. More
        frames than that get embeddings in between."""

        def __post_init__(self) -> None:
            for name in ("latents", "depth", "heads", "head_dim", "expand"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"{name} is {getattr(self, name)}; a resampler needs at least 1")

        def starter(self) -> Self:
            return self._small(latents=min(self.latents, 32), depth=2, heads=6, width=192)

        def tiny(self) -> Self:
            return self._small(latents=min(self.latents, 6), depth=2, heads=2, width=24)

        def _small(self, *, latents: int, depth: int, heads: int, width: int) -> Self:
            shape = {"latents": latents, "depth": depth, "heads": heads, "head_dim": width // heads}
            return replace(self, **shape, width=width if self.width else 0)

        def layout(self, layout: Layout) -> Layout:
            return Layout((self.latents,))

        def build(self, *, d_in: int, d_out: int) -> "Perceiver":
            return Perceiver(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        dim = config.width or d_in
        self.enter = nn.Linear(d_in, dim) if dim != d_in else nn.Identity()
        self.time = nn.Parameter(torch.randn(config.frames, dim) * 0.02) if config.frames else None
        self.latents = nn.Parameter(torch.randn(config.latents, dim))
        self.layers = nn.ModuleList(_Layer(config, dim=dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.leave = nn.Linear(dim, d_out) if dim != d_out else nn.Identity()

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            return Features(self.leave(self.enter(features.values)), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in features.groups():
            pieces.append((self.config.layout(layout), items, self._resample(self.enter(values), layout)))
        return Features.join(pieces)

    def _resample(self, values: Tensor, layout: Layout) -> Tensor:
        """float[n, count, D] → float[n, L, d_out]."""
        if self.time is not None:
            values = values + self._times(layout).to(values.dtype)
        latents = self.latents.expand(len(values), -1, -1)
        for layer in self.layers:
            latents = layer(latents, values)
        return self.leave(self.norm(latents))

    def _times(self, layout: Layout) -> Tensor:
        """The embedding of each feature's frame, float[count, D]; what stands before the grid is of the first."""
        assert self.time is not None, "this resampler knows no time"
        frames = layout.grid[0] if len(layout.grid) == 3 else 1
        times = self.time[:frames]
        if frames > len(self.time):
            # As Flamingo does for 30 frames with the embeddings of 8 (section 3.1.1).
            times = F.interpolate(self.time.T[None], frames, mode="linear", align_corners=True)[0].T
        each = times.repeat_interleave((layout.count - layout.extra) // frames, dim=0)
        return torch.cat([times[:1].expand(layout.extra, -1), each])


class _Layer(nn.Module):
    """Latents look at features and at themselves, then a feed-forward layer; two residual updates."""

    def __init__(self, config: Perceiver.Config, *, dim: int) -> None:
        super().__init__()
        self.features_norm, self.latents_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        qk_norm = "layer" if config.qk_norm else None
        self.attn = CrossAttention(
            dim=dim, d_context=dim, heads=config.heads, head_dim=config.head_dim, qk_norm=qk_norm
        )
        self.feed_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim=dim, hidden=config.expand * dim, act=config.act)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        normed = self.latents_norm(latents)
        context = torch.cat([self.features_norm(features), normed], 1)
        latents = latents + self.attn(normed, self.attn.keys(context))
        return latents + self.mlp(self.feed_norm(latents))
