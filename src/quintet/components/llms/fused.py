"""Steps of the decoder with backward passes of their own: fewer walks through memory, less kept for later.

Autograd differentiates a norm, a rotation or a log-probability operation by operation and keeps what stands between
them. On a CPU these walks took half of a step (docs/log.md, "shapes that never repeat"). The formulas are the usual
ones; `tests/unit/test_fused.py` holds them against autograd's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["log_probs", "rms_norm", "rotation"]

BLOCK_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
"""Logits in float32 that `log_probs` works on at once: on a CPU what its cache holds."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm x / √(mean x² + eps) · weight, float[…, D], in the weight's precision.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467. On CUDA it is torch's own, which is one kernel there.
    """
    x = x.to(weight.dtype)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves of `x` float[B, H, T, K] turned against each other, in the precision of `cos`, rounded to that of `x`.

    `cos` and `sin` are float[B, 1, T, K / 2] and learn nothing.
    """
    if torch.compiler.is_compiling():
        first, second = x.to(cos.dtype).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return _Rotation.apply(x, cos, sin)


def log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each row's id, float[N], in nats, from logits float[N, V]; in float32 at least.

    The softmax is taken block by block and is made again backwards, so only the logits themselves are kept.
    """
    return _LogProbs.apply(logits, ids)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,), (x, weight, scale) = grads, ctx.saved_tensors
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (x * scale).mul_(grad).flatten(0, -2).sum(0)
        weighted = grad * weight
        # d/dx of the scale is −scale³ x / D.
        along = (weighted * x).sum(-1, keepdim=True).mul_(scale).mul_(scale).mul_(scale).div_(-x.shape[-1])
        return weighted.mul_(scale).addcmul_(x, along), by_weight, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    wide = x.to(cos.dtype)
    first, second = wide.chunk(2, dim=-1)
    out = torch.empty_like(wide)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).sub_(second * sin, alpha=way)
    torch.mul(second, cos, out=right).add_(first * sin, alpha=way)
    return out.to(x.dtype)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        sums = torch.cat([_wide(block).logsumexp(-1) for block in logits.split(_block(logits))])
        ctx.save_for_backward(logits, ids, sums)
        return logits.gather(1, ids[:, None]).squeeze(1) - sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (logits, ids, sums) = grads, ctx.saved_tensors
        out = torch.empty_like(logits)
        size = _block(logits)
        for block, total, g, i, to in zip(*(t.split(size) for t in (logits, sums, grad, ids, out)), strict=True):
            share = (block - total[:, None]).exp_().mul_(-g[:, None])
            to.copy_(share.scatter_add_(1, i[:, None], g[:, None]))
        return out, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _block(logits: Tensor) -> int:
    return max(1, BLOCK_BYTES.get(logits.device.type, 2**28) // (4 * logits.shape[-1]))
