"""IDEFICS against transformers' `IdeficsForVisionText2Text` with random weights, both ways. About 10 s.

Logits reach 6.2. Both do the same sums in float32, in kernels that may round differently: worst measured 1.2e-05,
and the bound of 5e-5 is far below what a wrong mask, gate or norm moves (0.1 and more, see the last assertions).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quintet.errors import CheckpointError, ConfigError
from quintet.lab.recipe import load_recipe
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.family import Facts
from quintet.model.idefics import load_state, to_config, to_state
from quintet.model.mllm import MLLM
from quintet.model.parity import verify
from quintet.recipes._scale import at_scale
from quintet.values import Batch, MediaBatch, Targets

VOCAB, ADDED, IMAGE = 90, 3, 91
TOLERANCE = 5e-5


def reference(*, gate: str = "float", qk_norm: bool = True, vocab: int = VOCAB) -> Any:
    """A tiny model of the class with open gates and weights large enough for a picture to matter."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    config = IdeficsConfig(
        vocab_size=vocab,
        additional_vocab_size=ADDED,
        hidden_size=32,
        intermediate_size=86,
        num_hidden_layers=4,
        num_attention_heads=4,
        alpha_type=gate,
        qk_layer_norms=qk_norm,
        cross_layer_interval=2,
        use_resampler=True,
        vision_config={
            "embed_dim": 24,
            "image_size": 16,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "qk_layer_norms_perceiver": qk_norm,
        },
    )
    torch.manual_seed(0)
    model = IdeficsForVisionText2Text(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def rows() -> tuple[Tensor, Tensor]:
    """Two rows of ids with two pictures each, int64[2, 9], and the pictures uint8[2, 2, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (2, 9), generator=generator)
    ids[0, [1, 5]] = IMAGE
    ids[1, [3, 4]] = IMAGE
    ids[:, 2] = VOCAB  # another added token
    return ids, torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8, generator=generator)


def theirs(model: Any, ours: MLLM, ids: Tensor, pictures: Tensor) -> Tensor:
    """Their logits; which picture a token may look at as their processor has it: the last one."""
    last = (ids == IMAGE).cumsum(1) - 1
    mask = last[..., None] == torch.arange(2)
    pixels = ours.encoders["image"].normalise(pictures.flatten(0, 1)).unflatten(0, (2, 2))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels, image_attention_mask=mask.long()).logits


def mine(model: MLLM, ids: Tensor, pictures: Tensor) -> Tensor:
    where = (ids == IMAGE).nonzero()
    zero = torch.zeros(4, dtype=torch.int64)
    media = MediaBatch(
        values=tuple(pictures.flatten(0, 1)),
        slots=where[:, 0] * ids.shape[1] + where[:, 1],
        counts=(1,) * 4,
        row=where[:, 0],
        enter=zero,
        exit=zero + 1,
        order=where[:, 1],
    )
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    none = torch.zeros(0, dtype=torch.int64)
    targets = Targets(none, none, none.float(), none)
    enter = torch.zeros_like(ids)
    with model.inference():
        return model.logits(model(Batch(ids, enter, enter + 1, columns, columns, targets, {"image": media})).hidden)


@pytest.mark.parametrize(("gate", "qk_norm"), [("float", True), ("vector", True), ("float", False)])
def test_an_imported_model_and_its_export_give_transformers_logits(tmp_path: Path, gate: str, qk_norm: bool) -> None:
    twin = reference(gate=gate, qk_norm=qk_norm)
    twin.save_pretrained(tmp_path / "theirs")
    model, facts = import_model(tmp_path / "theirs")
    assert (facts.image_token_id, facts.first_added) == (IMAGE, VOCAB)
    ids, pictures = rows()
    found, wanted = mine(model, ids, pictures), theirs(twin, model, ids, pictures)
    assert float(wanted.abs().max()) > 1
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    moved = (mine(model, ids, 255 - pictures) - found).abs().amax(-1)
    assert float(moved[0, 0]) == 0
    assert float(moved.max()) > 0.1
    export_model(model, tmp_path / "ours", facts)
    for folder in ("theirs", "ours"):
        parity = verify(model, tmp_path / folder, facts)
        assert parity.reference == "IdeficsForVisionText2Text"
        assert parity.max_abs_logit_difference <= TOLERANCE, parity
        assert parity.picture_effect > 0.1
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_marker_and_a_gate_that_were_trained_are_exported(tmp_path: Path) -> None:
    twin = reference()
    twin.save_pretrained(tmp_path)
    model, facts = import_model(tmp_path)
    with torch.no_grad():
        model.fusion.marker.add_(1.0)
        model.fusion.blocks[0].attend_gate.add_(1.0)  # type: ignore[index]
    twin.load_state_dict(to_state(model, facts), strict=False)
    ids, pictures = rows()
    torch.testing.assert_close(mine(model, ids, pictures), theirs(twin, model, ids, pictures), atol=TOLERANCE, rtol=0)


def test_a_run_goes_in_and_out(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "run")
    assert export_run(tmp_path / "run", tmp_path / "out").parity.max_abs_logit_difference <= TOLERANCE


@pytest.mark.parametrize("image", [511, 512])
def test_a_model_made_here_is_exported_with_a_row_for_the_picture(image: int, tmp_path: Path) -> None:
    """The token of a picture is the last of the LLM's rows, or one past them."""
    torch.manual_seed(0)
    tiny: Any = at_scale(load_recipe("idefics")[1], "tiny").model
    # The class has no heads of keys apart, and its gated blocks are as the LLM's.
    llm = replace(tiny.llm, kv_heads=4)
    fusion = replace(tiny.fusion, heads=4, head_dim=8, features=32, expand=2.0)
    model = replace(tiny, llm=llm, fusion=fusion).build(vocab=512).eval()
    with torch.no_grad():
        for block in model.fusion.blocks:  # type: ignore[union-attr]
            block.attend_gate.fill_(0.7)  # type: ignore[union-attr]
    facts = Facts(kind="idefics", image_token_id=image, vocab=512, dtype="float32", source="")
    export_model(model, tmp_path, facts)
    parity = verify(model, tmp_path, facts)
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    assert parity.picture_effect > 100 * TOLERANCE


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path)
    model, facts = import_model(tmp_path)
    state = to_state(model, facts)
    gate = "model.gated_cross_attn_layers.0.alpha_dense"
    with pytest.raises(CheckpointError, match=r"missing .*alpha_dense"):
        load_state(model, {n: v for n, v in state.items() if n != gate}, facts)
    with pytest.raises(CheckpointError, match=r"alpha_dense is \(2,\) in the file"):
        load_state(model, state | {gate: torch.zeros(2)}, facts)
    other = at_scale(load_recipe("open_flamingo")[1], "tiny").model.build()
    with pytest.raises(ConfigError, match="IdeficsForVisionText2Text is CLIP's tower"):
        to_config(other, facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_resampler": False}, "use_resampler is False; ours is True"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"additional_vocab_size": 1}, "the id of <image> is 91; added tokens have 90 to 90"),
    ],
)
def test_a_setting_that_is_not_ours_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    twin = reference()
    twin.config.update(change)
    twin.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path)
