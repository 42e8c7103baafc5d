"""No LLM: the place of one in a model that only compares pictures with captions (`model/blip2_retrieval.py`)."""

from dataclasses import dataclass
from typing import Any, NoReturn, Self

from torch import Tensor, nn

from quintet.components.roles import Around, Context, LLMConfig, plain
from quintet.errors import ConfigError

__all__ = ["NoLLM"]


class NoLLM(nn.Module):
    """Holds no weights and refuses to read."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LLMConfig):
        """Nothing to set."""

        def tiny(self) -> Self:
            return self

        @property
        def dim(self) -> int:
            return 0

        @property
        def depth(self) -> int:
            return 0

        @property
        def vocab(self) -> int:
            return 0

        def build(self, *, vocab: int | None = None) -> "NoLLM":
            return NoLLM()

    dim = depth = vocab = 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def embed(self, tokens: Tensor) -> Tensor:
        """Raises ConfigError, as everything here."""
        _refuse()

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        _refuse()

    def head(self, hidden: Tensor) -> Tensor:
        _refuse()

    def tables(self) -> tuple[Tensor, ...]:
        _refuse()

    def new_cache(self, rows: int, columns: int) -> Any:
        _refuse()


def _refuse() -> NoReturn:
    raise ConfigError("this model has no LLM: it compares pictures with captions and cannot answer")
