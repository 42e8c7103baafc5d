"""`Blip2ForImageTextRetrieval` folders of transformers: in and out with the same scores. Random weights, float32.

Tolerance 1e-5 on ITC's cosines and ITM's logits of up to 3; the same sums, in another order where a mask is padded.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quintet.components.llms.none import NoLLM
from quintet.errors import CheckpointError, ConfigError
from quintet.model.blip2_retrieval import (
    export_retrieval,
    import_retrieval,
    is_retrieval,
    retrieval_views,
    to_retrieval_config,
    verify_retrieval,
)
from quintet.model.checkpoint import load_model, read_json, save_model
from quintet.model.convert import export_run, import_run
from quintet.model.parity import Parity
from quintet.recipes import blip2
from quintet.recipes._scale import at_scale

TOLERANCE = 1e-5


def published(folder: Path, *, image_token: int | None = None) -> None:
    """A random one: pictures of 28 pixels, a Q-Former of 4 layers, 50 words."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

    vision: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"intermediate_size": 48, "image_size": 28, "patch_size": 14}
    qformer: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    qformer |= {"intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 20}
    torch.manual_seed(0)
    model: Any = Blip2ForImageTextRetrieval(
        Blip2Config(
            vision_config=Blip2VisionConfig(**vision),
            qformer_config=Blip2QFormerConfig(**qformer, use_qformer_text_input=True),
            num_query_tokens=5,
            image_text_hidden_size=16,
            image_token_index=image_token,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)


def check(parity: Parity) -> None:
    assert parity.reference == "Blip2ForImageTextRetrieval"
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    assert parity.picture_effect > 100 * TOLERANCE, parity


@pytest.mark.parametrize("image_token", [None, 50])
def test_an_imported_model_and_its_export_give_transformers_scores(image_token: int | None, tmp_path: Path) -> None:
    """With an image token the class cuts one for each query off the ids; Salesforce's folder has it set."""
    published(tmp_path / "theirs", image_token=image_token)
    assert is_retrieval(read_json(tmp_path / "theirs" / "config.json"))
    ours = import_retrieval(tmp_path / "theirs")
    check(verify_retrieval(ours, tmp_path / "theirs"))
    export_retrieval(ours, tmp_path / "ours")
    check(verify_retrieval(ours, tmp_path / "ours"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_trained_is_exported(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    ours: Any = import_retrieval(tmp_path / "theirs")
    for name in ("itm", "itc_caption", "ffn"):
        changed: Any = import_retrieval(tmp_path / "theirs")
        with torch.no_grad():
            next(getattr(changed.connectors["image"].captions, name).parameters()).mul_(-1.5)
        with pytest.raises(CheckpointError, match="differ by"):
            verify_retrieval(changed, tmp_path / "theirs")
    check(verify_retrieval(ours, tmp_path / "theirs"))


def test_it_is_saved_and_loaded_without_an_llm(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    ours = import_retrieval(tmp_path / "theirs")
    save_model(ours, tmp_path / "model")
    loaded = load_model(tmp_path / "model").eval()
    check(verify_retrieval(loaded, tmp_path / "theirs"))
    assert isinstance(loaded.llm, NoLLM)
    with pytest.raises(ConfigError, match="has no LLM"):
        loaded.llm.embed(torch.zeros(1, 1, dtype=torch.long))
    assert set(loaded.parts()) == {"encoders.image", "connectors.image.qformer", "connectors.image.captions", "llm"}


def test_a_run_goes_in_and_out(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    check(import_run(tmp_path / "theirs", tmp_path / "run").parity)
    check(export_run(tmp_path / "run", tmp_path / "out").parity)


def test_the_full_size_has_the_published_names_and_shapes() -> None:
    """Names and shapes of Salesforce/blip2-itm-vit-g as transformers builds it, on the meta device."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    with torch.device("meta"):
        ours = replace(blip2.recipe().model, llm=NoLLM.Config()).build()
        config = to_retrieval_config(ours)
        theirs: Any = Blip2ForImageTextRetrieval(Blip2Config.from_dict(config))
    connector: Any = ours.connectors["image"]
    assert connector.project is None
    wanted = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in retrieval_views(ours).items()} == wanted


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    from quintet.lab.recipe import load_recipe

    with pytest.raises(ConfigError, match="a Q-Former that reads captions"):
        to_retrieval_config(at_scale(load_recipe("minigpt4")[1], "tiny").model.build(vocab=50))
    published(tmp_path / "theirs")
    config = (tmp_path / "theirs" / "config.json").read_text()
    (tmp_path / "theirs" / "config.json").write_text(config.replace('"num_query_tokens": 5', '"num_query_tokens": 6'))
    with pytest.raises(CheckpointError, match="query_tokens is"):
        import_retrieval(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(
        config.replace('"use_qformer_text_input": true', '"use_qformer_text_input": false')
    )
    with pytest.raises(ConfigError, match="use_qformer_text_input is False"):
        import_retrieval(tmp_path / "theirs")
