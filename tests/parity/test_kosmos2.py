"""Kosmos-2 folders of transformers: in, out, and in both directions the same logits. Random weights, float32.

Tolerance 2e-5 on logits of up to 7.4: the decoder is ours, in kernels that may round differently. Worst measured: 0.0.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quintet.errors import CheckpointError, ConfigError
from quintet.lab.recipe import load_recipe
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.family import Facts
from quintet.model.parity import Parity, verify
from quintet.recipes._scale import at_scale

TOLERANCE = 2e-5


def published(*, vocab: int = 90, latent_query_num: int = 5, **text: Any) -> Any:
    """A random Kosmos-2: 3 layers of sight, 5 queries, 2 layers of words."""
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    shape = {"vocab_size": vocab, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4} | text
    sight = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = Kosmos2Config(
        text_config=shape, vision_config=sight | {"image_size": 28, "patch_size": 14}, latent_query_num=latent_query_num
    )
    torch.manual_seed(2)
    model: Any = Kosmos2ForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def check(parity: Parity) -> None:
    assert parity.reference == "Kosmos2ForConditionalGeneration"
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    assert parity.picture_effect > 1000 * TOLERANCE, parity


def test_an_imported_model_and_its_export_give_transformers_logits(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    check(verify(ours, tmp_path / "theirs", facts))
    export_model(ours, tmp_path / "ours", facts)
    check(verify(ours, tmp_path / "ours", facts))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_goes_in_and_out(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "theirs")
    check(import_run(tmp_path / "theirs", tmp_path / "run").parity)
    check(export_run(tmp_path / "run", tmp_path / "out").parity)


def test_a_model_made_here_is_exported(tmp_path: Path) -> None:
    model = at_scale(load_recipe("kosmos2")[1], "tiny").model.build().eval()
    facts = Facts(kind="kosmos-2", image_token_id=4, vocab=model.llm.vocab, dtype="float32", source="")
    export_model(model, tmp_path, facts)
    parity = verify(model, tmp_path, facts)
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    assert parity.picture_effect > 100 * TOLERANCE


def test_old_files_carry_the_head_and_tables_that_are_not_needed(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["text_model.lm_head.weight"] = state["text_model.model.embed_tokens.weight"].clone()
    state["text_model.model.embed_positions.weights"] = torch.zeros(3)
    state["vision_model.model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(state, path, metadata={"format": "pt"})
    ours, facts = import_model(tmp_path)
    check(verify(ours, tmp_path, facts))
    save_file(state | {"text_model.extra": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected .*text_model\.extra"):
        import_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_config", {"activation_function": "relu"}, "activation_function is 'relu'; ours is 'gelu'"),
        ("text_config", {"scale_embedding": False}, "scale_embedding is False; ours is True"),
        ("vision_config", {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    ],
)
def test_a_setting_that_is_not_ours_is_refused(part: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config[part] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path)


def test_what_the_class_cannot_express_is_refused(tmp_path: Path) -> None:
    model = at_scale(load_recipe("kosmos1")[1], "tiny").model.build()
    facts = Facts(kind="kosmos-2", image_token_id=4, vocab=model.llm.vocab, dtype="float32", source="")
    with pytest.raises(ConfigError, match="Kosmos2ForConditionalGeneration is CLIP's tower"):
        export_model(model, tmp_path / "out", facts)
    assert not (tmp_path / "out").exists()
