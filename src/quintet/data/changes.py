"""Pictures made worse on purpose: what a model should not answer as if it had seen the real one.

A change is a short text in `Ref.change`, so it travels with the picture, and equal texts give equal pixels:

    noise STEP SEED          forward diffusion (POVID, BPO)             before the picture is fitted to the encoder
    small SIDE               scaled so that its short side is SIDE      (STIC: 20)
    jitter BRIGHT HUE        brightness times BRIGHT, hue turned by HUE (STIC: up to 0.5 and 0.3)
    crop AREA RATIO X Y      a part of it blown up (mDPO)               after it is fitted

Sources: POVID (Zhou et al. 2024, arXiv:2402.11411), BPO (Pi et al. 2024, arXiv:2403.08730), STIC (Deng et al. 2024,
arXiv:2405.19716), mDPO (Wang et al. 2024, arXiv:2406.11839).
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.errors import DataError, nearest

__all__ = ["LATE", "alpha_bar", "changed"]

STEPS = 1000
LATE = ("crop",)
"""Changes of the tensor that the encoder gets; the others are of the picture as it is read."""


def changed(pixels: Tensor, change: str) -> Tensor:
    """The picture uint8[3, H, W] after a change; of the same size.

    Raises:
        DataError: no such change, or numbers that it cannot take.
    """
    how, *given = change.split() or [""]
    counts = {"noise": 2, "small": 1, "jitter": 2, "crop": 4}
    if how not in counts:
        raise DataError("bad-change", f"no change {how!r} of a picture{nearest(how, counts)}")
    try:
        numbers = [float(each) for each in given]
    except ValueError:
        numbers = []
    if len(numbers) != counts[how] or not all(map(math.isfinite, numbers)):
        raise DataError("bad-change", f"{change!r}: {how} takes {counts[how]} numbers")
    match how:
        case "noise":
            return noisy(pixels, step=int(numbers[0]), seed=int(numbers[1]))
        case "small":
            return _coarse(pixels, max(1, int(numbers[0])))
        case "jitter":
            return _jittered(pixels, *numbers)
        case _:
            return _cropped(pixels, *numbers)


def noisy(pixels: Tensor, *, step: int, seed: int) -> Tensor:
    """√ᾱ · picture + √(1 − ᾱ) · noise in numbers of 0 to 1, step of 0 to 999, cut off at black and white.

    POVID's code lets what is beyond white wrap around to black; that is a fault and not taken over.
    """
    if not 0 <= step < STEPS:
        raise DataError("bad-change", f"noise of step {step}; there are steps 0 to {STEPS - 1}")
    kept = alpha_bar()[step]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    mixed = kept.sqrt() * (pixels.float() / 255) + (1 - kept).sqrt() * noise
    return (mixed.clamp(0, 1) * 255).round().to(torch.uint8)


@cache
def alpha_bar() -> Tensor:
    """How much of the picture is left after each step, float32[1000] (POVID's schedule).

    >>> [round(alpha_bar()[step].item(), 6) for step in (0, 500, 999)]
    [0.999978, 0.744798, 0.081249]
    """
    beta = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    return torch.cumprod(1 - beta, 0).float()


def _coarse(pixels: Tensor, side: int) -> Tensor:
    height, width = pixels.shape[1:]
    scale = min(1.0, side / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    thin = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)
    return F.interpolate(thin, (height, width), mode="bilinear")[0].round().clamp(0, 255).to(torch.uint8)


def _jittered(pixels: Tensor, bright: float, hue: float) -> Tensor:
    """The hue is turned by a share of the whole circle, as a rotation about the grey axis."""
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    same, mixed = (1 - cos) / 3 + cos, (1 - cos) / 3
    low, high = mixed - sin / math.sqrt(3), mixed + sin / math.sqrt(3)
    turn = torch.tensor([[same, low, high], [high, same, low], [low, high, same]])
    made = torch.einsum("ij,jhw->ihw", turn, pixels.float()) * bright
    return made.round().clamp(0, 255).to(torch.uint8)


def _cropped(pixels: Tensor, area: float, ratio: float, x: float, y: float) -> Tensor:
    """The part of `area`, a share, whose width is `ratio` times its height, at (x, y) of the room there is for it."""
    height, width = pixels.shape[1:]
    rows = min(height, max(1, round(math.sqrt(area * height * width / ratio))))
    cols = min(width, max(1, round(math.sqrt(area * height * width * ratio))))
    top, left = round(y * (height - rows)), round(x * (width - cols))
    part = pixels[None, :, top : top + rows, left : left + cols].float()
    return F.interpolate(part, (height, width), mode="bilinear")[0].round().clamp(0, 255).to(torch.uint8)
