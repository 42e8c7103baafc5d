"""A frozen CLIP with a routed adapter before the attention of every layer, routed by the class token or by each itself.

Source: LaVIN (Luo et al. 2023, arXiv:2305.15023, section 3.1), which trains adapters in both towers end to end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from quintet.components.encoders.vision import Vision
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.components.routed import RoutedAdapter
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Adapted"]


class Adapted(nn.Module):
    """The tower and its adapters, two parts: `encoders.image.tower` and `encoders.image.adapters`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """The tower as it is published, and its adapters."""

        tower: Vision.Config
        narrow: int = 8
        groups: int = 2
        temperature: float = 10.0
        routed_by: Literal["class", "each"] = "class"
        """What says how the ways of a token's adapter are mixed: the picture's class token, as in the paper, or the
        token itself, which is what LaVIN's code does with one picture in the batch."""

        def __post_init__(self) -> None:
            if self.tower.family != "clip" or not self.tower.extra:
                raise ConfigError(f"the class token of a CLIP routes; the tower is {self.tower.family} or has none")

        @property
        def spec(self) -> ImageSpec:
            return self.tower.spec

        @property
        def dim(self) -> int:
            return self.tower.dim

        def layout(self, size: tuple[int, ...]) -> Layout:
            return self.tower.layout(size)

        def starter(self) -> Self:
            return replace(self, tower=self.tower.starter())

        def tiny(self) -> Self:
            return replace(self, tower=self.tower.tiny(), narrow=4)

        def build(self) -> "Adapted":
            return Adapted(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.tower = config.tower.build()
        self.tower.layers = nn.ModuleList(_Layer(layer) for layer in self.tower.layers)
        self.adapters = nn.ModuleList(
            RoutedAdapter(
                config.tower.width, narrow=config.narrow, groups=config.groups, temperature=config.temperature
            )
            for _ in self.tower.layers
        )

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def parts(self) -> dict[str, nn.Module]:
        """What trains apart."""
        return {"tower": self.tower, "adapters": self.adapters}

    def upper(self, share: float) -> Iterator[nn.Module]:
        """The tower's upper layers."""
        return self.tower.upper(share)

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        """Features of pictures uint8[3, H, W], in their order."""
        return self.tower(
            values, lambda index, layer, hidden: layer(hidden, self.adapters[index], routed_by=self.config.routed_by)
        )


class _Layer(nn.Module):
    """A layer of transformers' CLIP, taken apart; its weights keep their names."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = layer.layer_norm1, layer.self_attn
        self.layer_norm2, self.mlp = layer.layer_norm2, layer.mlp

    def forward(self, hidden: Tensor, adapter: nn.Module, *, routed_by: str) -> Tensor:
        """float[N, L, D] → float[N, L, D]; the first token of each picture is its class token."""
        x = self.layer_norm1(hidden)
        tokens = x[:, 0] if routed_by == "class" else x.flatten(0, 1)
        which = torch.arange(len(tokens), device=x.device).repeat_interleave(x.shape[:2].numel() // len(tokens))
        adapted = adapter(x.flatten(0, 1), tokens, which).view_as(x)
        hidden = hidden + self.self_attn(adapted, attention_mask=None)[0]
        return hidden + self.mlp(self.layer_norm2(hidden))
