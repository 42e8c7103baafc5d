"""ConvNeXt by itself and in place of a recipe's encoder: layouts, OpenCLIP's names at full size, what is refused. 10 s.

Numbers are compared in tests/parity/test_convnext_parity.py.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.components.encoders.convnext import (
    ConvNeXt,
    load_open_clip_folder,
    load_open_clip_state,
    open_clip_name,
)
from quintet.components.encoders.presets import OPENCLIP_CONVNEXT_L
from quintet.components.roles import ImageSpec
from quintet.config.override import override
from quintet.errors import CheckpointError, ConfigError
from quintet.lab.parts import parts
from quintet.lab.recipe import load_recipe
from quintet.recipes._scale import at_scale
from quintet.values import Layout
from systems import begun, count, enlarge

TINY = OPENCLIP_CONVNEXT_L.tiny()


def pictures(*sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes)


def built(config: ConvNeXt.Config = TINY) -> ConvNeXt:
    """With branches that count: the published scale of 1e-6 is for the beginning of a training."""
    encoder = config.build()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("layer_scale_parameter"):
                weight.fill_(0.5)
    return encoder


# ---- sizes -------------------------------------------------------------------------------------------------------
def test_320_pixels_are_ten_by_ten_features() -> None:
    assert (OPENCLIP_CONVNEXT_L.stride, OPENCLIP_CONVNEXT_L.dim) == (32, 1536)
    assert OPENCLIP_CONVNEXT_L.layout(OPENCLIP_CONVNEXT_L.spec.size) == Layout((10, 10))
    assert OPENCLIP_CONVNEXT_L.layout((320, 671)) == Layout((10, 20))


def test_what_is_made_is_what_the_layout_says_and_a_picture_does_not_see_its_neighbours() -> None:
    encoder = built()
    items = pictures((32, 32), (8, 8), (33, 47), (32, 32), (64, 16))
    with torch.no_grad():
        found = encoder(items)
        assert found.layouts == tuple(TINY.layout(tuple(p.shape[1:])) for p in items)
        assert found.layouts[2:3] == (Layout((4, 5)),)
        for item, values in zip(items, found.split(), strict=True):
            torch.testing.assert_close(encoder((item,)).values, values, atol=1e-5, rtol=0)
        assert encoder(()).values.shape == (0, 32)


def test_every_weight_learns_with_the_last_norm_and_without() -> None:
    for config in (TINY, replace(TINY, norm=True)):
        encoder = built(config)
        (encoder(pictures((32, 40))).values * torch.randn(20, 32)).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_its_settings_survive_json_and_its_small_forms_are_used_alike() -> None:
    assert ConvNeXt.Config.from_json(json.loads(json.dumps(OPENCLIP_CONVNEXT_L.to_json()))) == OPENCLIP_CONVNEXT_L
    for small, size in ((TINY, 32), (OPENCLIP_CONVNEXT_L.starter(), 64)):
        assert (small.spec.size, small.spec.fit) == ((size, size), "crop")
        assert small.layout((size, size)) == Layout((size // 8, size // 8))


@pytest.mark.parametrize(
    ("share", "blocks"),
    [(0.01, ["stages.1.layers.1"]), (0.7, ["stages.1.downsampling_layer", "stages.1.layers.0", "stages.1.layers.1"])],
)
def test_the_upper_blocks_bring_what_halves_the_grid_before_them(share: float, blocks: list[str]) -> None:
    encoder = replace(TINY, norm=True).build()
    upper = {id(p) for module in encoder.upper(share) for p in module.parameters()}
    names = {name for name, p in encoder.named_parameters() if id(p) in upper}
    assert names == {name for name, _ in encoder.named_parameters() if name.startswith((*blocks, "norm."))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1,)}, "every stage needs one of each"),
        ({"depths": (1, 0)}, "none may be below 1"),
        ({"image": ImageSpec(size=(32, 7))}, "smaller than the stride of 8"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


# ---- OpenCLIP's file ---------------------------------------------------------------------------------------------
def released() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the picture tower of `convnext_large_d_320`, as timm's and OpenCLIP's code make them."""
    trunk, widths = "visual.trunk", (192, 384, 768, 1536)
    layers: dict[str, tuple[int, ...]] = {f"{trunk}.stem.0": (192, 3, 4, 4), f"{trunk}.stem.1": (192,)}
    for stage, (depth, width) in enumerate(zip((3, 3, 27, 3), widths, strict=True)):
        at = f"{trunk}.stages.{stage}"
        if stage:
            layers |= {f"{at}.downsample.0": (width // 2,), f"{at}.downsample.1": (width, width // 2, 2, 2)}
        for n in range(depth):
            block = f"{at}.blocks.{n}"
            layers |= {f"{block}.conv_dw": (width, 1, 7, 7), f"{block}.norm": (width,)}
            layers |= {f"{block}.mlp.fc1": (4 * width, width), f"{block}.mlp.fc2": (width, 4 * width)}
            yield f"{block}.gamma", (width,)
    layers |= {f"{trunk}.head.norm": (1536,), "visual.head.mlp.fc1": (1536, 1536)}
    for name, shape in layers.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    yield "visual.head.mlp.fc2.weight", (768, 1536)


@pytest.mark.parametrize("norm", [False, True])
def test_the_released_tower_is_ours_to_the_last_name_and_shape(norm: bool) -> None:
    """OpenCLIP's profile has 199.77 M for it: ours, and a head of 1536 · 1536 + 1536 + 1536 · 768."""
    with torch.device("meta"):
        file = {name: torch.empty(shape) for name, shape in released()}
        encoder = replace(OPENCLIP_CONVNEXT_L, norm=norm).build()
        load_open_clip_state(encoder, file | {"transformer.resblocks.0.ln_1.weight": torch.empty(768)})
    assert sum(v.numel() for v in file.values()) == 199_770_816
    assert count(encoder) == 199_770_816 - (1536 * 1536 + 1536 + 1536 * 768) - (0 if norm else 2 * 1536)


def their_state(encoder: ConvNeXt) -> dict[str, Tensor]:
    return {open_clip_name(name): value.clone() for name, value in encoder.state_dict().items()}


def test_missing_unexpected_and_misshapen_weights_are_named_and_nothing_is_copied() -> None:
    target, state = built(), {name: value + 1 for name, value in their_state(built()).items()}
    before = their_state(target)
    gamma = "visual.trunk.stages.1.blocks.1.gamma"
    with pytest.raises(CheckpointError, match=rf"missing {gamma}; unexpected none"):
        load_open_clip_state(target, {n: v for n, v in state.items() if n != gamma})
    with pytest.raises(CheckpointError, match=r"missing none; unexpected visual\.trunk\.stages\.2\.blocks\.0\.gamma"):
        load_open_clip_state(target, state | {"visual.trunk.stages.2.blocks.0.gamma": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=rf"{gamma} is \(7,\) in the file and \(32,\) in the encoder"):
        load_open_clip_state(target, state | {gamma: torch.zeros(7)})
    assert all(torch.equal(before[name], value) for name, value in their_state(target).items())


# ---- in a recipe's place -----------------------------------------------------------------------------------------
RECIPE = """
from dataclasses import replace
from quintet.components.encoders.presets import OPENCLIP_CONVNEXT_L
from quintet.recipes import llava15

def recipe():
    base = llava15.recipe()
    paper = replace(base.paper, published={}, derived={}, tokens={"image": 100})
    return replace(base, model=replace(base.model, encoders={"image": OPENCLIP_CONVNEXT_L}), paper=paper)
"""


def test_it_is_found_as_a_part() -> None:
    assert [part.module for part in parts() if part.name == "ConvNeXt"] == ["quintet.components.encoders.convnext"]


def test_a_recipe_with_it_is_shown_with_the_surveys_figure(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "mine.py"), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert found["parts"]["encoders.image"]["parameters"] == 196_227_264
    assert [c["equal"] for c in found["checks"] if c["stated"] == "197.4 M"] == [True]


def test_a_setting_puts_it_into_a_recipe_and_its_weights_come_from_a_folder(tmp_path: Path) -> None:
    """`--set model.encoders.image=…`: the model reads pictures through OpenCLIP's file."""
    source = built()
    enlarge(source)
    file = their_state(source) | {"visual.head.mlp.fc2.weight": torch.zeros(2, 32), "logit_scale": torch.zeros(1)}
    save_file(file, tmp_path / "open_clip_model.safetensors")
    config = replace(TINY, source=str(tmp_path))
    base = at_scale(load_recipe("llava15")[1], "tiny")
    model, _ = begun(override(base, f"model.encoders.image={json.dumps(config.to_json())}"))
    items = pictures((32, 32), (40, 32))
    with torch.no_grad():
        assert torch.equal(model.encoders["image"](items).values, source(items).values)
        found = model.connectors["image"](model.encoders["image"](items))
    assert found.values.shape == (16 + 20, model.llm.dim)


def test_a_folder_with_pickled_weights_alone_says_which_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        CheckpointError, match=r"is pickled and never opened, convert it to open_clip_model\.safetensors"
    ):
        load_open_clip_folder(TINY.build(), tmp_path)
