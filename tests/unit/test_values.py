"""The values by hand: the attention rule, intervals, packed features. Under 1 s."""

from pathlib import Path

import torch

from quintet.components.visible import visible
from quintet.values import (
    Batch,
    Features,
    Layout,
    Media,
    MediaBatch,
    Node,
    Origin,
    Ref,
    Sample,
    Targets,
    Text,
    Tokens,
    Turn,
)


def tokens(enter: list[int], exit: list[int], *, weight: list[float], parent: list[int]) -> Tokens:
    n = len(enter)
    return Tokens(
        ids=torch.arange(n),
        weight=torch.tensor(weight),
        enter=torch.tensor(enter),
        exit=torch.tensor(exit),
        order=torch.arange(n),
        position=torch.arange(n),
        parent=torch.tensor(parent),
        items=(),
    )


def test_who_may_look_at_whom_in_a_tree_with_a_neighbour() -> None:
    """Columns: root r0 r1, child a, child b, then another sample n. Rows are who looks, ones are what is seen.

    r0 sees itself; r1 both of the root; a and b the root and themselves, not each other; n itself alone.
    """
    enter = torch.tensor([[0, 0, 1, 2, 3]])
    exit = torch.tensor([[3, 3, 2, 3, 4]])
    seen = visible(enter, torch.arange(5)[None], key_exit=exit)[0]
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_columns_of_equal_order_see_each_other() -> None:
    """A prefix of two that looks both ways, then one causal column."""
    enter, order = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1, 1, 2]])
    assert visible(enter, order, key_exit=enter + 1)[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_queries_may_look_at_keys_that_were_read_before() -> None:
    """A new column of the second child, with the root and both children as keys."""
    seen = visible(
        torch.tensor([[2]]),
        torch.tensor([[3]]),
        key_enter=torch.tensor([[0, 1, 2]]),
        key_exit=torch.tensor([[3, 2, 3]]),
        key_order=torch.tensor([[0, 1, 2]]),
    )
    assert seen.tolist() == [[[True, False, True]]]


def test_a_node_without_a_token_still_counts_as_a_node() -> None:
    """Else the next sample in the row would take its number, which lies inside the root's interval: a leak."""
    root_alone = tokens([0, 0], [2, 2], weight=[0, 1], parent=[-1, 0])
    assert root_alone.nodes == 2


def test_a_token_that_nothing_predicts_does_not_count() -> None:
    """Weights 1 (no parent), 0.5, 2: the count is 2.5."""
    assert tokens([0, 0, 0], [1, 1, 1], weight=[1.0, 0.5, 2.0], parent=[-1, 0, 1]).count == 2.5


def test_features_go_apart_by_layout_and_come_back_in_their_order() -> None:
    """Items of 1, 2 and 1 features: the first and the last are one group."""
    one, two = Layout((1,)), Layout((1, 2))
    features = Features(torch.arange(8.0).view(4, 2), (one, two, one))
    assert features.counts == [1, 2, 1]
    groups = list(features.groups())
    assert [(layout, indices, values.shape) for layout, indices, values in groups] == [
        (one, [0, 2], (2, 1, 2)),
        (two, [1], (1, 2, 2)),
    ]
    joined = Features.join(groups[::-1])
    assert joined.layouts == features.layouts
    assert torch.equal(joined.values, features.values)


def test_a_class_token_is_extra_to_the_grid() -> None:
    assert Layout((2, 3), extra=1).count == 7


def test_a_reference_reads_a_file_a_slice_of_it_or_the_bytes_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    assert Ref("whole", path=path).read() == b"0123456789"
    assert Ref("member", path=path, offset=2, length=3).read() == b"234"
    assert Ref("inline", data=b"xyz").read() == b"xyz"


def test_turns_and_media_come_in_the_order_of_a_depth_first_walk() -> None:
    def turn(name: str) -> Turn:
        return Turn("user", (Media("image", Ref(name)), Text(name)))

    made = Sample(Node((turn("a"),), (Node((turn("b"),), (Node((turn("c"),)),)), Node((turn("d"),)))), Origin("f", 3))
    assert [m.ref.name for m in made.media()] == ["a", "b", "c", "d"]
    assert str(made.origin) == "f, row 3"


def test_a_batch_moves_whole() -> None:
    """To the meta device, where every tensor must then be; what is no tensor stays."""
    grid = torch.zeros(1, 2, dtype=torch.long)
    one = torch.zeros(1, dtype=torch.long)
    media = MediaBatch((torch.zeros(3, 4, 4),), one, (1,), one, one, one, one)
    batch = Batch(grid, grid, grid + 1, grid, grid, Targets(one, one, one.float(), one), {"image": media}, (2,))
    moved = batch.to("meta")
    tensors = [moved.tokens, moved.enter, moved.exit, moved.order, moved.positions, moved.targets.weights]
    tensors += [moved.media["image"].values[0], moved.media["image"].slots, moved.media["image"].row]
    assert all(t.is_meta for t in tensors)
    assert (moved.lengths, moved.media["image"].counts) == ((2,), (1,))
