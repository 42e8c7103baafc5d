"""Token-level fusion: features take the columns that the text reserves for them, and the LLM reads on.

What most of the field does (LLaVA, BLIP-2, Qwen-VL, InternVL …). It owns no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quintet.components.fusion.splice import splice
from quintet.components.roles import Fusion, FusionConfig
from quintet.values import Batch, Features

__all__ = ["TokenFusion"]


class TokenFusion(Fusion):
    """Writes every item's features at its slots; an item of n features takes n columns."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FusionConfig):
        """Nothing to set."""

        def columns(self, num_features: int) -> int:
            return num_features

        def build(self, *, dim: int, depth: int) -> "TokenFusion":
            return TokenFusion()

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        for kind, found in features.items():
            embeds = splice(embeds, found, batch.media[kind], kind)
        return embeds
