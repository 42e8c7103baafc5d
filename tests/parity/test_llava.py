"""LLaVA folders of transformers: in, out, and in both directions the same logits. Random weights, float32."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_fixtures import IMAGE_TOKEN, TOLERANCE, check, published, tokenizer_of_bytes
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.encoders.vision import Vision
from quintet.components.roles import ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.model.checkpoint import load_model
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.parity import verify
from quintet.recipes._templates import VICUNA_V1
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Ref, Sample, Text, Turn

TOWERS = ("clip", "siglip")
LAYERS = (-1, -2, 1)
CASES = [
    *itertools.product(TOWERS, ("llama", "qwen2"), ("default", "full"), LAYERS),
    *itertools.product(TOWERS, ("llama",), ("default",), (0, [-2, -1])),
    *itertools.product(("clip",), ("mistral", "qwen3"), ("default",), (-2,)),
]


@pytest.mark.parametrize(("tower", "text", "select", "layer"), CASES)
def test_an_imported_model_and_its_export_give_transformers_logits(
    tower: str, text: str, select: str, layer: int | list[int], tmp_path: Path
) -> None:
    model = published(tower, text, select=select, layer=layer)
    model.save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    check(verify(ours, tmp_path / "theirs", facts))
    export_model(ours, tmp_path / "ours", facts)
    check(verify(ours, tmp_path / "ours", facts))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("text", "top"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("llama", {"multimodal_projector_bias": False}),
        ("llama", {"projector_hidden_act": "silu"}),
        ("llama", {"projector_hidden_act": "gelu_pytorch_tanh"}),
    ],
)
def test_the_classes_other_settings_are_kept(text: str, top: dict[str, Any], tmp_path: Path) -> None:
    model = published("clip", text, **top)
    model.save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    check(verify(ours, tmp_path / "theirs", facts))
    export_model(ours, tmp_path / "ours", facts)
    check(verify(ours, tmp_path / "ours", facts))
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written.items() >= top.items()


# ---- spellings of a folder ---------------------------------------------------------------------------------------
def in_memory(name: str) -> str:
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


SPELLINGS = {
    "on disk": lambda name: name,
    "in memory": in_memory,
    "the hub's of 2023": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("tower", TOWERS)
def test_every_spelling_of_the_weights_is_read(tower: str, spelling: str, tmp_path: Path) -> None:
    model = published(tower)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({SPELLINGS[spelling](n): v for n, v in load_file(path).items()}, path, metadata={"format": "pt"})
    ours, facts = import_model(tmp_path)
    check(verify(ours, tmp_path, facts))


def test_a_folder_in_shards_is_read(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours, facts = import_model(tmp_path)
    check(verify(ours, tmp_path, facts))


def test_a_config_that_writes_only_what_differs_gets_transformers_defaults(tmp_path: Path) -> None:
    """As the hub's first LLaVA folders do; the tower's default is CLIP-L at 336 pixels, the text's Llama 7B."""
    from quintet.model import convert, llava

    raw = {
        "model_type": "llava",
        "vision_feature_layer": -2,
        "text_config": {"model_type": "llama", "vocab_size": 32064},
    }
    config = convert._filled(raw, tmp_path)
    found = llava.from_config(config, image=lambda size: ImageSpec(size=(size, size)))
    expected = CLIP_L_336.at(layer=-2, select="patch")
    assert found.encoders["image"] == replace(
        expected, keep_unused=True, image=ImageSpec(size=(336, 336)), source="", licence=""
    )
    assert (found.llm.dim, found.llm.depth, found.connectors["image"]) == (4096, 32, Mlp.Config())


def test_a_half_precision_folder_stays_in_half_precision_and_is_compared_in_single(tmp_path: Path) -> None:
    published().to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    ours, facts = import_model(tmp_path / "theirs")
    assert facts.dtype == "bfloat16"
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    parity = verify(ours, tmp_path / "theirs", facts)
    assert parity.dtype == "float32"
    check(parity)
    export_model(ours, tmp_path / "ours", facts)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- runs --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_and_export_of_a_run_record_the_logits_they_compared(dtype: torch.dtype, tmp_path: Path) -> None:
    published("siglip", "qwen2").to(dtype).save_pretrained(tmp_path / "theirs")
    made = import_run(tmp_path / "theirs", tmp_path / "run")
    sent = export_run(tmp_path / "run", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    for conversion, folder in ((made, tmp_path / "run"), (sent, tmp_path / "out")):
        check(conversion.parity)
        written = json.loads((folder / "parity.json").read_text())
        assert written["max_abs_logit_difference"] <= TOLERANCE
        assert written["dtype"] == "float32"
        assert len(written["shapes"]) == 4
        assert max(row["pictures"] for row in written["shapes"]) == 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_token_index"] == IMAGE_TOKEN


# ---- folders that cannot be imported -----------------------------------------------------------------------------
def edited(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda c: c.update(model_type="llava_llama"), CheckpointError, "'llava_llama'; expected one of 'llava'"),
        (lambda c: c.update(image_token_index=500), CheckpointError, "500 is past the 128"),
        (lambda c: c.update(projector_hidden_act="tanh"), ConfigError, "projector_hidden_act is 'tanh'"),
        (lambda c: c.update(vision_feature_select_strategy="odd"), CheckpointError, "cannot be read by transformers"),
        (lambda c: c["text_config"].update(model_type="gpt2"), ConfigError, "gpt2"),
        (lambda c: c["vision_config"].update(num_hidden_layers=2), CheckpointError, r"unexpected encoder\.layers\.2"),
        (lambda c: c.update(multimodal_projector_bias=False), CheckpointError, r"unexpected \['linear_1\.bias'"),
        (lambda c: c["text_config"].update(intermediate_size=65), CheckpointError, "64"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(change: Any, kind: type, message: str, tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(kind, match=message):
        import_model(tmp_path)


def test_weights_of_another_class_are_named(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"qformer.query_tokens": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 weights are none of .*: qformer\.query_tokens"):
        import_model(tmp_path)


@pytest.mark.parametrize(
    "part", ["encoders.image.layers.0.mlp.fc1.weight", "connectors.image.project.layers.1.bias", "llm.norm.weight"]
)
def test_a_difference_in_any_part_is_found(part: str, tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    ours, facts = import_model(tmp_path)
    weight: Tensor = ours.get_parameter(part)
    with torch.no_grad():
        weight.mul_(1.01)
    with pytest.raises(CheckpointError, match="differ by"):
        verify(ours, tmp_path, facts)


def test_an_imported_model_trains_what_runs_and_keeps_the_rest_as_it_came(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    encoder: Any = model.encoders["image"]
    assert isinstance(encoder, Vision)
    features = model.connectors["image"](encoder((torch.zeros(3, 32, 32, dtype=torch.uint8),)))
    features.values.square().sum().backward()
    trained = [*encoder.named_parameters(), *model.connectors["image"].named_parameters()]
    assert all(weight.grad is not None for _, weight in trained)
    assert any(name.startswith("unused.layers.0") for name, _ in encoder.named_buffers())


def test_an_imported_model_can_be_asked(tmp_path: Path) -> None:
    """The engine's greedy answer is transformers' own for the same tokens and picture."""
    theirs = published(vocab=300)
    theirs.save_pretrained(tmp_path / "theirs")
    assert tokenizer_of_bytes(tmp_path / "theirs") < 300
    import_run(tmp_path / "theirs", tmp_path / "run", processor={"template": VICUNA_V1.to_json()})
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "red.png")
    sample = Sample(
        Node((Turn("user", (Media("image", Ref("red.png", tmp_path / "red.png")), Text("What is this?"))),))
    )
    engine = Engine.open(tmp_path / "run")
    batch = engine.processor.batch([sample], open=True)
    pictures = batch.media["image"]
    ids = batch.tokens.clone()
    ids.view(-1)[pictures.slots] = theirs.config.image_token_index
    pixels = engine.model.encoders["image"].normalise(torch.stack(pictures.values))
    said = theirs.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    (answer,) = engine.answer([sample], max_tokens=6)
    assert answer == engine.processor.tokenizer.decode(said.tolist()).strip()
