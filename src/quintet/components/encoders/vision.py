"""Vision transformers for pictures: CLIP, SigLIP, DINOv2 and BLIP-2's EVA-CLIP, with the layers of transformers.

One class for the four, because they differ in data only: a class token or none, a norm before the layers or none, a
scale on the branches or none. Patches, positions and the choice of layer are ours, so that any picture size works and
only what is needed runs.

Layers after the feature layer get no gradient, ever. As parameters they would break data-parallel training and the
optimizer's checkpoints, so they are not parameters here: by default they are not built at all (the published file is
read without them, and an export writes a shorter tower whose last layer is the feature layer: the same features). With
`keep_unused` they are held as buffers, which are saved and exported as they came, and never run or trained.

Letters: N pictures, D width, P positions, L tokens of one picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.encoders.eva import EvaLayer
from quintet.components.encoders.parallel import ParallelLayer
from quintet.components.encoders.pictures import by_size, normalised
from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.components.unused import parameters_to_buffers
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Family", "Run", "Select", "Vision", "resize_positions"]

Family = Literal["clip", "siglip", "dinov2", "blip2", "eva2", "vit22b"]
Select = Literal["patch", "cls", "full", "rest"]
Run = Callable[[int, nn.Module, Tensor], Tensor]
"""(layer, module, hidden float[N, L, D]) → hidden: how a layer is run by whoever stands around it."""


class Vision(nn.Module):
    """A picture's patch features, taken from one hidden layer or from several side by side."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        """Shape as published, picture preparation, and which features are taken."""

        family: Family
        width: int
        depth: int
        """Layers of the published encoder; those after the feature layer are not built."""
        heads: int
        ffn: int
        """Width inside the feed-forward layers."""
        patch: int
        """Side of a patch, pixels."""
        trained_size: int
        """Side of the square pictures of pre-training, pixels: how large the table of positions is."""
        act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
        eps: float
        """Of the layer norms."""
        image: ImageSpec
        layer: int | tuple[int, ...] = -2
        """Index into the hidden states, of which 0 is the input of the first layer and -1 the output of the last.
        Several are concatenated in width."""
        select: Select = "patch"
        """"patch": no class token. "cls": it alone. "full": all. "rest": all but the first token, whatever it is;
        on SigLIP, which has no class token, that loses the top left patch (what transformers' LLaVA calls default)."""
        norm: bool = False
        """Whether the encoder's last norm is applied to the features (mPLUG-Owl, DINOv2's own outputs)."""
        class_token: bool = True
        """Whether the class token is there; without it its position is not either (Qwen-VL's CLIP). SigLIP has none."""
        keep_unused: bool = False
        """Whether what is after the feature layer is kept, as buffers, for a lossless export."""
        head: bool = False
        """Whether `keep_unused` includes SigLIP's pooling head."""
        source: str = ""
        """Name of the published weights on the hub; empty for random ones."""
        licence: str = ""

        def __post_init__(self) -> None:
            for name in ("width", "depth", "heads", "ffn", "patch", "trained_size"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"{name} is {getattr(self, name)}; an encoder needs at least 1")
            if self.width % self.heads:
                raise ConfigError(f"width {self.width} does not divide into {self.heads} heads")
            if not self.layers or any(not -self.depth - 1 <= i <= self.depth for i in self.layers):
                raise ConfigError(
                    f"layer is {self.layer}; an encoder of {self.depth} layers has hidden states "
                    f"0 to {self.depth}, or -1 to {-self.depth - 1} from the end"
                )
            if self.select == "cls" and not self.extra:
                raise ConfigError("select is 'cls', but SigLIP has no class token; select 'patch' or 'full'")
            if self.head and self.family != "siglip":
                raise ConfigError(f"head is for SigLIP's pooling head; {self.family} has none")
            if self.image.fixed:
                self.grid(self.image.size)

        @property
        def spec(self) -> ImageSpec:
            return self.image

        @property
        def dim(self) -> int:
            return self.width * len(self.layers)

        @property
        def layers(self) -> tuple[int, ...]:
            """The feature layers as a tuple."""
            return (self.layer,) if isinstance(self.layer, int) else self.layer

        @property
        def indices(self) -> tuple[int, ...]:
            """The feature layers counted from the front: how many layers run before each."""
            return tuple(i if i >= 0 else self.depth + 1 + i for i in self.layers)

        @property
        def num_run(self) -> int:
            """Layers that run."""
            return max(self.indices)

        @property
        def extra(self) -> int:
            """Class tokens."""
            return 0 if self.family == "siglip" or not self.class_token else 1

        @property
        def table(self) -> int:
            """Side of the square table of positions, in patches."""
            return self.trained_size // self.patch

        def grid(self, size: tuple[int, ...]) -> tuple[int, int]:
            """Rows and columns of whole patches; pixels over are cut, as the strided convolution does."""
            height, width = size
            if min(height, width) < self.patch:
                raise ConfigError(
                    f"a picture of {height} × {width} pixels is smaller than a patch of {self.patch}; "
                    f"each side must be at least {self.patch}"
                )
            return height // self.patch, width // self.patch

        def layout(self, size: tuple[int, ...]) -> Layout:
            rows, cols = self.grid(size)
            match self.select:
                case "patch":
                    return Layout((rows, cols))
                case "full":
                    return Layout((rows, cols), self.extra)
                case "cls":
                    return Layout((1,))
                case "rest" if self.extra:
                    return Layout((rows, cols))
                case "rest":
                    return Layout((rows * cols - 1,))

        def at(
            self,
            *,
            layer: int | tuple[int, ...] | None = None,
            select: Select | None = None,
            size: int | tuple[int, int] | None = None,
            fit: Literal["pad", "crop", "squash", "native"] | None = None,
            norm: bool | None = None,
        ) -> "Vision.Config":
            """The same encoder, used in another way; what is not named stays.

            A `size` other than the trained one resizes the positions, not their table, so published weights load.
            """
            image = self.image
            if size is not None:
                image = replace(image, size=(size, size) if isinstance(size, int) else size)
            if fit is not None:
                image = replace(image, fit=fit)
            return replace(
                self,
                layer=self.layer if layer is None else layer,
                select=self.select if select is None else select,
                norm=self.norm if norm is None else norm,
                image=image,
            )

        def without_class_token(self) -> "Vision.Config":
            """The same encoder with its class token, and that one's position, taken out."""
            return replace(self, class_token=False)

        def starter(self) -> "Vision.Config":
            """The encoder that ships with the package, used as this one is."""
            return self._small(size=64, width=192, depth=5, heads=6, ffn=768, source="starter/vision")

        def tiny(self) -> "Vision.Config":
            """A few thousand random weights, used as this one is."""
            return self._small(size=32, width=32, depth=3, heads=4, ffn=64, source="")

        def _small(self, *, size: int, width: int, depth: int, heads: int, ffn: int, source: str) -> "Vision.Config":
            half = (0.5, 0.5, 0.5)
            image = replace(self.image, size=(size, size), mean=half, std=half, background=(128, 128, 128), multiple=8)
            layers = tuple(_scaled(i, self.depth, depth) for i in self.layers)
            return replace(
                self,
                family="clip",
                width=width,
                depth=depth,
                heads=heads,
                ffn=ffn,
                patch=8,
                trained_size=size,
                act="quick_gelu",
                eps=1e-5,
                image=image,
                layer=layers[0] if isinstance(self.layer, int) else layers,
                keep_unused=False,
                head=False,
                source=source,
                licence="Apache-2.0" if source else "",
            )

        def build(self) -> "Vision":
            return Vision(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        parts = _transformers_parts(config)
        n = config.num_run
        self.patches: nn.Conv2d = parts["patches"]
        self.cls: nn.Parameter | None = parts["cls"]
        # Of the published table: without the class token, the rows of the patches alone.
        rows = config.extra + config.table**2
        self.positions = nn.Parameter(parts["positions"].reshape(-1, config.width)[-rows:].clone())
        self.pre_norm: nn.Module = parts["pre_norm"]
        self.layers: nn.ModuleList = parts["layers"][:n]
        self.norm: nn.Module = parts["norm"] if config.norm else nn.Identity()
        if config.keep_unused:
            self.unused = nn.ModuleDict({"layers": parts["layers"][n:]})
            if not config.norm:
                self.unused["norm"] = parts["norm"]
            if parts["head"] is not None:
                self.unused["head"] = parts["head"]
            parameters_to_buffers(self.unused)

    def layout(self, size: tuple[int, ...]) -> Layout:
        return self.config.layout(size)

    def upper(self, share: float) -> Iterator[nn.Module]:
        """The last layers of those that run, at least one, and the norm after them; halves are rounded down."""
        yield from self.layers[min(ceil(len(self.layers) * (1 - share)), len(self.layers) - 1) :]
        yield self.norm

    def forward(self, values: tuple[Tensor, ...], run: Run | None = None) -> Features:
        """Features of pictures uint8[3, H, W], in their order; pictures of one size run together."""
        return by_size(values, self.config, lambda pictures: self.encode(pictures, run), like=self.positions)

    def encode(self, pictures: Tensor, run: Run | None = None) -> Tensor:
        """uint8[N, 3, H, W], or pixels that are normalised already as float[N, 3, H, W] → float[N, L, D]."""
        hidden = self._embed(pictures if pictures.is_floating_point() else self.normalise(pictures))
        wanted = dict.fromkeys(self.config.indices, hidden)
        for index, layer in enumerate(self.layers):
            hidden = (run or self._layer)(index, layer, hidden)
            if index + 1 in wanted:
                wanted[index + 1] = hidden
        return torch.cat([self._select(self.norm(wanted[i])) for i in self.config.indices], dim=-1)

    def _layer(self, index: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        # DINOv2's layers took no mask before transformers 5.23; CLIP's and SigLIP's have no default for it.
        return layer(hidden, None) if self.config.family in ("clip", "siglip") else layer(hidden)

    def normalise(self, pictures: Tensor) -> Tensor:
        """uint8[N, 3, H, W] → float32 pixels with the mean and deviation of pre-training taken out."""
        return normalised(pictures, self.config.image)

    def _embed(self, pixels: Tensor) -> Tensor:
        grid = self.config.grid(tuple(pixels.shape[-2:]))
        hidden = self.patches(pixels.to(self.patches.weight.dtype)).flatten(2).mT
        if self.cls is not None:
            hidden = torch.cat([self.cls.view(1, 1, -1).expand(len(hidden), 1, -1), hidden], 1)
        positions = resize_positions(self.positions, extra=self.config.extra, side=self.config.table, grid=grid)
        return self.pre_norm(hidden + positions)

    def _select(self, hidden: Tensor) -> Tensor:
        match self.config.select:
            case "patch":
                return hidden[:, self.config.extra :]
            case "cls":
                return hidden[:, :1]
            case "rest":
                return hidden[:, 1:]
            case "full":
                return hidden


def resize_positions(table: Tensor, *, extra: int, side: int, grid: tuple[int, int]) -> Tensor:
    """Positions float[extra + side², D] for another grid of patches: float[extra + rows·cols, D].

    Bicubic, corners not aligned, no anti-aliasing, as `interpolate_pos_encoding` of transformers; ours is always in
    float32 (theirs for CLIP and SigLIP in the weights' type, where bfloat16 moves the embeddings).
    """
    if grid == (side, side):
        return table
    square = table[extra:].view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), grid, mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat([table[:extra], resized.permute(0, 2, 3, 1).flatten(0, 2)])


def _scaled(layer: int, depth: int, new: int) -> int:
    """A feature layer for an encoder of another depth: as far from the end as before, or at the same share of it."""
    index = layer if layer >= 0 else depth + 1 + layer
    if depth - index <= new // 2:
        return index - depth - 1
    return max(0, round(index / depth * new)) - new - 1


def _transformers_parts(config: Vision.Config) -> dict[str, Any]:
    """The modules of the published class, initialised as it does, under our names."""
    depth = config.depth if config.keep_unused else config.num_run
    shape = {
        "hidden_size": config.width,
        "num_hidden_layers": depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.trained_size,
        "hidden_act": config.act,
        "layer_norm_eps": config.eps,
    }
    # Imported here: each costs up to a second, and most runs need one of them.
    if config.family == "dinov2":
        from transformers import Dinov2Config, Dinov2Model

        # The mask token is for pre-training; as a parameter here it would never get a gradient.
        tower: Any = Dinov2Model(Dinov2Config(**shape, mlp_ratio=config.ffn // config.width, use_mask_token=False))
        return {
            "patches": tower.embeddings.patch_embeddings.projection,
            "cls": nn.Parameter(tower.embeddings.cls_token.detach().flatten()),
            "positions": tower.embeddings.position_embeddings.detach(),
            "pre_norm": nn.Identity(),
            "layers": tower.encoder.layer,
            "norm": tower.layernorm,
            "head": None,
        }
    if own := {"eva2": EvaLayer, "vit22b": ParallelLayer}.get(config.family):
        layers = (own(width=config.width, heads=config.heads, ffn=config.ffn, eps=config.eps) for _ in range(depth))
        return {
            "patches": nn.Conv2d(3, config.width, config.patch, config.patch),
            "cls": nn.Parameter(torch.zeros(config.width)) if config.extra else None,
            "positions": torch.randn(1 + config.table**2, config.width) * 0.02,
            "pre_norm": nn.Identity(),
            "layers": nn.ModuleList(layers),
            "norm": nn.Identity() if own is EvaLayer else nn.RMSNorm(config.width, eps=config.eps),
            "head": None,
        }
    shape["intermediate_size"] = config.ffn
    if config.family == "blip2":
        from transformers import Blip2VisionConfig, Blip2VisionModel

        # The published range of 1e-10 is for weights that are loaded; from it nothing would be learnt.
        tower = Blip2VisionModel(Blip2VisionConfig(**shape, initializer_range=0.02))
        return {
            "patches": tower.embeddings.patch_embedding,
            "cls": nn.Parameter(tower.embeddings.class_embedding.detach().flatten()),
            "positions": tower.embeddings.position_embedding.detach(),
            "pre_norm": nn.Identity(),
            "layers": tower.encoder.layers,
            "norm": tower.post_layernorm,
            "head": None,
        }
    if config.family == "clip":
        from transformers import CLIPVisionConfig, CLIPVisionModel

        tower = CLIPVisionModel(CLIPVisionConfig(**shape))
    else:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        tower = SiglipVisionModel(SiglipVisionConfig(**shape, vision_use_head=config.head))
    return {
        "patches": tower.embeddings.patch_embedding,
        "cls": tower.embeddings.class_embedding if config.extra else None,
        "positions": tower.embeddings.position_embedding.weight.detach(),
        "pre_norm": tower.pre_layrnorm if config.family == "clip" else nn.Identity(),
        "layers": tower.encoder.layers,
        "norm": tower.post_layernorm,
        "head": tower.head if config.head else None,
    }
