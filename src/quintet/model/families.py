"""The published classes that go in and out, by the `model_type` of their `config.json`: a file and a line each."""

from collections.abc import Mapping

from quintet.components.connectors.mlp import Mlp
from quintet.components.connectors.newline import Newline
from quintet.components.connectors.perceiver import Perceiver
from quintet.components.connectors.qformer import QFormer
from quintet.components.connectors.resampler import AttentivePooling
from quintet.components.encoders.pixels import Pixels
from quintet.components.encoders.tiles import Tiles
from quintet.components.encoders.vision import Vision
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf import HFCausal
from quintet.components.llms.magneto import Magneto
from quintet.errors import CheckpointError
from quintet.model import blip2, fuyu, idefics, kosmos2, llava
from quintet.model.family import Family
from quintet.model.mllm import MLLM

__all__ = ["FAMILIES", "family", "nearest_kind"]

FAMILIES: Mapping[str, Family] = {
    "llava": llava,
    "llava_next": llava,
    "fuyu": fuyu,
    "blip-2": blip2,
    "instructblip": blip2,
    "idefics": idefics,
    "kosmos-2": kosmos2,
}

_PARTS: Mapping[str, tuple[type, type, type, type]] = {
    "llava": (Vision.Config, Mlp.Config, TokenFusion.Config, Decoder.Config),
    "llava_next": (Tiles.Config, Newline.Config, TokenFusion.Config, Decoder.Config),
    "fuyu": (Pixels.Config, Newline.Config, TokenFusion.Config, HFCausal.Config),
    "blip-2": (Vision.Config, QFormer.Config, TokenFusion.Config, HFCausal.Config),
    "idefics": (Vision.Config, Perceiver.Config, GatedCrossAttention.Config, Decoder.Config),
    "kosmos-2": (Vision.Config, AttentivePooling.Config, TokenFusion.Config, Magneto.Config),
}
"""Encoder, connector, fusion and LLM of each, by which a model that none can hold is told the nearest."""


def family(kind: object, *, where: object) -> Family:
    """The family of a `model_type`, which was found at `where`.

    Raises:
        CheckpointError: none that goes in or out.
    """
    if kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise CheckpointError(
            f"{where} has model_type {kind!r}; expected one of {known}, as transformers saves these classes (a release "
            "in its authors' own layout is read with --as RECIPE)"
        )
    return FAMILIES[str(kind)]


def nearest_kind(model: MLLM.Config) -> str:
    """The `model_type` of the class that shares most parts with a model; of equal ones that of its connector."""
    parts = (model.encoders.get("image"), model.connectors.get("image"), model.fusion, model.llm)

    def shared(kind: str) -> tuple[int, bool]:
        same = [isinstance(part, wanted) for part, wanted in zip(parts, _PARTS[kind], strict=True)]
        return sum(same), same[1]

    return max(_PARTS, key=shared)
