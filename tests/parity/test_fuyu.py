"""Fuyu folders of transformers: in, out, and in both directions the same logits. Random weights, float32.

Tolerance 1e-5 on logits of up to 2.4; measured: 0.0 (torch 2.13, one thread, AVX-512). Pictures of three sizes, so
that rows and newlines differ within a row of tokens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import byte_tokenizer
from quintet.errors import CheckpointError, ConfigError
from quintet.lab.recipe import load_recipe
from quintet.model.checkpoint import save_model
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.family import Facts
from quintet.model.parity import Parity, verify
from quintet.recipes._scale import at_scale

TOLERANCE = 1e-5
TOKENIZER = byte_tokenizer("|SPEAKER|", "|NEWLINE|")
IMAGE_TOKEN, NEWLINE = TOKENIZER.id("|SPEAKER|"), TOKENIZER.id("|NEWLINE|")


def published(folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """A random Fuyu of transformers: patches of 8 pixels, an LLM of 2 layers, and its tokenizer."""
    from transformers import FuyuConfig, FuyuForCausalLM

    words: dict[str, Any] = {
        "model_type": "persimmon",
        "vocab_size": TOKENIZER.vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
    }
    words |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(2)
    model: Any = FuyuForCausalLM(FuyuConfig(patch_size=8, image_token_id=IMAGE_TOKEN, text_config=words))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.to(dtype).save_pretrained(folder)
    TOKENIZER.save(folder)


def facts_of(newline: int) -> Facts:
    return Facts(kind="fuyu", image_token_id=1, vocab=128, dtype="float32", source="", newline_token_id=newline)


def check(parity: Parity) -> None:
    assert parity.reference == "FuyuForCausalLM"
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    assert parity.picture_effect > 100 * TOLERANCE, parity


def test_an_imported_model_and_its_export_give_transformers_logits(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    assert facts.newline_token_id == NEWLINE
    check(verify(ours, tmp_path / "theirs", facts))
    export_model(ours, tmp_path / "ours", facts)
    check(verify(ours, tmp_path / "ours", facts))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_newline_that_was_trained_is_exported(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    with torch.no_grad():
        ours.connectors["image"].newline.normal_()  # type: ignore[operator,union-attr]
    with pytest.raises(CheckpointError, match="differ"):
        verify(ours, tmp_path / "theirs", facts)
    export_model(ours, tmp_path / "ours", facts)
    with pytest.raises(CheckpointError, match="differ"):
        # The row of words that are a newline in the text has moved with it, in the export only.
        verify(import_model(tmp_path / "theirs")[0], tmp_path / "ours", facts)
    TOKENIZER.save(tmp_path / "ours")
    check(verify(import_model(tmp_path / "ours")[0], tmp_path / "ours", facts))


def test_a_run_goes_in_and_out(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "run")
    check(export_run(tmp_path / "run", tmp_path / "out").parity)


def test_a_half_precision_folder_keeps_its_rotary_frequencies_whole(tmp_path: Path) -> None:
    published(tmp_path / "theirs", dtype=torch.bfloat16)
    check(import_run(tmp_path / "theirs", tmp_path / "run").parity)
    check(export_run(tmp_path / "run", tmp_path / "out").parity)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    other = at_scale(load_recipe("llava15")[1], "tiny").model.build(vocab=128)
    with pytest.raises(ConfigError, match="FuyuForCausalLM is patches of pixels"):
        export_model(other, tmp_path, facts_of(2))
    ours = at_scale(load_recipe("fuyu")[1], "tiny").model.build(vocab=128)
    export_model(ours, tmp_path / "out", facts_of(80))
    with pytest.raises(CheckpointError, match="token 71019, past the 128 of the vocabulary; put the folder's"):
        import_model(tmp_path / "out")


@pytest.mark.parametrize("speaks", [True, False], ids=["tokenizer", "no tokenizer"])
def test_a_model_made_here_is_exported_with_rows_for_picture_and_newline(speaks: bool, tmp_path: Path) -> None:
    made = byte_tokenizer()
    model = at_scale(load_recipe("fuyu")[1], "tiny").model.build(vocab=made.vocab)
    save_model(model, tmp_path / "run" / "model")
    if speaks:
        made.save(tmp_path / "run" / "model")
    check(export_run(tmp_path / "run", tmp_path / "out").parity)
    table = load_file(tmp_path / "out" / "model.safetensors")["language_model.model.embed_tokens.weight"]
    assert len(table) == made.vocab + 2
    assert torch.equal(table[-1], model.get_parameter("connectors.image.newline"))
    if speaks:
        check(import_run(tmp_path / "out", tmp_path / "again").parity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"language_model.odd": torch.zeros(1)}, r"missing \[\], unexpected \['language_model.odd'\]"),
        (
            lambda s: {n: v for n, v in s.items() if "lm_head" not in n},
            r"missing \['language_model.lm_head.weight'\], unexp",
        ),
        (
            lambda s: s | {"language_model.lm_head.weight": torch.zeros(7, 32)},
            r"language_model.lm_head.weight is \(7, 32\) in the file, \(\d+, 32\) in the model",
        ),
    ],
)
def test_a_weight_is_said_to_be_missing_unexpected_or_misshapen(change: Any, message: str, tmp_path: Path) -> None:
    published(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        import_model(tmp_path)
