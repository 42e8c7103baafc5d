"""Our vision encoders against transformers' own classes, random weights, float32.

Tolerance 1e-5 on features of standard deviation 3 to 5: kernels for other shapes may round differently. Measured
worst case over all cases below: 0.0, the same numbers to the last bit (torch 2.13, one thread, AVX-512).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.components.encoders.hf_config import from_hf, to_hf
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import load_hf_folder, load_hf_state, save_hf_folder, to_hf_state
from quintet.components.roles import ImageSpec

TOLERANCE = 1e-5
DEPTH = 3
SPEC = ImageSpec(size=(32, 32), mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.28))
FAMILIES = ("clip", "siglip", "dinov2")


def published(family: str) -> nn.Module:
    """A random published tower of 3 layers at 32 pixels, with norms that are not the identity."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
    shape |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(3)
    if family == "clip":
        model: nn.Module = CLIPVisionModel(CLIPVisionConfig(**shape, intermediate_size=64))
    elif family == "siglip":
        model = SiglipVisionModel(SiglipVisionConfig(**shape, intermediate_size=64))
    else:
        model = Dinov2Model(Dinov2Config(**shape, mlp_ratio=2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.eval()


def config_of(model: Any, **changes: Any) -> Vision.Config:
    return replace(from_hf(model.config.to_dict(), image=SPEC), **changes)


def ours_of(model: Any, **changes: Any) -> Vision:
    encoder = config_of(model, **changes).build().eval()
    load_hf_state(encoder, model.state_dict())
    return encoder


def pictures(*sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    return tuple(torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in sizes)


def normalised(picture: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (SPEC.mean, SPEC.std))
    return ((picture / 255 - mean) / std)[None]


def reference(model: Any, picture: Tensor, *, layer: int, select: str, norm: bool) -> Tensor:
    """Features float[L, D] by transformers: its hidden states, its last norm, its position interpolation."""
    options = {} if model.config.model_type == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        hidden = model(normalised(picture), output_hidden_states=True, **options).hidden_states[layer]
        if norm:
            hidden = (model.layernorm if model.config.model_type == "dinov2" else model.post_layernorm)(hidden)
    has_cls = model.config.model_type != "siglip_vision_model"
    return {
        "full": hidden,
        "patch": hidden[:, 1:] if has_cls else hidden,
        "cls": hidden[:, :1],
        "rest": hidden[:, 1:],
    }[select][0]


def difference(model: Any, *, layer: int, select: str, norm: bool, sizes: tuple[tuple[int, int], ...]) -> float:
    encoder = ours_of(model, layer=layer, select=select, norm=norm)
    items = pictures(*sizes)
    with torch.no_grad():
        pieces = encoder(items).split()
    wanted = [reference(model, p, layer=layer, select=select, norm=norm) for p in items]
    assert [p.shape for p in pieces] == [w.shape for w in wanted]
    return max(float((p - w).abs().max()) for p, w in zip(pieces, wanted, strict=True))


SIZES = ((32, 32), (48, 32), (32, 32), (40, 56))
"""The trained one twice, and two others that are not square."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2, -3, -4])
def test_every_hidden_layer_equals_transformers_at_every_size(family: str, layer: int) -> None:
    worst = difference(published(family), layer=layer, select="full", norm=False, sizes=SIZES)
    assert worst <= TOLERANCE, worst


@pytest.mark.parametrize(
    ("family", "select"),
    [(f, s) for f in FAMILIES for s in ("patch", "cls", "full", "rest") if (f, s) != ("siglip", "cls")],
)
@pytest.mark.parametrize("norm", [False, True])
def test_every_selection_with_and_without_the_last_norm_equals_transformers(
    family: str, select: str, norm: bool
) -> None:
    worst = difference(published(family), layer=-1, select=select, norm=norm, sizes=SIZES)
    assert worst <= TOLERANCE, worst


@pytest.mark.parametrize("family", FAMILIES)
def test_several_layers_stand_side_by_side_in_the_order_asked_for(family: str) -> None:
    model = published(family)
    (picture,) = pictures((32, 32))
    encoder = ours_of(model, layer=(-1, 1), select="full")
    with torch.no_grad():
        found = encoder((picture,)).values
    wanted = torch.cat([reference(model, picture, layer=i, select="full", norm=False) for i in (-1, 1)], -1)
    assert encoder.dim == 64
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


def test_dinov2_with_the_last_norm_gives_its_published_output() -> None:
    model: Any = published("dinov2")
    (picture,) = pictures((32, 32))
    with torch.no_grad():
        found = ours_of(model, layer=-1, select="full", norm=True)((picture,)).values
        wanted = model(normalised(picture)).last_hidden_state[0]
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_every_weight_equals_transformers(family: str) -> None:
    """Absolute 1e-4 on gradients of up to 1.8; measured worst case 0.0."""
    model: Any = published(family)
    (picture,) = pictures((48, 32))
    encoder = ours_of(model, layer=-2, select="full")
    encoder((picture,)).values.square().mean().backward()
    options = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    model(normalised(picture), output_hidden_states=True, **options).hidden_states[-2].square().mean().backward()
    # Load the reference's gradients as if they were weights: the name map then pairs them up.
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    twin = config_of(model, layer=-2, select="full").build()
    load_hf_state(twin, grads)
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, f"{name} got no gradient, so it should not be a parameter"
        torch.testing.assert_close(weight.grad, twin.get_parameter(name), atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [True, False])
def test_a_published_folder_is_read_and_written_so_that_transformers_loads_it_whole(
    family: str, keep: bool, tmp_path: Path
) -> None:
    model: Any = published(family)
    model.save_pretrained(tmp_path / "theirs")
    encoder = config_of(model, layer=-2, select="full", keep_unused=keep).build().eval()
    load_hf_folder(encoder, tmp_path / "theirs")
    save_hf_folder(encoder, tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert again.config.num_hidden_layers == (DEPTH if keep else DEPTH - 1)
    (picture,) = pictures((32, 32))
    with torch.no_grad():
        ours = encoder((picture,)).values
    written = reference(again, picture, layer=-2 if keep else -1, select="full", norm=False)
    torch.testing.assert_close(ours, written, atol=TOLERANCE, rtol=0)
    if keep:
        before, after = model.state_dict(), again.state_dict()
        kept = before.keys() - {n for n in before if n.endswith("mask_token")}
        assert kept == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in kept)


RENAMES: dict[str, Callable[[str], str]] = {
    "the hub's": lambda name: f"vision_model.{name}",
    "transformers 5's": lambda name: name,
}


@pytest.mark.parametrize("spelling", RENAMES)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_each_spelling_of_a_file_is_read_and_a_text_tower_beside_it_is_left(family: str, spelling: str) -> None:
    model: Any = published(family)
    rename = RENAMES[spelling]
    state = {rename(name): value for name, value in model.state_dict().items()}
    state |= {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(1)}
    state |= {"vision_model.embeddings.position_ids": torch.arange(17)}
    encoder = config_of(model).build()
    load_hf_state(encoder, state)
    expected = to_hf_state(ours_of(model))
    assert all(torch.equal(value, expected[name]) for name, value in to_hf_state(encoder).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_the_way_to_transformers_and_back(family: str) -> None:
    model: Any = published(family)
    config = config_of(model, keep_unused=True)
    back = from_hf(to_hf(config), image=SPEC)
    assert replace(back, keep_unused=True) == replace(config, source=back.source)
