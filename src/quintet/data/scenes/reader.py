"""What the starter vision encoder sees in a picture of Scenes, in words: an expert that works offline.

The linear readers that it was trained with tell of every patch what is centred there. Neighbours that tell of the same
thing are one (their boxes overlap, the surest stays), and what is left is a `Scene`, which Scenes' own language
describes. On anything but Scenes it talks nonsense.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import load_hf_folder
from quintet.components.experts.expert import ExpertConfig
from quintet.components.experts.published import spelt
from quintet.components.starter import STARTER_VISION, asset
from quintet.data.media import fit_image
from quintet.data.scenes.language import caption
from quintet.data.scenes.vocabulary import COLOURS, SHAPES, SIZES, WORDS
from quintet.data.scenes.world import Backdrop, Box, Digit, Object, Scene, Word

__all__ = ["SceneReader"]

_OVERLAP = 0.3
"""Least intersection over union of two boxes of one thing. Things of Scenes never overlap."""


class SceneReader:
    """One of three experts in one: a captioner, an OCR engine, a detector."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertConfig):
        """Which of the three it is."""

        kind: Literal["caption", "text", "objects"]

        @property
        def writes(self) -> Literal["caption", "text", "objects"]:
            return self.kind

        def identity(self) -> str:
            """The settings and the starter's weights."""
            digest = hashlib.sha256()
            for file in ("vision/model.safetensors", "vision_heads.safetensors"):
                digest.update(asset(file).read_bytes())
            return f"{self!r} {digest.hexdigest()}"

        def build(self) -> "SceneReader":
            return SceneReader(self)

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, value: Tensor) -> str:
        scene = _seen(value.contiguous().numpy().tobytes(), tuple(value.shape))
        if self.config.kind == "caption":
            return caption(scene, random.Random(0), "long")
        if self.config.kind == "objects":
            return spelt([(each.full_name, list(each.box)) for each in scene.objects])
        return " ".join([str(d.value) for d in (scene.digit,) if d] + [w.text for w in (scene.word,) if w])


@lru_cache(maxsize=4)
def _seen(data: bytes, shape: tuple[int, ...]) -> Scene:
    """`look`, once for the three experts that are asked one after the other."""
    return look(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape))


@torch.no_grad()
def look(value: Tensor) -> Scene:
    """The scene that the starter encoder sees in uint8[3, H, W]; its backdrop is not looked at."""
    encoder, tensors = _starter()
    spec = STARTER_VISION.spec
    patches = encoder((fit_image(value, spec),)).values.float()
    x = F.layer_norm(patches, patches.shape[-1:], tensors["norm.weight"], tensors["norm.bias"])
    read = {
        name: F.linear(x, tensors[f"heads.{name}.weight"], tensors[f"heads.{name}.bias"])
        for name in ("kind", "colour", "shape", "size", "digit", "word")
    }
    boxes = F.linear(x, tensors["box.weight"], tensors["box.bias"]).clamp(0, 1).tolist()
    sure, kinds = read["kind"].softmax(-1).max(-1)
    best = {name: scores.argmax(-1).tolist() for name, scores in read.items()}
    objects: list[Object] = []
    digits: list[Digit] = []
    words: list[Word] = []
    for at in _apart([i for i in sure.argsort(descending=True).tolist() if kinds[i]], boxes):
        box = _box(boxes[at], *value.shape[1:])
        match int(kinds[at]):
            case 1:
                named = (SHAPES[best["shape"][at]], COLOURS[best["colour"][at]], SIZES[best["size"][at]])
                objects.append(Object(*named, box))
            case 2:
                digits.append(Digit(best["digit"][at], 0, box))
            case _:
                words.append(Word(WORDS[best["word"][at]], True, box))
    ground = Backdrop(0.0, (0.0, 0.0), 0.0, 0)
    return Scene(int(value.shape[-1]), tuple(objects), next(iter(digits), None), next(iter(words), None), ground)


@cache
def _starter() -> tuple[Vision, dict[str, Tensor]]:
    """The encoder that ships with the package, and its linear readers."""
    encoder = STARTER_VISION.build()
    load_hf_folder(encoder, asset("vision"))
    return encoder.eval(), load_file(asset("vision_heads.safetensors"))


def _apart(patches: list[int], boxes: list[list[float]]) -> list[int]:
    """Of patches, the surest first, those whose box is not one that was taken already."""
    kept: list[int] = []
    for at in patches:
        if all(_shared(boxes[at], boxes[other]) < _OVERLAP for other in kept):
            kept.append(at)
    return kept


def _shared(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    sides = [max(0.0, min(one[k + 2], other[k + 2]) - max(one[k], other[k])) for k in (0, 1)]
    both = sides[0] * sides[1]
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - both
    return both / union if union > 0 else 0.0


def _box(box: list[float], height: int, width: int) -> Box:
    """From shares of the square that the encoder sees to shares of the picture."""
    side = max(height, width)
    left, top = (side - width) / 2, (side - height) / 2
    x1, y1, x2, y2 = (
        min(1.0, max(0.0, (share * side - edge) / size))
        for share, edge, size in zip(box, (left, top) * 2, (width, height) * 2, strict=True)
    )
    return x1, y1, x2, y2
