"""The spatial-aware visual sampler: one feature for a region of any form (Ferret, You et al. 2023, 2310.07704, 3.2).

Points are drawn inside the region and read the encoder's grid between its features; then, twice, fewer points are
chosen far from each other, and each gathers its nearest neighbours: what differs from it, in features and in place,
goes through a linear layer, is joined with the point itself and mixed, and the largest of each channel is kept. The
last points, side by side, become one embedding. So a scribble, a mask and a box are the same to it: a set of points.

Where we differ: points follow a low-discrepancy sequence and the first of them is the first chosen, where the official
code (apple/ml-ferret, ferret_arch.py) draws both at random: a region has one feature, whatever stands beside it. A
point of the user is a small square, as there; a scribble is such squares along its line. Letters: R regions, N points,
K neighbours, C encoder width, D width of the LLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.components.roles import RegionConfig
from quintet.values import Features, Region

__all__ = ["RegionSampler", "points_in"]

_REACH = 5 / 336
"""Half the side of the square that a point stands for, in shares of the picture: 5 px of 336, as in the code."""
_STEPS = (0.7548776662466927, 0.5698402909980532)
"""The plastic number's sequence: a·n mod 1 fills the square evenly for every n (Roberts 2018, "R2")."""
_TRIES = 16


class RegionSampler(nn.Module):
    """Features of pictures and regions in them → one embedding a region."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RegionConfig):
        """Counts of points; the paper's values."""

        points: int = 512
        """Points in a region."""
        chosen: tuple[int, ...] = (128, 32)
        """Points that remain after each step."""
        neighbours: int = 24

        def starter(self) -> Self:
            return replace(self, points=64, chosen=(32, 8), neighbours=8)

        def tiny(self) -> Self:
            return replace(self, points=16, chosen=(8, 4), neighbours=4)

        def build(self, *, d_in: int, d_out: int) -> "RegionSampler":
            return RegionSampler(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.steps = nn.ModuleList(_Gather(d_in) for _ in config.chosen)
        self.flatten = nn.Linear(config.chosen[-1] * d_in, d_in)
        self.project = nn.Linear(d_in, d_out)

    def forward(self, features: Features, regions: Sequence[Region], items: Sequence[int]) -> Tensor:
        """float[R, D] of `regions`, each in the picture of its number in `items`."""
        pieces = features.split()
        points = [points_in(region, self.config.points).to(features.values) for region in regions]
        values = torch.stack(
            [
                _between(pieces[i], features.layouts[i].grid, features.layouts[i].extra, at)
                for i, at in zip(items, points, strict=True)
            ]
        )
        places = torch.stack(points)
        for count, step in zip(self.config.chosen, self.steps, strict=True):
            values, places = step(values, places, count, self.config.neighbours)
        return self.project(self.flatten(values.flatten(1)))


class _Gather(nn.Module):
    """One step: N points to fewer, each with what its neighbours add."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.differ = nn.Linear(dim + 2, dim + 2)
        self.mix = nn.Linear(2 * (dim + 2), dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, values: Tensor, places: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
        """`values` float[R, N, C] at `places` float[R, N, 2] → those of the `count` chosen."""
        chosen = _far_apart(places, count)
        near = _nearest(places, _take(places, chosen), neighbours)
        whole = torch.cat((values, places), dim=-1)
        own, around = _take(whole, chosen)[:, :, None], _take(whole, near.flatten(1)).unflatten(1, near.shape[1:])
        joined = torch.cat((self.differ(around - own), own.expand_as(around)), dim=-1)
        return self.norm(F.relu(self.mix(joined))).amax(dim=2), _take(places, chosen)


def points_in(region: Region, count: int) -> Tensor:
    """`count` points inside a region, float32[N, 2] in shares of width and height; the same at every call.

    What has no inside (an outline that is a line) gives the points of its outline.
    """
    index = torch.arange(1, _TRIES * count + 1, dtype=torch.float64)
    even = torch.stack([index * step % 1.0 for step in _STEPS], dim=1)
    given = torch.tensor(region.points, dtype=torch.float64).view(-1, 2)
    if region.kind == "points":
        points = _along(given, even[:count]) + (2 * even[:count] - 1) * _REACH
    else:
        left, top, right, bottom = region.bounds
        low, high = torch.tensor((left, top)), torch.tensor((right, bottom))
        points = low + even * (high - low)
        if region.kind == "mask":
            inside = points[_inside(points, given)]
            points = inside if len(inside) else _along(given, even[:count])
    repeated = torch.arange(count) % len(points)
    return points[repeated].clamp(0, 1).float()


def _along(corners: Tensor, even: Tensor) -> Tensor:
    """Points along the line through `corners`, as many as `even` has."""
    at = torch.linspace(0, len(corners) - 1, len(even), dtype=torch.float64)
    first = at.floor().long().clamp_max(max(len(corners) - 2, 0))
    last = (first + 1).clamp_max(len(corners) - 1)
    return torch.lerp(corners[first], corners[last], (at - first)[:, None])


def _inside(points: Tensor, corners: Tensor) -> Tensor:
    """bool[N]: whether a ray to the right crosses the outline an odd number of times."""
    x, y = points[:, :1], points[:, 1:]
    x1, y1 = corners.T
    x2, y2 = corners.roll(-1, 0).T
    crosses = (y1 > y) != (y2 > y)
    return (crosses & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)).sum(1) % 2 == 1


def _between(values: Tensor, grid: tuple[int, ...], extra: int, at: Tensor) -> Tensor:
    """Features float[N, C] at places `at` float[N, 2], linear between the middles of the grid's patches."""
    rows, cols = grid
    plane = values[extra:].view(rows, cols, -1).permute(2, 0, 1)[None]
    read = F.grid_sample(plane, (2 * at - 1)[None, None], padding_mode="border", align_corners=False)
    return read[0, :, 0].T


def _far_apart(places: Tensor, count: int) -> Tensor:
    """Indices int64[R, count]: the first point, then always the one farthest from all chosen (Qi et al. 2017)."""
    last = torch.zeros(len(places), dtype=torch.int64, device=places.device)
    chosen, distance = [last], torch.full(places.shape[:2], torch.inf, device=places.device, dtype=places.dtype)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (places - _take(places, last[:, None])).square().sum(-1))
        last = distance.argmax(dim=1)
        chosen.append(last)
    return torch.stack(chosen, dim=1)


def _nearest(places: Tensor, centres: Tensor, count: int) -> Tensor:
    """Indices int64[R, S, count] of the points nearest to each centre."""
    distance = (centres[:, :, None] - places[:, None]).square().sum(-1)
    return distance.topk(count, dim=-1, largest=False).indices


def _take(values: Tensor, index: Tensor) -> Tensor:
    """float[R, S, C] of `values` float[R, N, C] at `index` int64[R, S]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))
