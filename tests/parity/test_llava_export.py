"""Our own compositions as LLaVA folders of transformers: the same logits, or refused with the reason. Float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_fixtures import check, composition, facts_of, tokenizer_of_bytes
from PIL import Image

from quintet.components import lora
from quintet.components.connectors.linear import Linear
from quintet.components.connectors.mlp import Mlp
from quintet.components.connectors.pool import AveragePool
from quintet.components.encoders.presets import CLIP_L_336, DINOV2_L, SIGLIP_SO400M_384
from quintet.components.presets_llm import QWEN2_0_5B, VICUNA_7B
from quintet.errors import ConfigError
from quintet.model.checkpoint import save_model
from quintet.model.convert import export_model, export_run, import_model
from quintet.model.parity import verify


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


@pytest.mark.parametrize(("fit", "select"), [("pad", "patch"), ("crop", "full"), ("squash", "patch")])
def test_an_exported_run_is_used_with_transformers_own_processor(fit: Any, select: Any, tmp_path: Path) -> None:
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
