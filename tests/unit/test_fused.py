"""Hand-written backward passes against autograd's own, and against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.components.llms import fused
from quintet.components.llms.fused import log_probs, rms_norm, rotation


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def grads(made: Tensor, *of: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, made.numel()).view(made.shape)
    return list(torch.autograd.grad((made.float() * weights).sum(), of))


def test_the_norm_is_torchs() -> None:
    x = torch.randn(2, 5, 12, requires_grad=True)
    weight = torch.randn(12, requires_grad=True)
    made, known = rms_norm(x, weight, 1e-6), F.rms_norm(x, (12,), weight, 1e-6)
    torch.testing.assert_close(made, known)
    for a, b in zip(grads(made, x, weight), grads(known, x, weight), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_norm_works_in_its_weights_precision() -> None:
    made = rms_norm(torch.randn(3, 8).bfloat16(), torch.ones(8), 1e-6)
    assert made.dtype is torch.float32


@pytest.mark.parametrize("learns", [True, False])
def test_the_norms_gradient_is_its_slope(learns: bool) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=learns)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_is_the_formula(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, 8).to(dtype).requires_grad_()
    angle = torch.randn(2, 1, 5, 4)
    made, known = (f(x, angle.cos(), angle.sin()) for f in (rotation, rotated))
    # bfloat16: autograd rounds the gradient of each half on its own before it adds them.
    bound = 0.0 if dtype is torch.float32 else 2e-2
    assert float((made - known).detach().abs().max()) <= 1e-6
    assert float((grads(made, x)[0].float() - grads(known, x)[0].float()).abs().max()) <= 1e-6 + bound


@pytest.mark.parametrize("block", [1 << 30, 1])
def test_log_probabilities_are_those_of_the_softmax(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", block)
    logits = (torch.randn(7, 11, dtype=torch.float64) * 30).requires_grad_()
    ids = torch.randint(11, (7,))
    made = log_probs(logits, ids)
    known = logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    torch.testing.assert_close(made, known, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads(made, logits), grads(known, logits), atol=1e-5, rtol=1e-5)


def test_bfloat16_logits_keep_a_gradient_of_their_precision() -> None:
    logits = torch.randn(5, 300).bfloat16().requires_grad_()
    ids = torch.arange(5)
    made, known = log_probs(logits, ids), logits.float().log_softmax(-1)[ids, ids]
    assert made.dtype is torch.float32
    torch.testing.assert_close(made, known)
    torch.testing.assert_close(grads(made, logits), grads(known, logits), atol=4e-3, rtol=1e-2)
