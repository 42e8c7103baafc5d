"""The attention rule of the message tree (`quintet.values`): who may look at whom."""

from torch import Tensor

__all__ = ["visible"]


def visible(
    enter: Tensor, order: Tensor, *, key_enter: Tensor | None = None, key_exit: Tensor, key_order: Tensor | None = None
) -> Tensor:
    """The attention rule as bool[B, T, U]: may token t of the queries look at token u of the keys?

    Queries are `enter`, `order` int64[B, T]; keys are `key_enter`, `key_exit`, `key_order` int64[B, U], which default
    to the queries' own.
    """
    key_enter = enter if key_enter is None else key_enter
    key_order = order if key_order is None else key_order
    inside = (key_enter[:, None, :] <= enter[:, :, None]) & (enter[:, :, None] < key_exit[:, None, :])
    return inside & (key_order[:, None, :] <= order[:, :, None])
