"""The attention rule: every strategy gives the numbers of the plain formula, on every kind of row. 4 s."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quintet.components.llms.attention import Strategy, attend_with, choose, path_starts, plan
from quintet.components.llms.flex import BLOCK, block_map
from quintet.components.llms.rope import Rope, Tables, rotate, tables
from quintet.components.roles import Context
from quintet.components.visible import visible

TOLERANCE = 5e-6
"""float32 softmax sums in another order; values are of size 1. Worst measured: 7.2e-7."""


def paths(*rows: list[int]) -> Context:
    """Rows of separate paths of these lengths, laid end to end."""
    return forest(*([(i, i + 1, n, None) for i, n in enumerate(row)] for row in rows))


def forest(*rows: list[tuple[int, int, int, int | None]]) -> Context:
    """Rows of nodes (enter, exit, columns, first position); a None starts at 0. Order is the column."""
    enter = torch.tensor([[e for e, _, n, _ in row for _ in range(n)] for row in rows])
    end = torch.tensor([[x for _, x, n, _ in row for _ in range(n)] for row in rows])
    positions = torch.tensor([[(p or 0) + i for _, _, n, p in row for i in range(n)] for row in rows])
    order = torch.arange(enter.shape[1]).expand_as(enter).clone()
    return Context(enter=enter, exit=end, order=order, positions=positions)


TREE = forest([(0, 3, 6, 0), (1, 2, 4, 6), (2, 3, 5, 6), (3, 4, 3, 0)], [(0, 2, 10, 0), (1, 2, 5, 10), (2, 3, 3, 0)])
"""A root with two children and a neighbour; a root with one child and padding."""


def rope_of(ctx: Context, width: int = 8) -> Tables:
    return tables(Rope(), ctx.positions, head_dim=width, dtype=torch.float32)


def inputs(ctx: Context, *, heads: int = 4, kv_heads: int = 2, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = ctx.enter.shape
    make: Callable[[int], Tensor] = lambda h: torch.randn(rows, columns, h, width).transpose(1, 2).requires_grad_()  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


def by_the_formula(ctx: Context, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
    """softmax(QKᵀ/√K) V over what `visible` allows, written out."""
    rope = rope_of(ctx, q.shape[-1])
    q, k = rotate(q, rope), rotate(k, rope)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    seen = visible(ctx.enter, ctx.order, key_exit=ctx.exit)
    if window is not None:
        seen = seen & (ctx.positions[:, :, None] - ctx.positions[:, None, :] < window)
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~seen[:, None], -torch.inf)
    return scores.softmax(-1) @ v


def assert_equal_with_gradients(ctx: Context, strategy: Strategy, *, window: int | None = None) -> None:
    qkv = inputs(ctx)
    mine = attend_with(strategy, ctx, rope=rope_of(ctx), window=window)(0, *qkv)
    plain = by_the_formula(ctx, *qkv, window=window)
    torch.testing.assert_close(mine, plain, atol=TOLERANCE, rtol=0)
    weight = torch.randn_like(mine)
    for a, b in zip(
        torch.autograd.grad((mine * weight).sum(), qkv), torch.autograd.grad((plain * weight).sum(), qkv), strict=True
    ):
        # Gradients sum over up to 20 queries: measured 1.8e-6.
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_paths_laid_end_to_end_attend_as_documents_and_equal_the_formula(rows: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    width = max(map(sum, rows)) + 1
    ctx = paths(*([*row, width - sum(row)] for row in rows))
    assert choose(ctx) is Strategy.DOCUMENTS
    assert_equal_with_gradients(ctx, Strategy.DOCUMENTS)


def test_rows_of_one_path_need_no_mask_and_equal_the_formula() -> None:
    torch.manual_seed(0)
    ctx = paths([12], [12])
    assert choose(ctx) is Strategy.CAUSAL
    assert_equal_with_gradients(ctx, Strategy.CAUSAL)


def test_a_chain_of_only_children_is_one_path() -> None:
    torch.manual_seed(0)
    ctx = forest([(0, 3, 4, 0), (1, 3, 3, 4), (2, 3, 2, 7), (3, 4, 3, 0)])
    assert path_starts(ctx) is not None
    assert choose(ctx) is Strategy.DOCUMENTS
    assert_equal_with_gradients(ctx, Strategy.DOCUMENTS)


def test_trees_take_masks_of_their_own_on_a_cpu_and_equal_the_formula() -> None:
    torch.manual_seed(0)
    assert choose(TREE) is Strategy.TREES
    assert_equal_with_gradients(TREE, Strategy.TREES)
    assert_equal_with_gradients(TREE, Strategy.DENSE)
    assert_equal_with_gradients(TREE, Strategy.TREES, window=3)


LONG = forest([(0, 3, 300, 0), (1, 2, 40, 300), (2, 3, 50, 300), (3, 6, 260, 0), (4, 5, 70, 260), (5, 6, 60, 260)])
"""Two pairs that fork late."""


def trunks(ctx: Context, *, window: int | None = None) -> list[int]:
    attend = attend_with(Strategy.TREES, ctx, rope=rope_of(ctx), window=window)
    return [kernel.trunk for kernel in attend.kernel.kernels]  # type: ignore[attr-defined]


def test_columns_before_the_first_fork_need_no_mask_and_equal_the_formula() -> None:
    torch.manual_seed(0)
    assert choose(LONG) is Strategy.TREES
    assert trunks(LONG) == [256], "of 300 and 260 columns that are side by side"
    assert_equal_with_gradients(LONG, Strategy.TREES)
    assert trunks(LONG, window=30) == [0], "behind a window even a path needs a mask"
    assert_equal_with_gradients(LONG, Strategy.TREES, window=30)


@pytest.mark.parametrize("begin", [127, 128, 129])
def test_a_span_that_looks_both_ways_ends_the_trunk_before_it(begin: int) -> None:
    torch.manual_seed(0)
    ctx = forest([(0, 3, 150, 0), (1, 2, 20, 150), (2, 3, 30, 150)])
    ctx.order[:, begin : begin + 9] = begin
    assert trunks(ctx) == [begin // 128 * 128]
    assert_equal_with_gradients(ctx, Strategy.TREES)


def test_trees_that_fork_at_once_have_no_trunk() -> None:
    torch.manual_seed(0)
    ctx = forest([(0, 3, 3, 0), (1, 2, 50, 3), (2, 3, 300, 3)])
    assert trunks(ctx) == [0]
    assert_equal_with_gradients(ctx, Strategy.TREES)


@pytest.mark.parametrize(
    ("ctx", "strategy"),
    [(TREE, Strategy.DENSE), (TREE, Strategy.TREES), (paths([12], [12]), Strategy.CAUSAL)],
)
def test_short_rows_in_bfloat16_are_plain_products_and_equal_the_formula(ctx: Context, strategy: Strategy) -> None:
    """Forward and backward; bfloat16 keeps 8 bits, values are of size 1 and gradients of 4: measured 0.012, 0.03."""
    torch.manual_seed(0)
    half = [x.detach().bfloat16().requires_grad_() for x in inputs(ctx)]
    full = [x.detach().float().requires_grad_() for x in half]
    mine, plain = attend_with(strategy, ctx, rope=rope_of(ctx))(0, *half), by_the_formula(ctx, *full)
    torch.testing.assert_close(mine.float(), plain, atol=0.03, rtol=0)
    weight = torch.randn_like(plain)
    mine_grads = torch.autograd.grad((mine * weight).sum(), half)
    for a, b in zip(mine_grads, torch.autograd.grad((plain * weight).sum(), full), strict=True):
        torch.testing.assert_close(a.float(), b, atol=0.1, rtol=0)


def test_a_span_that_looks_both_ways_takes_a_mask() -> None:
    """Columns 2 to 5 have one order: each sees all four."""
    torch.manual_seed(0)
    ctx = paths([8, 4])
    ctx.order[:, 2:6] = 2
    assert choose(ctx) is Strategy.TREES
    assert_equal_with_gradients(ctx, Strategy.TREES)
    assert_equal_with_gradients(ctx, Strategy.DENSE)


def test_a_window_counts_along_the_path_and_matters_only_when_a_path_is_longer() -> None:
    torch.manual_seed(0)
    ctx = paths([9, 9, 2])
    assert choose(ctx, window=9) is Strategy.DOCUMENTS
    assert choose(ctx, window=8) is Strategy.TREES
    assert_equal_with_gradients(ctx, Strategy.TREES, window=4)
    assert_equal_with_gradients(ctx, Strategy.DENSE, window=4)


def test_intervals_that_go_back_are_not_taken_for_paths() -> None:
    """Two runs of one node with another between them: the second run must see the first."""
    ctx = forest([(0, 1, 3, 0), (1, 2, 3, 0), (0, 1, 3, 3)])
    assert choose(ctx) is Strategy.DENSE


def test_a_sibling_and_a_neighbour_move_nothing() -> None:
    """The first child of TREE (columns 6 to 9) with its root changed nowhere, sibling and neighbour changed: equal."""
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in inputs(TREE))
    out = plan(TREE, rope=rope_of(TREE))(0, q, k, v)
    moved = [x.clone() for x in (q, k, v)]
    for x in moved:
        x[0, :, 10:] += 1.0
    again = plan(TREE, rope=rope_of(TREE))(0, *moved)
    assert torch.equal(out[0, :, :10], again[0, :, :10])
    assert not torch.equal(out[0, :, 10:], again[0, :, 10:])


def test_a_column_that_sees_nothing_is_refused() -> None:
    ctx = paths([4])
    ctx.exit[:, 2] = 0
    with pytest.raises(AssertionError, match="its interval is empty"):
        plan(ctx, rope=rope_of(ctx))


@pytest.mark.parametrize("window", [None, 60])
def test_the_block_map_skips_nothing_visible_and_calls_nothing_full_that_is_not(window: int | None) -> None:
    """The map of flex attention against the mask itself, on 400 columns: a tree, a two-way span, a neighbour."""
    ctx = forest([(0, 3, 150, 0), (1, 2, 60, 150), (2, 3, 50, 150), (3, 4, 140, 0)], [(0, 1, 400, 0)])
    ctx.order[:, 10:60] = 10
    full, partial = block_map(ctx, window=window)
    seen = visible(ctx.enter, ctx.order, key_exit=ctx.exit)
    if window is not None:
        seen = seen & (ctx.positions[:, :, None] - ctx.positions[:, None, :] < window)
    assert full.shape == (2, 4, 4)
    for row, i, j in itertools.product(range(2), range(4), range(4)):
        block = seen[row, i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        assert not full[row, i, j] or bool(block.all())
        assert full[row, i, j] or partial[row, i, j] or not bool(block.any())
        assert not (full[row, i, j] and partial[row, i, j])
    assert not full[:, 3].any(), "a block that is not whole is never called full"
    assert not full[:, :, 3].any()
    assert not partial[1, 0, 3], "above the diagonal nothing is computed"
    assert window is not None or bool(full[1, 2, 0]), "below it nothing is masked"


def test_packed_documents_cost_less_than_half_of_the_dense_mask() -> None:
    """Rows of 1,024 columns with 8 documents of 16 to 344: what is multiplied, forward and backward.

    Counted, not timed: with the arithmetic written out (no fused kernel hides its products) the counts are exact,
    2.40 against 4.83 G. The kernel also leaves out what a causal triangle does not see: on one thread 50 ms and 195 ms
    for 4 rows.
    """
    ctx = paths([80, 224, 128, 32, 352, 88, 40, 80], [256, 144, 128, 24, 80, 320, 16, 56])
    rope, qkv = rope_of(ctx, 32), inputs(ctx, heads=6, width=32)

    def cost(strategy: Strategy) -> int:
        attend = attend_with(strategy, ctx, rope=rope)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as products:
            torch.autograd.grad(attend(0, *qkv).sum(), qkv)
        return products.get_total_flops()

    assert 0 < 2 * cost(Strategy.DOCUMENTS) < cost(Strategy.DENSE)


def test_rotation_depends_only_on_the_distance_between_positions() -> None:
    """⟨R(m) q, R(n) k⟩ = ⟨R(m+d) q, R(n+d) k⟩ (RoFormer, equation 16); float32 angles at 1,000: measured 6.5e-5."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 5, 16).unbind()
    at = [tables(Rope(), torch.arange(5)[None] + d, head_dim=16, dtype=torch.float32) for d in (0, 1000)]
    near, far = (rotate(q, t) @ rotate(k, t).transpose(2, 3) for t in at)
    torch.testing.assert_close(near, far, atol=2e-4, rtol=0)
