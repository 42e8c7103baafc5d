"""LLaVA folders of transformers: in, out, and in both directions the same logits. Random weights, float32.

Tolerance 1e-5 on logits of up to 3.3: kernels for other shapes may round differently. Measured worst case over all
combinations below: 0.0, the same numbers to the last bit (torch 2.13, one thread, AVX-512). `verify` itself allows
1e-4 of the largest logit in float32. Every comparison also measures how much other pictures change the logits: by 2.4
and more.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from quintet.components import lora
from quintet.components.connectors.linear import Linear
from quintet.components.connectors.mlp import Mlp
from quintet.components.connectors.pool import AveragePool
from quintet.components.encoders.presets import CLIP_L_336, DINOV2_L, SIGLIP_SO400M_384
from quintet.components.encoders.vision import Vision
from quintet.components.presets_llm import QWEN2_0_5B, VICUNA_7B
from quintet.components.roles import ConnectorConfig, ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.model.checkpoint import load_model, save_model
from quintet.model.convert import export_model, export_run, import_model, import_run
from quintet.model.family import Facts
from quintet.model.mllm import MLLM
from quintet.model.parity import Parity, verify
from quintet.recipes._templates import VICUNA_V1
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Ref, Sample, Text, Turn

TOLERANCE = 1e-5
IMAGE_TOKEN = 120


def facts_of(image_token_id: int) -> Facts:
    return Facts(kind="llava", image_token_id=image_token_id, vocab=64, dtype="float32", source="")


TOWERS = ("clip", "siglip")
TEXTS = ("llama", "qwen2", "mistral", "qwen3")
LAYERS = (-1, -2, 1)


def published(
    tower: str = "clip",
    text: str = "llama",
    *,
    select: str = "default",
    layer: int | list[int] = -2,
    vocab: int = 128,
    **top: Any,
) -> Any:
    """A random LLaVA of transformers: a tower of 3 layers at 32 pixels, an LLM of 2 layers."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        SiglipVisionConfig,
    )

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    words: dict[str, Any] = {"vocab_size": vocab, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    words |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": top.get("tie_word_embeddings", False),
    }
    if text == "qwen3":
        words["head_dim"] = 16
    towers: dict[str, Any] = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    texts: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig, "qwen3": Qwen3Config}
    torch.manual_seed(2)
    config = LlavaConfig(
        vision_config=towers[tower](**vision),
        text_config=texts[text](**words),
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy=select,
        vision_feature_layer=layer,
        **top,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def check(parity: Parity) -> None:
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    # A comparison that cannot see the pictures would prove nothing about the tower.
    assert parity.picture_effect > 100 * TOLERANCE, parity


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


def tokenizer_of_bytes(folder: Path) -> int:
    """A tokenizer without merges, as a run saves it; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.save_pretrained(folder)
    return len(letters)


@pytest.mark.parametrize(("fit", "select"), [("pad", "patch"), ("crop", "full"), ("squash", "patch")])
def test_an_exported_run_is_used_with_transformers_own_processor(fit: Any, select: Any, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    encoder = CLIP_L_336.at(fit=fit, select=select).tiny()
    model = composition(encoder, vocab=tokenizer_of_bytes(tmp_path / "run" / "model"))
    save_model(model, tmp_path / "run" / "model")
    check(export_run(tmp_path / "run", tmp_path / "out", chat_template="{{ messages[0].content }}").parity)
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert processor.chat_template == "{{ messages[0].content }}"
    assert theirs.generation_config.eos_token_id == 2
    picture = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    inputs = processor(images=Image.fromarray(picture.numpy()), text="a <image> b", return_tensors="pt")
    assert int((inputs.input_ids == theirs.config.image_token_id).sum()) == encoder.layout((32, 32)).count
    ours: Any = model.encoders["image"]
    # 1e-6: their numpy and our torch may round differently; measured 0.0.
    torch.testing.assert_close(inputs.pixel_values, ours.normalise(picture.permute(2, 0, 1)[None]), atol=1e-6, rtol=0)
    assert theirs.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == inputs.input_ids.shape[1] + 2


# ---- our own compositions ----------------------------------------------------------------------------------------
def composition(encoder: Any, *, connector: ConnectorConfig | None = None, llm: Any = None, vocab: int = 64) -> MLLM:
    torch.manual_seed(4)
    config = MLLM.Config(
        encoders={"image": encoder},
        connectors={"image": connector or Mlp.Config()},
        llm=llm or VICUNA_7B.tiny(),
    )
    model = config.build(vocab=vocab).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.mark.parametrize(
    "encoder",
    [
        CLIP_L_336.tiny(),
        CLIP_L_336.at(layer=-1, select="full").tiny(),
        CLIP_L_336.at(layer=(5, -3)).tiny(),
        CLIP_L_336.tiny().at(size=48),
        CLIP_L_336.at(select="full").tiny().at(size=44),
        replace(SIGLIP_SO400M_384.tiny(), family="siglip"),
        replace(SIGLIP_SO400M_384.tiny(), family="siglip", select="rest").at(size=48),
    ],
    ids=["plain", "last, full", "two layers", "larger", "no multiple of the patch", "siglip", "siglip, larger, rest"],
)
@pytest.mark.parametrize("llm", [VICUNA_7B.tiny(), replace(QWEN2_0_5B.tiny(), tie_head=False)], ids=["tied", "untied"])
def test_a_model_made_here_exports_without_the_layers_it_never_built(encoder: Any, llm: Any, tmp_path: Path) -> None:
    """The image token is past the vocabulary: it gets a row of its own, and no other logit changes."""
    model = composition(encoder, llm=llm)
    export_model(model, tmp_path, facts_of(64))
    check(verify(model, tmp_path, facts_of(64)))
    again, facts = import_model(tmp_path)
    assert facts.vocab == 65
    check(verify(again, tmp_path, facts_of(64)))


def test_an_export_replaces_what_an_older_one_left(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    export_model(composition(CLIP_L_336.tiny()), tmp_path, facts_of(3))
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: composition(CLIP_L_336.tiny(), connector=Linear.Config()), "the connector is Linear"),
        (lambda: composition(CLIP_L_336.tiny(), connector=Mlp.Config(depth=3)), r"the connector is Mlp.*depth=3"),
        (lambda: composition(CLIP_L_336.tiny(), connector=AveragePool.Config()), "the connector is AveragePool"),
        (lambda: composition(CLIP_L_336.tiny().at(select="cls")), "select='cls'"),
        (lambda: composition(CLIP_L_336.tiny().at(layer=-1, norm=True)), "norm=True"),
        (lambda: composition(replace(DINOV2_L.tiny(), family="dinov2")), r"the encoder is Vision \(dinov2\)"),
        (lambda: composition(CLIP_L_336.tiny().at(fit="native")), "fit='native'"),
        (lambda: composition(CLIP_L_336.tiny().at(size=(32, 48))), "32 × 48"),
    ],
)
def test_what_the_class_cannot_express_is_refused_with_the_reason_and_nothing_is_written(
    model: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        export_model(model(), tmp_path / "out", facts_of(3))
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_not_merged_is_refused_and_a_merged_one_is_exported(tmp_path: Path) -> None:
    model = composition(CLIP_L_336.tiny())
    lora.apply(model.llm, lora.Lora(rank=2, alpha=4, targets=("q_proj",)))
    with torch.no_grad():
        for name, weight in lora.lora_parameters(model.llm):
            weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    with pytest.raises(ConfigError, match="merge it first"):
        export_model(model, tmp_path, facts_of(3))
    lora.merge(model.llm)
    export_model(model, tmp_path, facts_of(3))
    check(verify(model, tmp_path, facts_of(3)))


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
