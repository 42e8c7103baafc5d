"""BLIP-2 and InstructBLIP folders of transformers: in, out, and in both directions the same logits. Random, float32.

Tolerance 2e-5 on logits of up to 6: the Q-Former and the Llama are ours, in kernels that may round differently. Worst
measured: 0.0 (torch 2.13, one thread, AVX-512). Other pictures change the logits by 4.9 and more.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import byte_tokenizer
from quintet.components.connectors.qformer import QFormer
from quintet.components.llms.magneto import Magneto
from quintet.errors import CheckpointError, ConfigError, DataError
from quintet.lab.recipe import load_recipe
from quintet.model.checkpoint import save_model
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.family import Row
from quintet.model.parity import Parity, verify
from quintet.recipes._scale import at_scale

TOLERANCE = 2e-5
TOKENIZER = byte_tokenizer("<image>")
IMAGE_TOKEN, VOCAB = TOKENIZER.id("<image>"), TOKENIZER.vocab
KINDS = [("blip-2", "opt"), ("blip-2", "t5"), ("instructblip", "llama"), ("instructblip", "t5")]


def published(kind: str = "blip-2", text: str = "opt", *, image_token: int = IMAGE_TOKEN, **words: Any) -> Any:
    """A random model of the class: 3 layers of sight, 4 of queries, 2 of words."""
    from transformers import (
        AutoConfig,
        Blip2Config,
        Blip2ForConditionalGeneration,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
    )

    sizes: dict[str, dict[str, Any]] = {
        "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "word_embed_proj_dim": 32},
        "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "tie_word_embeddings": False},
        "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 4},
    }
    llm = sizes[text] | ({} if text == "t5" else {"num_attention_heads": 4}) | {"vocab_size": VOCAB} | words
    if text == "t5":
        llm |= {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    vision = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    asks = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    made: Any = Blip2Config if kind == "blip-2" else InstructBlipConfig
    config = made(
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        qformer_config=asks | {"vocab_size": 300, "max_position_embeddings": 128},
        text_config=AutoConfig.for_model(text, **llm),
        num_query_tokens=5,
        image_token_index=image_token,
    )
    torch.manual_seed(2)
    model: Any = (Blip2ForConditionalGeneration if kind == "blip-2" else InstructBlipForConditionalGeneration)(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def check(parity: Parity) -> None:
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    assert parity.picture_effect > 1000 * TOLERANCE, parity


@pytest.mark.parametrize(("kind", "text"), KINDS)
def test_an_imported_model_and_its_export_give_transformers_logits(kind: str, text: str, tmp_path: Path) -> None:
    published(kind, text).save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    assert (facts.kind, facts.image_token_id) == (kind, IMAGE_TOKEN)
    check(verify(ours, tmp_path / "theirs", facts))
    export_model(ours, tmp_path / "ours", facts)
    check(verify(ours, tmp_path / "ours", facts))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("kind", "text"), KINDS)
def test_a_run_goes_in_and_out(kind: str, text: str, tmp_path: Path) -> None:
    published(kind, text).save_pretrained(tmp_path / "theirs")
    check(import_run(tmp_path / "theirs", tmp_path / "run").parity)
    check(export_run(tmp_path / "run", tmp_path / "out").parity)
    written = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert written["max_abs_logit_difference"] <= TOLERANCE
    name = "Blip2" if kind == "blip-2" else "InstructBlip"
    assert written["reference"] == f"transformers {name}ForConditionalGeneration"


# ---- other spellings of a folder ---------------------------------------------------------------------------------
def test_old_files_with_tied_weights_under_every_name_are_read(tmp_path: Path) -> None:
    """T5's embedding under three names, a tied head, buffers, and no image token in the config."""
    published("blip-2", "t5", tie_word_embeddings=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    words = state["language_model.shared.weight"]
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
        state[f"language_model.{name}.weight"] = words.clone()
    state["qformer.embeddings.position_ids"] = torch.arange(5)
    save_file(state, path, metadata={"format": "pt"})
    edited(tmp_path, image_token_index=None)
    TOKENIZER.save(tmp_path)
    ours, facts = import_model(tmp_path)
    assert facts.image_token_id == IMAGE_TOKEN
    check(verify(ours, tmp_path, facts))
    state["language_model.lm_head.weight"] = words + 1
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"ties language_model.lm_head.weight to the embedding"):
        import_model(tmp_path)


def test_a_half_precision_folder_stays_in_half_precision(tmp_path: Path) -> None:
    published("instructblip", "llama").to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    made = import_run(tmp_path / "theirs", tmp_path / "run")
    assert made.parity.dtype == "float32"
    check(made.parity)
    export_run(tmp_path / "run", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert {value.dtype for value in before.values()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in before)


def edited(folder: Path, **changes: Any) -> None:
    """The folder's config with these settings; a dictionary changes a part's."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


# ---- models made here --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["blip2", "blip2:flan_t5", "instructblip", "instructblip:flan_t5"])
def test_a_model_made_here_is_exported(name: str, tmp_path: Path) -> None:
    """A run without a tokenizer: the class is found by its parts, the picture's token is a row past the vocabulary."""
    tiny: Any = at_scale(load_recipe(name)[1], "tiny").model
    encoder = replace(tiny.encoders["image"], family="blip2", act="gelu", eps=1e-6)
    torch.manual_seed(0)
    model = replace(tiny, encoders={"image": encoder}).build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    save_model(model, tmp_path / "run" / "model")
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert made.parity.reference.startswith("Blip2" if "instruct" not in name else "InstructBlip")
    assert made.parity.max_abs_logit_difference <= TOLERANCE, made.parity
    assert made.parity.picture_effect > 100 * TOLERANCE
    again, facts = import_model(tmp_path / "out")
    assert facts.vocab == model.llm.vocab + 1
    check(verify(again, tmp_path / "out", facts))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("minigpt4", r"the nearest is 'blip-2', but the encoder is Vision \(clip\); transformers' Blip2For"),
        ("vila", "the nearest is 'llava', but the connector is Linear; transformers' LlavaFor"),
        ("idefics", r"the nearest is 'idefics', but the gated blocks are .*86 for 64\); transformers' IdeficsFor"),
    ],
)
def test_a_model_that_no_class_holds_is_told_the_nearest_and_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    save_model(at_scale(load_recipe(name)[1], "tiny").model.build(), tmp_path / "run" / "model")
    with pytest.raises(ConfigError, match=f"no class of transformers .*{reason}") as caught:
        export_run(tmp_path / "run", tmp_path / "out")
    assert str(caught.value).count("transformers'") == 1
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "out").exists()


# ---- folders that cannot be imported -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_type": "blip"}, CheckpointError, "model_type 'blip'; expected one of .*'blip-2', 'instructblip'"),
        ({"image_token_index": None}, ConfigError, "no image_token_index, and no tokenizer"),
        ({"architectures": ["Blip2ForImageTextRetrieval"]}, ConfigError, "holds Blip2ForImageTextRetrieval; expected"),
        ({"qformer_config": {"hidden_act": "relu"}}, ConfigError, "Q-Former's hidden_act is 'relu'; ours is 'gelu'"),
        ({"qformer_config": {"use_qformer_text_input": True}}, ConfigError, "use_qformer_text_input is True"),
        ({"qformer_config": {"num_hidden_layers": 3}}, CheckpointError, "unexpected .*qformer.encoder.layer.3"),
        ({"num_query_tokens": 6}, CheckpointError, r"query_tokens is \(1, 5, 32\) in the file, \(1, 6, 32\)"),
        ({"text_config": {"model_type": "bloom"}}, ConfigError, "bloom"),
        ({"vision_config": {"qkv_bias": False}}, ConfigError, "without biases"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    changes: dict[str, Any], kind: type, message: str, tmp_path: Path
) -> None:
    published().save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(kind, match=message):
        import_model(tmp_path)


@pytest.mark.parametrize("part", ["qformer.layers.2.cross.o_proj.weight", "qformer.queries", "project.bias"])
def test_a_difference_in_any_part_is_found(part: str, tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    ours, facts = import_model(tmp_path)
    with torch.no_grad():
        weight = ours.get_parameter(f"connectors.image.{part}")
        weight.add_(torch.randn_like(weight) * 0.05)
    with pytest.raises(CheckpointError, match="differ by"):
        verify(ours, tmp_path, facts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: replace(m, connectors={"image": QFormer.Config(norm=False).tiny()}), "the connector is QFormer"),
        (lambda m: replace(m, encoders={"image": m.encoders["image"].at(select="patch")}), "select='patch'"),
        (lambda m: replace(m, encoders={"image": m.encoders["image"].at(size=48)}), r"pictures are \(48, 48\)"),
        (lambda m: replace(m, encoders={"image": replace(m.encoders["image"], eps=1e-5)}), "norm_eps of the Q-Former"),
        (lambda m: replace(m, llm=Magneto.Config(vocab=64, positions="xpos").tiny()), "the LLM is Magneto"),
    ],
)
def test_what_the_class_cannot_express_is_refused_with_the_reason(change: Any, reason: str, tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=reason):
        export_model(change(ours.config).build(), tmp_path / "out", facts)
    assert not (tmp_path / "out").exists()


def test_queries_with_words_of_their_own_refuse_a_batch_that_has_none(tmp_path: Path) -> None:
    """Else the LLM's tokens would be looked up in BERT's table."""
    published("instructblip", "llama").save_pretrained(tmp_path)
    ours, _ = import_model(tmp_path)
    picture = torch.zeros(3, 28, 28, dtype=torch.uint8)
    place = torch.zeros(1, dtype=torch.int64)
    row = Row(torch.zeros(9, dtype=torch.int64), (picture,), torch.arange(5), (5,)).batch()
    with pytest.raises(DataError, match="reads the instruction in tokens of its own, and none came"):
        ours(row)
    media = replace(row.media["image"], prompts=(place,))
    assert ours(replace(row, media={"image": media})).hidden.shape == (1, 9, 32)
