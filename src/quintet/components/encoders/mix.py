"""Several encoders for one picture, side by side.

Prismatic (Karamcheti et al. 2024, arXiv:2402.07865, section 4.2) and many after it join the channels of DINOv2, which
sees shapes and places, and SigLIP, which knows words. Every encoder takes its own mean and deviation out of the same
pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Mix"]


class Mix(nn.Module):
    """The features of all encoders, joined in width or one encoder's after the other's."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """The encoders, what pictures they share, and how their features come together."""

        encoders: tuple[EncoderConfig, ...]
        image: ImageSpec
        """How pictures are prepared, for all of them; means and deviations stay each encoder's own."""
        join: Literal["channels", "sequence"] = "channels"
        """"channels": feature by feature, so all need one grid. "sequence": as further views, so all need one width."""

        def __post_init__(self) -> None:
            if not self.encoders:
                raise ConfigError("a mix of no encoders; give it at least one")
            if self.join == "sequence" and len({encoder.dim for encoder in self.encoders}) > 1:
                widths = [encoder.dim for encoder in self.encoders]
                raise ConfigError(
                    f"encoders are {widths} wide; one after the other they must be alike, or join='channels'"
                )
            if self.image.fixed:
                self.layout(self.image.size)

        @property
        def spec(self) -> ImageSpec:
            return self.image

        @property
        def dim(self) -> int:
            return sum(e.dim for e in self.encoders) if self.join == "channels" else self.encoders[0].dim

        def layout(self, size: tuple[int, ...]) -> Layout:
            """Raises ConfigError where the encoders' grids differ, and channels are to be joined."""
            found = [encoder.layout(size) for encoder in self.encoders]
            if self.join == "sequence":
                return Layout.of([view for layout in found for view in layout.views])
            if len(set(found)) > 1:
                raise ConfigError(
                    f"of {size[0]} × {size[1]} pixels the encoders make {' and '.join(str(f.grid) for f in found)} "
                    "features; to join their channels they need one grid: choose another size, or join='sequence'"
                )
            return found[0]

        def starter(self) -> Self:
            return self._small(tuple(encoder.starter() for encoder in self.encoders))

        def tiny(self) -> Self:
            return self._small(tuple(encoder.tiny() for encoder in self.encoders))

        def _small(self, encoders: tuple[EncoderConfig, ...]) -> Self:
            return replace(self, encoders=encoders, image=replace(encoders[0].spec, fit=self.image.fit))

        def build(self) -> "Mix":
            return Mix(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.encoders = nn.ModuleList(encoder.build() for encoder in config.encoders)

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def upper(self, share: float) -> Iterator[nn.Module]:
        """The upper layers of every encoder."""
        for encoder in self.encoders:
            yield from encoder.upper(share)  # type: ignore[operator]

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        """Features of pictures uint8[3, H, W], in their order."""
        found: list[Features] = [encoder(values) for encoder in self.encoders]
        if self.config.join == "channels":
            return Features(torch.cat([each.values for each in found], -1), found[0].layouts)
        if not values:
            return found[0]
        pieces = [piece for item in zip(*(each.split() for each in found), strict=True) for piece in item]
        layouts = tuple(
            Layout.of([view for layout in item for view in layout.views])
            for item in zip(*(each.layouts for each in found), strict=True)
        )
        return Features(torch.cat(pieces), layouts)
