"""Rows of tokens → batch, by hand: offsets, padding, the one shift, and where media stand. Under 1 s."""

import pytest
import torch

from quintet.data.collate import Loaded, collate
from quintet.values import Item, Layout, Ref, Tokens

PAD = 99


def path(ids: list[int], weight: list[float], *, items: tuple[Item, ...] = ()) -> Tokens:
    n = len(ids)
    zero = torch.zeros(n, dtype=torch.long)
    return Tokens(
        ids=torch.tensor(ids),
        weight=torch.tensor(weight),
        enter=zero,
        exit=zero + 1,
        order=torch.arange(n),
        position=torch.arange(n),
        parent=torch.arange(n) - 1,
        items=items,
    )


def pair() -> Tokens:
    """Root 10 11, then two answers 12 and 13 that both follow 11."""
    return Tokens(
        ids=torch.tensor([10, 11, 12, 13]),
        weight=torch.tensor([0.0, 0.0, 1.0, 2.0]),
        enter=torch.tensor([0, 0, 1, 2]),
        exit=torch.tensor([3, 3, 2, 3]),
        order=torch.arange(4),
        position=torch.tensor([0, 1, 2, 2]),
        parent=torch.tensor([-1, 0, 1, 1]),
        items=(),
    )


def item(start: int, columns: int, name: str = "p") -> Item:
    return Item("image", Ref(name), (8, 8), start, columns)


def test_two_samples_in_a_row_and_one_in_the_next_by_hand() -> None:
    """The tree has nodes 0 to 2, so its neighbour is node 3; the shorter row is padded by a node of its own."""
    batch = collate([[pair(), path([20, 21], [0, 1])], [path([30, 31, 32], [1, 1, 1])]], {}, pad=PAD)
    assert batch.tokens.tolist() == [[10, 11, 12, 13, 20, 21], [30, 31, 32, PAD, PAD, PAD]]
    assert batch.enter.tolist() == [[0, 0, 1, 2, 3, 3], [0, 0, 0, 1, 1, 1]]
    assert batch.exit.tolist() == [[3, 3, 2, 3, 4, 4], [1, 1, 1, 2, 2, 2]]
    assert batch.order.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert batch.lengths == (6, 3)


def test_targets_are_predicted_from_their_parents_column_and_nothing_predicts_a_first_token() -> None:
    """Row 0: 12 and 13 from column 1, 21 from column 4. Row 1 begins at slot 6: 31 from 6, 32 from 7, 30 from none."""
    batch = collate([[pair(), path([20, 21], [0, 1])], [path([30, 31, 32], [1, 1, 0.5])]], {}, pad=PAD)
    t = batch.targets
    assert t.slots.tolist() == [1, 1, 4, 6, 7]
    assert t.ids.tolist() == [12, 13, 21, 31, 32]
    assert t.weights.tolist() == [1, 2, 1, 1, 0.5]
    assert t.count == 5.5


def test_nodes_of_targets_are_numbered_over_the_whole_batch() -> None:
    """Tree: answers are nodes 1 and 2; its neighbour is 3; the second row's sample is 4."""
    batch = collate([[pair(), path([20, 21], [0, 1])], [path([30, 31], [0, 1])]], {}, pad=PAD)
    assert batch.targets.node.tolist() == [1, 2, 3, 4]


def test_media_stand_at_their_flat_columns_and_in_their_node() -> None:
    """Rows are 5 wide. The second sample of row 0 begins at column 2; the picture of row 1 at its column 1, so at 6."""
    first = path([1, 2], [0, 1])
    second = path([0, 0, 5], [0, 0, 1], items=(item(0, 2),))
    third = path([7, 0, 8], [0, 0, 1], items=(item(1, 1),))
    loaded = {0: Loaded(torch.zeros(3, 8, 8)), 1: Loaded(torch.ones(3, 8, 8))}
    media = collate([[first, second], [third]], loaded, pad=PAD).media["image"]
    assert media.slots.tolist() == [2, 3, 6]
    assert media.counts == (2, 1)
    assert media.row.tolist() == [0, 1]
    assert (media.enter.tolist(), media.exit.tolist(), media.order.tolist()) == ([1, 0], [2, 1], [2, 1])
    assert [float(v.sum()) for v in media.values] == [0, 192]
    assert not media.encoded


def test_cached_features_keep_their_layouts() -> None:
    sample = path([0, 0, 5], [0, 0, 1], items=(item(0, 2),))
    media = collate([[sample]], {0: Loaded(torch.ones(2, 4), Layout((1, 2)))}, pad=PAD).media["image"]
    assert media.encoded
    assert media.features().counts == [2]


def test_a_fixed_width_pads_every_row() -> None:
    batch = collate([[path([1, 2], [0, 1])]], {}, pad=PAD, width=4)
    assert batch.tokens.tolist() == [[1, 2, PAD, PAD]]
    with pytest.raises(AssertionError, match="a row of 2 columns in a batch of 1"):
        collate([[path([1, 2], [0, 1])]], {}, pad=PAD, width=1)
