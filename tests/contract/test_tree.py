"""The contract of every recipe: what a sample is computed to does not depend on what stands around it."""

from dataclasses import replace

import pytest
import subjects
import torch
from subjects import (
    Subject,
    branches,
    conversations,
    medium,
    sample,
    says,
    tree,
    user,
)
from torch import Tensor

from quintet.errors import AlignmentError
from quintet.values import Tokens

LOGITS = 2e-5
"""float32; the same sums, in another order and in kernels of other shapes. Logits reach 6.7; worst measured: 5.5e-6."""
GRADIENTS = 2e-5
"""As a share of a parameter's largest gradient. Sums over some 400 columns in another order; worst measured: 1.2e-5."""


tried = subjects.tried


def assert_same_logits(mine: Tensor, alone: Tensor) -> None:
    torch.testing.assert_close(mine, alone, atol=LOGITS, rtol=0)


def assert_same_gradients(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    largest = max(float(g.abs().max()) for g in other.values())
    for name, gradient in other.items():
        # A key's bias moves nothing, so its gradient is rounding noise of a size that has nothing to do with it; a
        # gate's is one sum over all columns and channels, most of which cancels, and so is what reaches the routers of
        # LaVIN's adapters and the tokens that they read (worst measured: 2.1e-7 of the largest).
        gate = gradient.numel() == 1 or ("adapters" in name and ".router." in name) or name == "fusion.tokens"
        share = 1e-1 if gate else 2e-2 if name.endswith("k_proj.bias") else 1e-2
        bound = GRADIENTS * max(float(gradient.abs().max()), share * largest)
        torch.testing.assert_close(mine[name], gradient, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def columns_of(tokens: Tokens, path: Tokens) -> Tensor:
    """Where the columns of `path` stand in the tree that it is a path of, found by walking back from its last token."""
    for last in range(len(tokens)):
        walk = [last]
        while tokens.parent[walk[-1]] >= 0:
            walk.append(int(tokens.parent[walk[-1]]))
        columns = torch.tensor(walk[::-1])
        if len(columns) == len(path) and torch.equal(tokens.ids[columns], path.ids):
            return columns
    raise AssertionError("the path's tokens are not in the tree")


# ---- alone = packed = in a tree = padded = in any order = accumulated ---------------------------------------------
def test_packed_padded_and_in_any_order_a_sample_has_the_logits_it_has_alone(tried: Subject) -> None:
    made = [tried.processor.tokens(s) for s in conversations(tried.kinds)]
    alone = [tried.logits(tried.batch([[t]]))[0] for t in made]
    widest = sum(map(len, made))
    arrangements = [[[0, 1, 2, 3]], [[3, 1], [2, 0]], [[2], [0, 3], [1]], [[1], [2], [3], [0]]]
    for arrangement in arrangements:
        rows = [[made[i] for i in row] for row in arrangement]
        for width in (None, widest + 13):
            found = tried.logits(tried.batch(rows, width=width))
            for r, row in enumerate(arrangement):
                column = 0
                for i in row:
                    assert_same_logits(found[r, column : column + len(made[i])], alone[i])
                    column += len(made[i])


def test_in_a_tree_with_siblings_a_path_has_the_logits_it_has_alone(tried: Subject) -> None:
    whole = tree(tried.kinds)
    tokens, other = tried.processor.tokens(whole), tried.processor.tokens(conversations(tried.kinds)[1])
    paths = [tried.processor.tokens(path) for path in branches(whole)]
    assert len(paths) == 4
    for rows, start in (([[tokens]], 0), ([[other, tokens], [other]], len(other))):
        found = tried.logits(tried.batch(rows))[0, start:]
        for path in paths:
            assert_same_logits(found[columns_of(tokens, path)], tried.logits(tried.batch([[path]]))[0])


def test_packed_padded_in_any_order_and_accumulated_the_gradients_are_equal(tried: Subject) -> None:
    made = [tried.processor.tokens(s) for s in conversations(tried.kinds)]
    one_by_one = tried.gradients([tried.batch([[t]]) for t in made])
    whole = [
        [tried.batch([made])],
        [tried.batch([made[::-1]], width=sum(map(len, made)) + 13)],
        [tried.batch([[t] for t in made])],
        [tried.batch([[made[3]], [made[0]]]), tried.batch([[made[2], made[1]]])],
    ]
    for batches in whole:
        assert_same_gradients(tried.gradients(batches), one_by_one)


def test_a_tree_has_the_gradients_of_its_paths(tried: Subject) -> None:
    """The node that two answers share is learnt once in the tree, so its weight is halved where each has its own."""
    whole = tree(tried.kinds)
    shared = whole.root.children[1]
    halved = replace(shared, turns=(replace(shared.turns[0], weight=0.5), *shared.turns[1:]))
    children = (whole.root.children[0], halved, whole.root.children[2])
    paths = branches(replace(whole, root=replace(whole.root, children=children)))
    in_tree = tried.batch([[tried.processor.tokens(whole)]])
    apart = [tried.batch([[tried.processor.tokens(path)]]) for path in paths]
    assert sum(b.targets.count for b in apart) == in_tree.targets.count
    assert_same_gradients(tried.gradients([in_tree]), tried.gradients(apart))


# ---- what must move nothing, and what must move -------------------------------------------------------------------
def test_another_neighbour_in_the_row_moves_nothing_at_all(tried: Subject) -> None:
    """Exactly: a masked column has the weight exp(−∞) = 0, and nothing else of the row's shape changes."""
    kinds = tried.kinds
    one, mine = (tried.processor.tokens(s) for s in conversations(kinds)[:2])
    other = tried.processor.tokens(
        sample(1, user("What is this?", *[medium(2, kind, content=1) for kind in kinds]), says("A red circle."))
    )
    changed = replace(other, ids=other.ids.clone())
    changed.ids[-4:] = changed.ids[-4:].roll(1)
    for order in ((0, 1), (1, 0)):
        before, after = ([(a, mine)[i] for i in order] for a in (one, changed))
        start = sum(len(t) for t in before[: order.index(1)])
        was, now = (tried.logits(tried.batch([row]))[0] for row in (before, after))
        mine_at = torch.arange(start, start + len(mine))
        assert torch.equal(now[mine_at], was[mine_at])
        assert not torch.allclose(now, was, atol=0.1), "the neighbour itself must have moved"


def test_another_sibling_moves_nothing_of_a_branch_at_all(tried: Subject) -> None:
    """The third answer's tokens change, and in the second the picture: the first path keeps its numbers exactly."""
    was = tree(tried.kinds)
    tokens, same = tried.processor.tokens(was), tried.processor.tokens(branches(was)[0])
    changed = tried.processor.tokens(tree(tried.kinds, content=1))
    third = changed.enter == changed.enter[-1]
    changed = replace(changed, ids=torch.where(third, changed.ids.roll(1), changed.ids))
    before, after = (tried.logits(tried.batch([[t]]))[0] for t in (tokens, changed))
    mine = columns_of(tokens, same)
    assert torch.equal(after[mine], before[mine])
    moved = (after - before).abs().amax(-1)
    assert float(moved[third].max()) > 0.1
    assert float(moved[~third].max()) > 0.1, "the second branch has another picture"


def test_a_picture_acts_from_its_place_on_and_never_before(tried: Subject) -> None:
    """Another second picture: columns before it, and paths without it, are equal to the bit; all behind it move.

    A picture's own columns need not all move: the first may be a learned beginning.
    """
    was, now = tree(tried.kinds), tree(tried.kinds, content=1)
    tokens, changed = tried.processor.tokens(was), tried.processor.tokens(now)
    before, after = (tried.logits(tried.batch([[t]]))[0] for t in (tokens, changed))
    if tried.processor.model.experts:
        # A picture that is told in words is where the words differ.
        told = (tokens.ids != changed.ids).nonzero().flatten()
        start, last = int(told[0]), int(told[-1])
    else:
        assert torch.equal(tokens.ids, changed.ids)
        item = tokens.items[len(tried.kinds)]
        start, last = item.start, item.start + item.columns - 1
    enter, end = int(tokens.enter[start]), int(tokens.exit[start])
    behind = (torch.arange(len(tokens)) >= start) & (tokens.enter >= enter) & (tokens.enter < end)
    assert torch.equal(after[~behind], before[~behind])
    moved = (after - before).abs().amax(-1)
    behind &= torch.arange(len(tokens)) >= last
    behind &= before.any(-1)  # where an encoder–decoder predicts nothing it says nothing
    assert bool((moved[behind] > 1e-3).all()), "a column behind the picture does not see it"
    assert float(moved[behind].max()) > 0.1


# ---- alignment ---------------------------------------------------------------------------------------------------
def test_counts_that_are_wrong_for_each_item_are_refused_though_their_sum_is_right(tried: Subject) -> None:
    batch = tried.batch([[tried.processor.tokens(s) for s in conversations(tried.kinds)]])
    for kind, media in batch.media.items():
        first, second, *rest = media.counts
        shifted = replace(media, counts=(first - 1, second + 1, *rest))
        with pytest.raises(AlignmentError, match=rf"{kind}: .*item 0: {first - 1} columns, {first} features; item 1"):
            tried.model(replace(batch, media={**batch.media, kind: shifted}))
        missing = replace(media, counts=media.counts[:-1])
        with pytest.raises(AlignmentError, match=f"{len(media.counts) - 1} items in the text, {len(media.counts)} enc"):
            tried.model(replace(batch, media={**batch.media, kind: missing}))
