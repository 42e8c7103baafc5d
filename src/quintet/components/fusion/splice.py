"""Features into the columns that the text reserves for them, counted item by item."""

from torch import Tensor

from quintet.errors import AlignmentError
from quintet.values import Features, MediaBatch

__all__ = ["splice"]


def splice(embeds: Tensor, features: Features, media: MediaBatch, kind: str) -> Tensor:
    """`embeds` float[B, T, D] with the features written at their slots.

    Raises:
        AlignmentError: an item's count differs from the columns that the text reserves for it. Equal totals are not
            enough: items with 1 and 3 features in slots for 3 and 1 would each take the other's.
    """
    if features.counts != list(media.counts):
        counts = list(zip(media.counts, features.counts, strict=False))
        wrong = [f"item {i}: {r} columns, {m} features" for i, (r, m) in enumerate(counts) if r != m]
        if len(media.counts) != len(features.counts):
            wrong = [f"{len(media.counts)} items in the text, {len(features.counts)} encoded"]
        raise AlignmentError(f"{kind}: text and features disagree ({'; '.join(wrong[:4])})")
    flat = embeds.flatten(0, 1).index_copy(0, media.slots, features.values.to(embeds.dtype))
    return flat.view_as(embeds)
