"""One linear layer: the connector of LLaVA (Liu et al. 2023, arXiv:2304.08485, section 4.1)."""

from dataclasses import dataclass

from torch import nn

from quintet.components.roles import ConnectorConfig
from quintet.values import Features, Layout

__all__ = ["Linear"]


class Linear(nn.Module):
    """Every feature alone, through one matrix."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Whether the layer has a bias."""

        bias: bool = True

        def layout(self, layout: Layout) -> Layout:
            return layout

        def build(self, *, d_in: int, d_out: int) -> "Linear":
            return Linear(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(d_in, d_out, bias=config.bias)

    def forward(self, features: Features) -> Features:
        # Pixels without an encoder come in float32, whatever the weights are.
        return Features(self.project(features.values.to(self.project.weight.dtype)), features.layouts)
