"""Scaling of pictures, for their preparation and for encoders that divide them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized"]


def resized(pixels: Tensor, size: tuple[int, int], mode: Literal["bicubic", "bilinear"]) -> Tensor:
    """uint8[3, H, W] at another size, with anti-aliasing; itself if it has the size already.

    On the CPU by torch's 8-bit kernel; other devices have none and go through float32, at most a level of 255 apart.
    """
    if tuple(pixels.shape[1:]) == size:
        return pixels
    if pixels.device.type == "cpu":
        return F.interpolate(pixels[None], size=size, mode=mode, antialias=True)[0]
    return (
        F.interpolate(pixels[None].float(), size=size, mode=mode, antialias=True)[0]
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
