"""What stands around a piece of a spelling."""

from dataclasses import dataclass

from quintet.config.base import Config

__all__ = ["Frame"]


@dataclass(frozen=True, kw_only=True)
class Frame(Config):
    """What stands before and after a piece, special tokens allowed."""

    before: str = ""
    after: str = ""

    def around(self, text: str) -> str:
        """The piece with what stands around it."""
        return f"{self.before}{text}{self.after}"
