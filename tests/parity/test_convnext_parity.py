"""ConvNeXt against transformers' class, and against the released formula on the released names.

Random weights, float32. Tolerance 2e-6 of the largest feature: a norm written out sums in another order. The worst
measured is 7e-7 against the formula, 0.0 against transformers, whose layers are ours.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.components.encoders.convnext import ConvNeXt, load_open_clip_state
from quintet.components.roles import ImageSpec

TOLERANCE = 2e-6
DEPTHS, WIDTHS = (2, 1, 3), (16, 24, 40)
SPEC = ImageSpec(size=(64, 64), mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.28))
SIZES = ((64, 64), (48, 80), (53, 37))
"""The last is no multiple of the stride of 16."""


def published() -> Any:
    """A random tower of transformers, with norms that are not the identity and branches that count."""
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(3)
    shape = {"num_stages": len(DEPTHS), "depths": [*DEPTHS], "hidden_sizes": [*WIDTHS], "layer_norm_eps": 1e-6}
    model = ConvNextModel(ConvNextConfig(**shape))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


RENAMES = [("encoder.", ""), ("embeddings.patch_embeddings", "stem.0"), ("embeddings.layernorm", "stem.1")]
RENAMES += [("downsampling_layer", "downsample"), ("layers", "blocks"), ("dwconv", "conv_dw"), (".layernorm", ".norm")]
RENAMES += [("pwconv", "mlp.fc"), ("layer_scale_parameter", "gamma")]
"""transformers' names → timm's, one after the other."""


def released(model: Any) -> dict[str, Tensor]:
    """The same weights as OpenCLIP's file names them."""
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        name = f"head.norm.{name.removeprefix('layernorm.')}" if name.startswith("layernorm.") else name
        for theirs, timms in RENAMES:
            name = name.replace(theirs, timms)
        out[f"visual.trunk.{name}"] = value
    return out


def ours(state: dict[str, Tensor], *, norm: bool) -> ConvNeXt:
    encoder = ConvNeXt.Config(depths=DEPTHS, widths=WIDTHS, image=SPEC, norm=norm).build().eval()
    load_open_clip_state(encoder, state)
    return encoder


def picture(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """uint8[3, H, W], and as float[1, 3, H, W] with mean and deviation taken out."""
    torch.manual_seed(5)
    raw = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (SPEC.mean, SPEC.std))
    return raw, ((raw / 255 - mean) / std)[None]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    assert worst <= TOLERANCE, worst


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_equal_transformers(size: tuple[int, int]) -> None:
    model = published()
    raw, pixels = picture(size)
    theirs = model(pixels)
    places = theirs.last_hidden_state[0].flatten(1).T
    plain, normed = (ours(released(model), norm=norm) for norm in (False, True))
    assert_close(plain((raw,)).values, places)
    assert_close(normed((raw,)).values, model.layernorm(places))
    assert_close(normed.norm(plain((raw,)).values.mean(0)), theirs.pooler_output[0])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_are_those_of_the_released_formula(size: tuple[int, int]) -> None:
    state = released(published())
    raw, x = picture(size)

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"visual.trunk.{name}.weight"], state[f"visual.trunk.{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        """Over the channels of every place, float[N, C, h, w]."""
        weight, bias = (w[:, None, None] for w in weights(name))
        x = x - x.mean(1, keepdim=True)
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight + bias

    x = norm("stem.1", F.conv2d(x, *weights("stem.0"), stride=4))
    for stage, depth in enumerate(DEPTHS):
        at = f"stages.{stage}"
        if stage:
            x = F.conv2d(norm(f"{at}.downsample.0", x), *weights(f"{at}.downsample.1"), stride=2)
        for n in range(depth):
            block = f"{at}.blocks.{n}"
            seen = norm(f"{block}.norm", F.conv2d(x, *weights(f"{block}.conv_dw"), padding=3, groups=x.shape[1]))
            wide = F.gelu(F.linear(seen.movedim(1, -1), *weights(f"{block}.mlp.fc1")))
            branch = F.linear(wide, *weights(f"{block}.mlp.fc2")) * state[f"visual.trunk.{block}.gamma"]
            x = x + branch.movedim(-1, 1)
    assert_close(ours(state, norm=False)((raw,)).values, x[0].flatten(1).T)
    assert_close(ours(state, norm=True)((raw,)).values, norm("head.norm", x)[0].flatten(1).T)
