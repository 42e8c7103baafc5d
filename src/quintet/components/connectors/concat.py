"""Features that follow each other in raster order as one long feature, then one linear layer.

MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478, section 2.1): four neighbours of EVA's 32 × 32 patches become one token.
The four stand side by side in a row; a square of them, as in VILA's and InternVL's, is `PixelShuffle`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Concat"]


class Concat(nn.Module):
    """Each run of `run` features as one of run · C channels, the first feature's first, then a linear layer."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """How many features become one."""

        run: int = 4

        def __post_init__(self) -> None:
            if self.run < 1:
                raise ConfigError(f"run is {self.run}; it counts features and must be at least 1")

        def layout(self, layout: Layout) -> Layout:
            if layout.extra or layout.more:
                raise ConfigError(
                    f"features are {layout}, and runs would reach from one part into the next; let the encoder select "
                    "patches (select='patch') of whole pictures, or wrap this into `Views`"
                )
            if layout.count % self.run:
                raise ConfigError(
                    f"{layout.count} features do not divide into runs of {self.run}; choose another picture size"
                )
            if layout.grid[-1] % self.run:
                return Layout((layout.count // self.run,))
            return Layout((*layout.grid[:-1], layout.grid[-1] // self.run))

        def build(self, *, d_in: int, d_out: int) -> "Concat":
            return Concat(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(d_in * config.run, d_out)

    def forward(self, features: Features) -> Features:
        # Runs never reach into the next item: every count is a multiple of theirs.
        layouts = tuple(self.config.layout(layout) for layout in features.layouts)
        values: Tensor = features.values.unflatten(0, (-1, self.config.run)).flatten(1)
        return Features(self.project(values), layouts)
