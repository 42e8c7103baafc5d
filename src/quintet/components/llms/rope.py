"""Rotary positions: angles that grow with the position, added to queries and keys by rotation.

Frequencies are a function of the config alone and are made when they are needed, never stored as a buffer: a module
built on the meta device and materialised later cannot end up with empty ones. Everything here is float32 whatever the
model's precision, because bfloat16 cannot tell position 4,001 from 4,002.

Source: Su et al. 2021, arXiv:2104.09864; the half-split layout of Llama. Scalings: "linear" (Chen et al. 2023,
arXiv:2306.15595), "yarn" (Peng et al. 2023, arXiv:2309.00071), "llama3" (Llama Team 2024, arXiv:2407.21783).
"dynamic" scaling is left out on purpose: its rotations depend on how long the row is, so a sample's logits would
depend on what it is packed with.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quintet.components.llms.fused import rotation
from quintet.config.base import Config
from quintet.errors import ConfigError

__all__ = ["Rope", "Tables", "frequencies", "rotate", "tables"]


@dataclass(frozen=True, kw_only=True)
class Rope(Config):
    """How positions become angles. Fields past `theta` count only for the scalings that name them."""

    theta: float = 10_000.0
    """Base of the geometric series of wavelengths."""
    scaling: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    """How many times longer the context became (linear, llama3, yarn)."""
    original_positions: int = 0
    """Tokens of context before that (llama3, yarn)."""
    low_freq: float = 1.0
    """Turns per original context under which a frequency is divided by `factor` (llama3)."""
    high_freq: float = 4.0
    """Turns per original context over which a frequency is kept (llama3)."""
    beta_fast: float = 32.0
    """Turns per original context over which a frequency is kept (yarn)."""
    beta_slow: float = 1.0
    """Turns per original context under which a frequency is divided by `factor` (yarn)."""
    truncate: bool = True
    """Whether the bounds of the ramp are rounded outwards to whole dimensions (yarn)."""
    attention_factor: float | None = None
    """Multiplies sines and cosines (yarn); None is the paper's 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        if self.scaling != "default" and self.factor < 1:
            raise ConfigError(f"rope factor is {self.factor}; contexts are only ever stretched, so at least 1")
        if self.scaling in ("llama3", "yarn") and self.original_positions < 1:
            raise ConfigError(f"rope scaling {self.scaling!r} needs original_positions, the context it was trained on")

    @property
    def magnitude(self) -> float:
        """Length of the rotated unit vector."""
        if self.scaling != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True)
class Tables:
    """Cosines and sines of one forward, float[B, 1, T, K / 2], K the width of a head."""

    cos: Tensor
    sin: Tensor


def frequencies(cfg: Rope, *, head_dim: int) -> Tensor:
    """Angle per position, radians, float32[head_dim / 2], on the CPU."""
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    kept = 1.0 / cfg.theta ** (half / head_dim)
    if cfg.scaling == "default":
        return kept
    stretched = kept / cfg.factor
    if cfg.scaling == "linear":
        return stretched
    if cfg.scaling == "llama3":
        turns = cfg.original_positions * kept / (2 * math.pi)
        share = ((turns - cfg.low_freq) / (cfg.high_freq - cfg.low_freq)).clamp(0, 1)
    else:
        low, high = (_dimension_of(cfg, turns, head_dim) for turns in (cfg.beta_fast, cfg.beta_slow))
        if cfg.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low
        share = 1 - (ramp / max(high - low, 0.001)).clamp(0, 1)
    return stretched * (1 - share) + kept * share


def tables(cfg: Rope, positions: Tensor, *, head_dim: int, dtype: torch.dtype) -> Tables:
    """Cosines and sines of `positions` int64[B, T], computed in float32 and rounded to `dtype` once."""
    with torch.autocast(positions.device.type, enabled=False):
        angles = positions[:, None, :, None].float() * frequencies(cfg, head_dim=head_dim).to(positions.device)
        return Tables((angles.cos() * cfg.magnitude).to(dtype), (angles.sin() * cfg.magnitude).to(dtype))


def rotate(x: Tensor, at: Tables) -> Tensor:
    """`x` float[B, H, T, K], its halves turned against each other by the angles of `at`, in the precision of `x`."""
    return rotation(x, at.cos, at.sin)


def _dimension_of(cfg: Rope, turns: float, head_dim: int) -> float:
    """The dimension whose wavelength makes that many turns over the original context."""
    wavelength = cfg.original_positions / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(cfg.theta))
