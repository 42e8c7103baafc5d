"""The seventh role: an expert tells of a medium in words, and a plain LLM reads them (docs/decisions/0008).

    media ─► Expert ─► words, which stand in the text where the medium stood ─► LLM

What experts are made of is no part of a model, and no gradient reaches it.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from quintet.config.base import Config

__all__ = ["Expert", "ExpertConfig"]


class Expert(Protocol):
    """A medium → what it has to say of it, in words. It reads when the text is made, and no gradient reaches it."""

    def __call__(self, value: Tensor) -> str:
        """The words, "" where there is nothing to say. `value` is uint8[3, H, W] for an image, as large as it came."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(Config):
    """Settings of an expert, whose weights, if any, are loaded when it is built: they are no part of a model."""

    source: str = ""
    """Name of its published weights on the hub, or their folder; empty for none."""

    @property
    def writes(self) -> Literal["caption", "text", "objects"]:
        """What it tells of a picture: what is to be seen, what is written there, or what is where."""
        raise NotImplementedError

    def identity(self) -> str:
        """All that its words depend on besides the medium: they are kept under it."""
        return repr(self)

    def check(self) -> None:
        """Looks, without loading anything, whether what it runs on is there.

        Raises:
            ConfigError: it is not; the message says what to install.
        """

    def build(self) -> Expert:
        """The expert, ready to read.

        Raises:
            ConfigError: what it needs is not on this machine; the message says what to install or to fetch.
        """
        raise NotImplementedError
