"""What encoders of pictures share: pictures of one size run together, and colours become what was trained on."""

from collections.abc import Callable

import torch
from torch import Tensor

from quintet.components.roles import EncoderConfig, ImageSpec
from quintet.values import Features

__all__ = ["by_size", "normalised"]


def by_size(
    values: tuple[Tensor, ...], config: EncoderConfig, encode: Callable[[Tensor], Tensor], *, like: Tensor
) -> Features:
    """Features of pictures uint8[3, H, W], in their order; `encode` maps those of one size, [N, 3, H, W], to [N, L, D].

    Of no picture there are none, of the type and on the device of `like`.
    """
    sizes: dict[tuple[int, int], list[int]] = {}
    for index, value in enumerate(values):
        sizes.setdefault((value.shape[-2], value.shape[-1]), []).append(index)
    if not sizes:
        return Features(like.new_empty(0, config.dim), ())
    return Features.join(
        [(config.layout(size), items, encode(torch.stack([values[i] for i in items]))) for size, items in sizes.items()]
    )


def normalised(pictures: Tensor, image: ImageSpec) -> Tensor:
    """uint8[…, 3, H, W] → float32 pixels with the mean and deviation of pre-training taken out."""
    # Made here, not kept as buffers: a model built on the meta device and then filled from a file would
    # find its non-persistent buffers uninitialised.
    mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (image.mean, image.std))
    return (pictures.float() / 255 - mean) / std
