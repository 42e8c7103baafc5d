"""NF-ResNet: a residual network of convolutions without batch norm (Brock et al. 2021, arXiv:2101.08692).

What it computes for a picture does not depend on the batch: weights are standardised instead of activations, and each
branch is scaled by the variance that is expected there. Frozen's vision encoder is the one of 50 layers.
Letters: N pictures, C channels, h × w places.
"""

from dataclasses import dataclass
from math import prod
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.encoders.pictures import by_size, normalised
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.components.starter import STARTER_VISION
from quintet.values import Features, Layout

__all__ = ["NFResNet"]

GAIN = 1.7139588594436646
"""What ReLU's output of a standard normal input is multiplied with for a variance of one."""
ALPHA = 0.2
"""How strongly a residual branch is added."""


class NFResNet(nn.Module):
    """The places of the last stage, before the average over them that a connector may take."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """Stages and picture preparation."""

        depths: tuple[int, ...] = (3, 4, 6, 3)
        """Blocks of each stage; a block is three convolutions."""
        widths: tuple[int, ...] = (256, 512, 1024, 2048)
        """Channels that each stage gives."""
        stem: int = 64
        image: ImageSpec

        @property
        def spec(self) -> ImageSpec:
            return self.image

        @property
        def dim(self) -> int:
            return self.widths[-1]

        def layout(self, size: tuple[int, ...]) -> Layout:
            # The stem halves twice, and every stage but the first once; what is over counts as a place.
            step = 2 ** (1 + len(self.depths))
            return Layout((-(-size[0] // step), -(-size[1] // step)))

        def starter(self) -> EncoderConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
            """The trained encoder that ships with the package: from scratch this one needs millions of captions."""
            return STARTER_VISION

        def tiny(self) -> Self:
            image = ImageSpec(size=(32, 32), fit=self.image.fit, multiple=8)
            return type(self)(depths=(1, 1), widths=(32, 64), stem=16, image=image)

        def build(self) -> "NFResNet":
            return NFResNet(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.stem = _Conv(3, config.stem, 7, stride=2)
        blocks: list[_Block] = []
        width = config.stem
        for stage, (depth, out) in enumerate(zip(config.depths, config.widths, strict=True)):
            variance = 1.0
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(_Block(width, out, stride=stride, beta=variance**-0.5, first=not index))
                # A stage's first block replaces its input, so the variance starts over; the others add to it.
                variance = (1.0 if not index else variance) + ALPHA**2
                width = out
        self.blocks = nn.ModuleList(blocks)

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        """Features of pictures uint8[3, H, W], in their order; pictures of one size run together."""
        return by_size(values, self.config, self.encode, like=self.stem.weight)

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8[N, 3, H, W] → float[N, h·w, C]."""
        pixels = normalised(pictures, self.config.image).to(self.stem.weight.dtype)
        hidden = F.max_pool2d(self.stem(pixels), 3, stride=2, padding=1)
        for block in self.blocks:
            hidden = block(hidden)
        return (F.relu(hidden) * GAIN).flatten(2).mT


class _Block(nn.Module):
    """x + α · f(x · β), with f of 1 × 1, 3 × 3 and 1 × 1 convolutions, each after a ReLU."""

    def __init__(self, width: int, out: int, *, stride: int, beta: float, first: bool) -> None:
        super().__init__()
        self.beta = beta
        self.reduce = _Conv(width, out // 4, 1)
        self.conv = _Conv(out // 4, out // 4, 3, stride=stride)
        self.expand = _Conv(out // 4, out, 1)
        self.shortcut = _Conv(width, out, 1, stride=stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """float[N, C, h, w] → float[N, C', h / stride, w / stride]."""
        active = F.relu(x) * GAIN * self.beta
        found = self.reduce(active)
        found = self.conv(F.relu(found) * GAIN)
        found = self.expand(F.relu(found) * GAIN)
        return (x if self.shortcut is None else self.shortcut(active)) + ALPHA * found


class _Conv(nn.Conv2d):
    """A convolution whose weights of an output channel have mean 0 and variance 1 / fan-in, times a learnt gain."""

    def __init__(self, width: int, out: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(width, out, kernel, stride=stride, padding=kernel // 2)
        self.gain = nn.Parameter(torch.ones(out))
        nn.init.normal_(self.weight, std=prod(self.weight.shape[1:]) ** -0.5)
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, input: Tensor) -> Tensor:  # nn.Conv2d's name for it
        fan_in = prod(self.weight.shape[1:])
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        scale = self.gain.view(-1, 1, 1, 1) * torch.rsqrt((var * fan_in).clamp_min(1e-4))
        return F.conv2d(input, (self.weight - mean) * scale, self.bias, self.stride, self.padding)
