"""RepAdapter with two ways up, mixed by what a token says: x + w₁ · up₁(down(x)) + w₂ · up₂(down(x)).

    w = softmax(router(token) / temperature)

The ways up begin at zero, so what it stands before begins as it was. Without anything bent between down and up both are
linear, which is what lets RepAdapter (Luo et al. 2023, arXiv:2302.08106) be merged into the layer after it; with two
ways, and weights that depend on the input, it is not merged.

Source: the mixture-of-modality adapter of LaVIN (Luo et al. 2023, arXiv:2305.15023, section 3.1) and its code
(`mm_adapter.py`); its dropout of 0.1 inside is left out. Letters: N vectors, M tokens, D width, R width inside.
"""

import torch
from torch import Tensor, nn

from quintet.errors import ConfigError

__all__ = ["WAYS", "RoutedAdapter"]

WAYS = 2


class RoutedAdapter(nn.Module):
    """One adapter. Each way up is a grouped linear layer: a group of outputs sees a group of the R numbers."""

    def __init__(self, dim: int, *, narrow: int, groups: int, temperature: float) -> None:
        super().__init__()
        if dim % groups or narrow % groups:
            raise ConfigError(f"{groups} groups do not divide widths of {dim} and {narrow}; choose a common divisor")
        self.groups, self.temperature = groups, temperature
        self.down_proj = nn.Linear(dim, narrow)
        nn.init.xavier_uniform_(self.down_proj.weight)
        nn.init.zeros_(self.down_proj.bias)
        self.up_weight = nn.Parameter(torch.zeros(WAYS, groups, dim // groups, narrow // groups))
        self.up_bias = nn.Parameter(torch.zeros(WAYS, dim))
        self.router = nn.Linear(dim, WAYS)

    def forward(self, x: Tensor, tokens: Tensor, which: Tensor) -> Tensor:
        """`x` float[N, D], each vector routed by one of `tokens` float[M, D], that of number `which` int64[N]."""
        weights = (self.router(tokens).float() / self.temperature).softmax(-1).to(x.dtype)[which]
        inside = self.down_proj(x).unflatten(-1, (self.groups, -1))
        ways = torch.einsum("ngr,wgdr->nwgd", inside, self.up_weight.to(inside.dtype)).flatten(2) + self.up_bias
        return x + torch.einsum("nwd,nw->nd", ways.to(x.dtype), weights)
