"""An expert for tests: the mean colour of a picture, in so many words for every picture. It has no weights."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from quintet.components.experts.expert import ExpertConfig

__all__ = ["Tint"]


class Tint:
    """Tells how red, green and blue a picture is, each in three digits, 0 to 994."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertConfig):
        """In whose place it stands."""

        kind: Literal["caption", "text", "objects"]

        @property
        def writes(self) -> Literal["caption", "text", "objects"]:
            return self.kind

        def build(self) -> "Tint":
            return Tint()

    def __call__(self, value: Tensor) -> str:
        levels = (value.float().mean((1, 2)) * 3.9).int().tolist()
        # Digits apart: as one number they would be as many tokens as the tokenizer happens to know of it.
        return " ".join(f"{name} {' '.join(f'{level:03}')}" for name, level in zip(_NAMES, levels, strict=True))


_NAMES = ("red", "green", "blue")
