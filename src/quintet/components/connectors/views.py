"""Another connector on each view of a divided picture by itself, with nothing between them: InternVL 1.5's tiles.

Chen et al. 2024, arXiv:2404.16821, figure 4: every tile and the thumbnail go through the same pixel shuffle and MLP.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Views"]


class Views(nn.Module):
    """Views in, as many views out; a picture that is not divided is one view."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """The connector of a view."""

        inner: ConnectorConfig

        def __post_init__(self) -> None:
            if self.inner.has_words:
                raise ConfigError(f"{type(self.inner).__qualname__} reads the instruction, which views are not given")

        @property
        def deep(self) -> bool:
            """As the connector of a view."""
            return self.inner.deep

        def layout(self, layout: Layout) -> Layout:
            return Layout.of([self.inner.layout(view) for view in layout.views])

        def starter(self) -> Self:
            return replace(self, inner=self.inner.starter())

        def tiny(self) -> Self:
            return replace(self, inner=self.inner.tiny())

        def build(self, *, d_in: int, d_out: int) -> "Views":
            return Views(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.inner = config.inner.build(d_in=d_in, d_out=d_out)

    def forward(self, features: Features) -> Features:
        return self.inner(features.apart()).together(features.layouts)
