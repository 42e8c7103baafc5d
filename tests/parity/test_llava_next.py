"""LLaVA-NeXT folders of transformers: in, out, and in both directions the same features and logits. Random weights.

Tolerance 1e-5 on logits of up to 2.8, float32: kernels for other shapes may round differently. Measured: 0.0 (torch
2.13, one thread, AVX-512). `verify` tries pictures of three aspects, so that canvases, padding and newlines all differ
within a row.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from llava_fixtures import shaken
from safetensors.torch import load_file

from quintet.components.encoders.tiles import Tiles
from quintet.errors import CheckpointError, ConfigError
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.parity import verify

TOLERANCE = 1e-5
IMAGE_TOKEN = 120


def published(**top: Any) -> Any:
    """A random LLaVA-NeXT of transformers: tiles of 32 pixels, an LLM of 2 layers."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    words: dict[str, Any] = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(2)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=32, patch_size=8),
        text_config=LlamaConfig(**words, num_attention_heads=4, num_key_value_heads=2),
        image_token_index=IMAGE_TOKEN,
        **{"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]], **top},
    )
    model = LlavaNextForConditionalGeneration(config)
    return shaken(model)


def test_an_imported_model_and_its_export_give_transformers_logits(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    for folder in ("theirs", "ours"):
        if folder == "ours":
            export_model(ours, tmp_path / "ours", facts)
        parity = verify(ours, tmp_path / folder, facts)
        assert parity.reference == "LlavaNextForConditionalGeneration"
        assert parity.max_abs_logit_difference <= TOLERANCE, parity
        assert parity.picture_effect > 100 * TOLERANCE, parity
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (20, 90), (90, 20), (40, 64), (7, 5), (3, 90)])
def test_features_are_those_that_transformers_packs(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = published()
    theirs.save_pretrained(tmp_path)
    ours, _ = import_model(tmp_path)
    encoder = ours.encoders["image"]
    assert isinstance(encoder, Tiles)
    picture = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views: Any = encoder.encoder
    pixels = views.normalise(torch.stack(encoder.divided(picture)))[None]
    with torch.no_grad():
        wanted = theirs.model.get_image_features(pixels, image_sizes=torch.tensor([size])).pooler_output[0]
        found = ours.connectors["image"](encoder((picture,)))
    assert found.layouts == (ours.config.layout("image", size),)
    torch.testing.assert_close(found.values, wanted, atol=TOLERANCE, rtol=0)


def test_a_run_goes_in_and_out(tmp_path: Path) -> None:
    from transformers import LlavaNextImageProcessorPil

    model = published()
    model.save_pretrained(tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "run")
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert made.parity.max_abs_logit_difference <= TOLERANCE
    processor = LlavaNextImageProcessorPil.from_pretrained(tmp_path / "out")
    assert processor.image_grid_pinpoints == model.config.image_grid_pinpoints
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert len(processor(picture, return_tensors="pt")["pixel_values"][0]) == 5


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    published(image_grid_pinpoints=[[40, 64]]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not made of tiles of 32"):
        import_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision"}')
    with pytest.raises(CheckpointError, match="'llava_onevision'; expected one of 'llava', 'llava_next'"):
        import_model(tmp_path)
