"""ConvNeXt: a network of convolutions alone, with the layers of transformers (Liu et al. 2022, arXiv:2201.03545).

A patch of 4 × 4 pixels becomes a place, every stage but the first halves the grid, and what a connector gets are the
places of the last stage. There are no positions, so any size works, and cost grows with the pixels instead of with
their square: 320 × 320 pixels are 10 × 10 features. OpenCLIP trained one as the picture tower of a CLIP.

Its weights are read from OpenCLIP's own file. That has timm's names below `visual.trunk.`, beside the projection and
the text tower, which have no use here: `pytorch-image-models/timm/models/convnext.py` and
`open_clip/src/open_clip/timm_model.py`.

Letters: N pictures, C channels, h × w places.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from quintet.components.encoders.pictures import by_size, normalised
from quintet.components.llms.weights import SafetensorsFolder, some
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.components.starter import STARTER_VISION
from quintet.errors import CheckpointError, ConfigError
from quintet.values import Features, Layout

__all__ = ["ConvNeXt", "load_open_clip_folder", "load_open_clip_state", "open_clip_name"]

PATCH = 4
"""Side of what the stem makes one place, pixels."""
EPS = 1e-6
"""Of the layer norms: the paper's, timm's and transformers'."""
TRUNK = "visual.trunk."
"""What stands before every name of the tower in OpenCLIP's file."""

_BELOW = {"downsampling_layer": "downsample", "layers": "blocks", "dwconv": "conv_dw", "layernorm": "norm"}
_BELOW |= {"pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2", "layer_scale_parameter": "gamma"}
_ABOVE = {"stem.patch_embeddings": "stem.0", "stem.layernorm": "stem.1", "norm": "head.norm"}
"""Our names → timm's: of pieces of a stage, and of what is before and behind the stages."""


class ConvNeXt(nn.Module):
    """Convolutions alone: the places of the last stage, before the average that a CLIP compares with a caption."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """Stages as published, and picture preparation."""

        depths: tuple[int, ...]
        """Blocks of each stage."""
        widths: tuple[int, ...]
        """Channels of each stage."""
        image: ImageSpec
        norm: bool = False
        """Whether the last norm is applied to every place; in pre-training it is applied to their average."""
        source: str = ""
        """Name of the published weights on the hub; empty for random ones."""
        licence: str = ""

        def __post_init__(self) -> None:
            if not self.depths or len(self.depths) != len(self.widths):
                raise ConfigError(f"depths are {self.depths}, widths {self.widths}; every stage needs one of each")
            if min(*self.depths, *self.widths) < 1:
                raise ConfigError(f"depths are {self.depths}, widths {self.widths}; none may be below 1")
            if self.image.fixed:
                self.layout(self.image.size)

        def at(
            self,
            *,
            size: int | tuple[int, int] | None = None,
            fit: Literal["pad", "crop", "squash", "native"] | None = None,
            norm: bool | None = None,
        ) -> "ConvNeXt.Config":
            """The same encoder, used in another way; what is not named stays. There are no layers to choose from."""
            image = self.image if fit is None else replace(self.image, fit=fit)
            if size is not None:
                image = replace(image, size=(size, size) if isinstance(size, int) else size)
            return replace(self, image=image, norm=self.norm if norm is None else norm)

        @property
        def spec(self) -> ImageSpec:
            return self.image

        @property
        def dim(self) -> int:
            return self.widths[-1]

        @property
        def stride(self) -> int:
            """Pixels from one feature to the next."""
            return PATCH * 2 ** (len(self.depths) - 1)

        def layout(self, size: tuple[int, ...]) -> Layout:
            """Whole features; pixels over are cut, as the strided convolutions do."""
            height, width = size
            if min(height, width) < self.stride:
                raise ConfigError(
                    f"a picture of {height} × {width} pixels is smaller than the stride of {self.stride}; "
                    f"each side must be at least {self.stride}"
                )
            return Layout((height // self.stride, width // self.stride))

        def starter(self) -> EncoderConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
            """The trained encoder that ships with the package: there is no small ConvNeXt that was trained."""
            image = replace(STARTER_VISION.image, fit=self.image.fit, multiple=STARTER_VISION.patch)
            return replace(STARTER_VISION, image=image, norm=self.norm)

        def tiny(self) -> Self:
            image = replace(self.image, size=(32, 32), multiple=8)
            return replace(self, depths=(1, 2), widths=(16, 32), image=image, source="", licence="")

        def build(self) -> "ConvNeXt":
            return ConvNeXt(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        # Imported here: it costs time, and most runs do not need it.
        from transformers import ConvNextConfig, ConvNextModel

        self.config = config
        self.dim = config.dim
        stages = {"num_stages": len(config.depths), "depths": [*config.depths], "hidden_sizes": [*config.widths]}
        tower: Any = ConvNextModel(ConvNextConfig(**stages, patch_size=PATCH, layer_norm_eps=EPS))
        self.stem: nn.Module = tower.embeddings
        self.stages: nn.ModuleList = tower.encoder.stages
        self.norm: nn.Module = tower.layernorm if config.norm else nn.Identity()

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def upper(self, share: float) -> Iterator[nn.Module]:
        """The last blocks, at least one, with what halves the grid between them, and the norm; halves round down."""
        blocks = [
            [*(stage.downsampling_layer if layer is stage.layers[0] else ()), layer]  # type: ignore[union-attr]
            for stage in self.stages
            for layer in stage.layers  # type: ignore[union-attr]
        ]
        for block in blocks[min(ceil(len(blocks) * (1 - share)), len(blocks) - 1) :]:
            yield from block
        yield self.norm

    def forward(self, values: tuple[Tensor, ...]) -> Features:
        """Features of pictures uint8[3, H, W], in their order; pictures of one size run together."""
        return by_size(values, self.config, self.encode, like=next(self.parameters()))

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8[N, 3, H, W] → float[N, h·w, C]."""
        hidden = self.stem(normalised(pictures, self.config.image).to(next(self.parameters()).dtype))
        for stage in self.stages:
            hidden = stage(hidden)
        return self.norm(hidden.flatten(2).mT)


# ---- published weights -------------------------------------------------------------------------------------------
def open_clip_name(name: str) -> str:
    """The name in OpenCLIP's file of a weight of ours.

    >>> open_clip_name("stages.2.layers.26.pwconv1.weight")
    'visual.trunk.stages.2.blocks.26.mlp.fc1.weight'
    """
    if name.startswith("stages."):
        return TRUNK + ".".join(_BELOW.get(piece, piece) for piece in name.split("."))
    part, _, weight = name.rpartition(".")
    return f"{TRUNK}{_ABOVE[part]}.{weight}"


@torch.no_grad()
def load_open_clip_state(encoder: ConvNeXt, state: Mapping[str, Tensor]) -> None:
    """Copies the tower of OpenCLIP's file into the encoder, cast to its dtype.

    Raises:
        CheckpointError: names that are missing or not of this tower, or a shape that does not fit; nothing is copied
            then.
    """
    ours = {open_clip_name(name): weight for name, weight in encoder.state_dict().items()}
    unused = set() if encoder.config.norm else {f"{TRUNK}head.norm.weight", f"{TRUNK}head.norm.bias"}
    theirs = {name for name in state if name.startswith(TRUNK)} - unused
    if ours.keys() != theirs:
        raise CheckpointError(
            f"weights do not match the ConvNeXt of {encoder.config.depths} blocks: missing "
            f"{some(ours.keys() - theirs)}; unexpected {some(theirs - ours.keys())}"
        )
    found = {name: state[name] for name in ours}
    for name, weight in ours.items():
        if found[name].shape != weight.shape:
            raise CheckpointError(
                f"{name} is {tuple(found[name].shape)} in the file and {tuple(weight.shape)} in the encoder"
            )
    for name, weight in ours.items():
        weight.copy_(found[name])


def load_open_clip_folder(encoder: ConvNeXt, folder: Path) -> None:
    """Loads the tower out of the `open_clip_model.safetensors` of a local folder.

    Raises:
        CheckpointError: no such file, or weights that do not match the encoder.
    """
    load_open_clip_state(encoder, SafetensorsFolder(folder, file="open_clip_model.safetensors"))
