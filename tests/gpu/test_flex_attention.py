"""flex_attention's compiled kernel against the dense mask, forward and backward, on a CUDA device."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from quintet.components.llms.attention import Strategy, attend_with, plan
from quintet.components.llms.rope import Rope, tables
from quintet.components.roles import Context

pytestmark = pytest.mark.gpu


def tree(columns: tuple[int, int, int, int]) -> Context:
    """A root, two children, a neighbour; a part of the root looks both ways."""
    root, first, second, neighbour = columns
    spans = [(0, 3, root, 0), (1, 2, first, root), (2, 3, second, root), (3, 4, neighbour, 0)]
    vectors: dict[str, Any] = {
        "enter": torch.tensor([[e for e, _, n, _ in spans for _ in range(n)]]),
        "exit": torch.tensor([[x for _, x, n, _ in spans for _ in range(n)]]),
        "positions": torch.tensor([[p + i for _, _, n, p in spans for i in range(n)]]),
        "order": torch.arange(sum(columns))[None],
    }
    vectors["order"][:, 10 : root // 2] = 10
    ctx = Context(**vectors)
    moved = {f.name: getattr(ctx, f.name).cuda() for f in fields(Context) if f.name in vectors}
    return replace(ctx, **moved)


@pytest.mark.parametrize("columns", [(300, 100, 80, 160), (150, 60, 50, 77)])
@pytest.mark.parametrize("window", [None, 90])
def test_the_block_mask_gives_what_the_dense_mask_gives(columns: tuple[int, int, int, int], window: int | None) -> None:
    """float32; 1e-2 because the kernel multiplies in TF32 by default. A wrong mask is off by far more."""
    torch.manual_seed(0)
    ctx = tree(columns)
    rope = tables(Rope(), ctx.positions, head_dim=64, dtype=torch.float32)
    total = sum(columns)
    q, k, v = (torch.randn(1, h, total, 64, device="cuda", requires_grad=True) for h in (8, 2, 2))
    chosen = plan(ctx, rope=rope, window=window)
    assert chosen.strategy is Strategy.FLEX
    outs = [a(0, q, k, v) for a in (chosen, attend_with(Strategy.DENSE, ctx, rope=rope, window=window))]
    torch.testing.assert_close(*outs, atol=1e-2, rtol=0)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in outs]
    for mine, dense in zip(*grads, strict=True):
        torch.testing.assert_close(mine, dense, atol=5e-2, rtol=1e-2)
