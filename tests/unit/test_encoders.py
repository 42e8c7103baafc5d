"""Vision encoders by themselves: layouts without weights, grouping, published sizes, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quintet.components.encoders import presets
from quintet.components.encoders.hf_config import from_hf, image_spec, to_hf, to_image_processor
from quintet.components.encoders.presets import CLIP_L, CLIP_L_336, DINOV2_B, SIGLIP_SO400M_384
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import load_hf_folder, load_hf_state, save_hf_folder, to_hf_state
from quintet.components.roles import ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.values import Layout

TINY = CLIP_L.tiny()
_ALL = {name: getattr(presets, name) for name in presets.__all__}
PRESETS = {name: config for name, config in _ALL.items() if isinstance(config, Vision.Config)}
"""The transformers; the one of convolutions is in tests/unit/test_convnext.py."""


def pictures(*sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes)


def totals(config: Vision.Config) -> tuple[int, int]:
    """Weights that train, and all of the published tower, counted without memory."""
    with torch.device("meta"):
        used = config.build()
        whole = replace(config, keep_unused=True, head=config.family == "siglip").build()
    return sum(p.numel() for p in used.parameters()), sum(t.numel() for t in whole.state_dict().values())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("CLIP_B_32", 87_456_000),
        ("CLIP_L", 303_179_776),
        ("CLIP_L_336", 303_507_456),
        ("SIGLIP_B_224", 92_884_224),
        ("SIGLIP_SO400M_384", 428_225_600),
        # Of DINOv2's 86,580,480 and 304,368,640 all but one vector, the mask token of its pre-training.
        ("DINOV2_B", 86_580_480 - 768),
        ("DINOV2_L", 304_368_640 - 1024),
    ],
)
def test_a_preset_has_the_published_number_of_weights(name: str, published: int) -> None:
    assert totals(PRESETS[name])[1] == published


def test_layers_after_the_feature_layer_are_no_parameters() -> None:
    """One of CLIP-L's 24 layers, 12,596,224 weights, and the last norm's 2,048 stand after hidden state -2."""
    used, whole = totals(CLIP_L)
    assert whole - used == 12_596_224 + 2_048
    kept = replace(TINY, keep_unused=True).build()
    assert {n.split(".")[0] for n, _ in kept.named_buffers()} == {"unused"}
    assert not any(n.startswith("unused") for n, _ in kept.named_parameters())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_has_its_two_small_scales_and_survives_json(name: str) -> None:
    config = PRESETS[name]
    assert Vision.Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    for small, size in ((config.tiny(), 32), (config.starter(), 64)):
        assert small.spec.size == (size, size)
        assert (small.select, small.norm, small.layer) == (config.select, config.norm, config.layer)
        with torch.no_grad():
            features = small.build()(pictures((size, size)))
        assert features.layouts == (small.layout((size, size)),) == (Layout((size // 8, size // 8)),)
        assert features.values.shape[-1] == small.dim


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (CLIP_L, Layout((16, 16))),
        (CLIP_L_336, Layout((24, 24))),
        (CLIP_L_336.at(select="full"), Layout((24, 24), extra=1)),
        (CLIP_L_336.at(select="cls"), Layout((1,))),
        (CLIP_L_336.at(size=448), Layout((32, 32))),
        (SIGLIP_SO400M_384, Layout((27, 27))),
        (SIGLIP_SO400M_384.at(select="full"), Layout((27, 27))),
        (SIGLIP_SO400M_384.at(select="rest"), Layout((728,))),
        (DINOV2_B, Layout((16, 16))),
    ],
)
def test_a_layout_is_arithmetic(config: Vision.Config, layout: Layout) -> None:
    assert config.layout(config.spec.size) == layout


@pytest.mark.parametrize("select", ["patch", "cls", "full", "rest"])
def test_what_is_made_is_what_the_layout_says_for_every_size_in_a_batch(select: Any) -> None:
    config = TINY.at(select=select)
    sizes = ((32, 32), (8, 8), (33, 47), (32, 32), (64, 16))
    with torch.no_grad():
        features = config.build()(pictures(*sizes))
    assert features.layouts == tuple(config.layout(s) for s in sizes)
    assert len(features.values) == sum(features.counts)


def test_a_picture_alone_gives_what_it_gives_among_others() -> None:
    """Absolute 1e-5: batched kernels may round differently; measured 0.0 on one thread."""
    encoder = TINY.build()
    items = pictures((32, 32), (16, 40), (32, 32), (24, 24), (16, 40))
    with torch.no_grad():
        together = encoder(items).split()
        for item, found in zip(items, together, strict=True):
            torch.testing.assert_close(encoder((item,)).values, found, atol=1e-5, rtol=0)


def test_no_pictures_give_no_features() -> None:
    features = TINY.build()(())
    assert features.layouts == ()
    assert features.values.shape == (0, TINY.dim)


def test_a_model_built_on_meta_and_then_filled_equals_the_original() -> None:
    source = TINY.build()
    with torch.device("meta"):
        target = TINY.build()
    target.to_empty(device="cpu").load_state_dict(source.state_dict())
    (picture,) = pictures((32, 40))
    with torch.no_grad():
        assert torch.equal(source((picture,)).values, target((picture,)).values)


def test_normalisation_uses_the_configs_mean_and_deviation() -> None:
    """White, 255, with mean 0.5 and deviation 0.25 is (1 - 0.5) / 0.25 = 2."""
    config = replace(TINY, image=replace(TINY.image, mean=(0.5,) * 3, std=(0.25,) * 3))
    encoder = config.build()
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder.encode(white), encoder.encode(torch.full((1, 3, 32, 32), 2.0)))


def test_a_starter_keeps_the_place_of_the_feature_layer() -> None:
    assert CLIP_L.at(layer=23).starter().layer == -2
    assert CLIP_L.at(layer=(-2, -1)).starter().layer == (-2, -1)
    assert CLIP_L.at(layer=12).tiny().layer == -2  # half way up 24 layers is half way up 3
    assert CLIP_L.at(layer=0).tiny().layer == -4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 4}, "hidden states 0 to 3"),
        ({"layer": -5}, "-1 to -4 from the end"),
        ({"layer": ()}, "layer is"),
        ({"heads": 5}, "width 32 does not divide into 5 heads"),
        ({"family": "siglip", "select": "cls"}, "no class token"),
        ({"head": True}, "pooling head"),
        ({"image": ImageSpec(size=(32, 4))}, "smaller than a patch of 8"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


# ---- folders -----------------------------------------------------------------------------------------------------
def saved(folder: Path, config: Vision.Config = TINY) -> Vision:
    encoder = config.build()
    save_hf_folder(encoder, folder)
    return encoder


def test_a_folder_that_ends_at_the_feature_layer_loads_and_one_of_another_depth_does_not(tmp_path: Path) -> None:
    encoder = saved(tmp_path)
    other = TINY.build()
    load_hf_folder(other, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), other.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="depth is 2, expected 5"):
        load_hf_folder(replace(TINY, depth=5, layer=1).build(), tmp_path)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"heads": 8}, "heads is 4, expected 8"),
        ({"act": "gelu_pytorch_tanh"}, "act is"),
        ({"eps": 1e-6}, "eps is 1e-05"),
    ],
)
def test_another_encoders_folder_is_refused_though_its_shapes_fit(
    change: dict[str, Any], fact: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=fact):
        load_hf_folder(replace(TINY, **change).build(), tmp_path)


def test_missing_unexpected_and_misshapen_weights_are_named_and_nothing_is_copied() -> None:
    source, target = TINY.build(), TINY.build()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = to_hf_state(source)
    lost = {n: v for n, v in state.items() if n != "encoder.layers.1.mlp.fc2.bias"}
    with pytest.raises(CheckpointError, match=r"missing encoder\.layers\.1\.mlp\.fc2\.bias; unexpected none"):
        load_hf_state(target, lost)
    with pytest.raises(CheckpointError, match=r"unexpected encoder\.layers\.7\.mlp\.fc2\.bias, surprise"):
        load_hf_state(target, state | {"surprise": torch.zeros(1), "encoder.layers.7.mlp.fc2.bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"position_embedding\.weight is \(10, 32\) in the file and \(17, 32\)"):
        load_hf_state(target, state | {"embeddings.position_embedding.weight": torch.zeros(10, 32)})
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_a_folder_without_config_or_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_hf_folder(TINY.build(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(TINY)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is pickled and never opened"):
        load_hf_folder(TINY.build(), tmp_path)


def test_a_file_in_half_precision_fills_an_encoder_in_single(tmp_path: Path) -> None:
    source = TINY.build()
    save_hf_folder(source, tmp_path)
    save_file({n: v.bfloat16().contiguous() for n, v in to_hf_state(source).items()}, tmp_path / "model.safetensors")
    target = TINY.build()
    load_hf_folder(target, tmp_path)
    assert target.positions.dtype == torch.float32
    assert torch.equal(target.positions, source.positions.bfloat16().float())


# ---- picture preparation -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_picture_preparation_survives_the_way_to_transformers_and_back(fit: Any) -> None:
    mean = (0.48145466, 0.4578275, 0.40821073)
    spec = ImageSpec(size=(336, 336), fit=fit, mean=mean, std=(0.27, 0.26, 0.28), background=(122, 116, 104))
    assert image_spec(to_image_processor(spec), size=336) == spec


def test_pictures_of_any_size_have_no_processor_for_llava() -> None:
    with pytest.raises(ConfigError, match="native"):
        to_image_processor(ImageSpec(size=(64, 64), fit="native"))


@pytest.mark.parametrize(
    ("processor", "preset"),
    [
        # The folder of openai/clip-vit-large-patch14-336, in the spelling of 2022.
        (
            {
                "crop_size": 336,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": 336,
            },
            CLIP_L_336,
        ),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 336, "width": 336}}, CLIP_L_336),
        (
            {
                "image_processor_type": "SiglipImageProcessor",
                "image_mean": [0.5, 0.5, 0.5],
                "size": {"height": 384, "width": 384},
            },
            replace(SIGLIP_SO400M_384, image=replace(SIGLIP_SO400M_384.image, background=(127, 127, 127))),
        ),
    ],
)
def test_published_picture_preparations_are_those_of_the_presets(
    processor: dict[str, Any], preset: Vision.Config
) -> None:
    assert image_spec(processor, size=preset.trained_size) == preset.spec


@pytest.mark.parametrize(
    ("processor", "message"), [({"do_normalize": False}, "do_normalize is off"), ({"resample": 0}, "resample is 0")]
)
def test_a_picture_preparation_that_is_none_of_ours_is_refused(processor: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_spec(processor, size=32)


def test_a_pair_of_towers_gives_its_vision_tower() -> None:
    pair = {"model_type": "clip", "text_config": {"hidden_size": 512}, "vision_config": {"patch_size": 16}}
    config = from_hf(pair)
    assert (config.family, config.width, config.depth, config.patch, config.act) == ("clip", 768, 12, 16, "quick_gelu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip_vision_modle"}, "did you mean 'clip_vision_model'"),
        ({"model_type": "clip_vision_model", "num_channels": 1}, "num_channels is 1"),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, "SwiGLU"),
        ({"model_type": "dinov2", "image_size": [224, 448]}, "must be square"),
        ({"model_type": "siglip_vision_model", "hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_a_published_encoder_that_is_none_of_ours_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(config)
