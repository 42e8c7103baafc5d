"""A Q-Former that begins as BERT, as BLIP-2's, or with the words of a small LLM. About 10 s."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quintet.components.connectors.qformer import Captions, QFormer
from quintet.components.encoders.vision import Vision
from quintet.errors import CheckpointError
from quintet.lab.pretrained import build_model
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.model.qformer_source import begin_as
from quintet.recipes._scale import at_scale

SMALL: dict[str, Any] = {"queries": 3, "dim": 32, "depth": 2, "heads": 4, "ffn": 48, "positions": 24}
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def noisy(model: nn.Module) -> nn.Module:
    """Weights in which no two parts are alike, norms and biases too."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


# ---- BERT --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForPreTraining

    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(**SIZES, vocab_size=90, max_position_embeddings=24, type_vocab_size=1)
    model = noisy(BertForPreTraining(config))
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.zero_()  # type: ignore[union-attr]
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


@torch.no_grad()
def test_captions_are_read_and_written_as_by_the_bert_that_it_begins_as(bert: Path) -> None:
    """Without cross-attention, for words do not have it; the projection onto words is BERT's masked one."""
    from transformers import BertForPreTraining

    config = QFormer.Config(**SMALL, captions=Captions.Config(vocab=90))
    connector = config.build(d_in=20, d_out=16)
    fresh = {name: value.clone() for name, value in connector.state_dict().items()}
    left = begin_as(connector, bert)
    connector.eval()
    ids = torch.randint(0, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    there = torch.ones_like(ids, dtype=torch.bool)
    there[1, 5:] = False
    reference: Any = BertForPreTraining.from_pretrained(bert).eval()
    theirs = reference(ids, attention_mask=there.long(), output_hidden_states=True)
    assert connector.captions is not None
    ours = connector.qformer(None, ids, there[:, None, None], queries=False, captions=connector.captions)
    assert torch.allclose(ours[there], theirs.hidden_states[-1][there], atol=2e-5)
    logits = connector.captions.logits(ours)[..., :90]
    assert torch.allclose(logits[there], theirs.prediction_logits[there], atol=5e-5)
    # Both feed-forwards begin as BERT's one; what BERT has not stays as it began.
    state = connector.state_dict()
    assert torch.equal(state["qformer.layers.1.ffn.up.weight"], state["captions.ffn.1.up.weight"])
    parts = ("cross.", "queries", "norm_picture", "itc_", "itm", "log_temperature", "project.")
    assert left == sorted(name for name in state if any(part in name for part in parts))
    assert all(torch.equal(state[name], fresh[name]) for name in left)
    assert torch.equal(state["captions.words.weight"][90], fresh["captions.words.weight"][90]), "[DEC] is not BERT's"


def test_a_bert_of_another_width_and_a_file_without_a_weight_are_refused(bert: Path, tmp_path: Path) -> None:
    config = QFormer.Config(**SMALL | {"ffn": 64}, captions=Captions.Config(vocab=90))
    with pytest.raises(CheckpointError, match=r"is \(48, 32\) in .*; expected \(64, 32\)"):
        begin_as(config.build(d_in=20, d_out=16), bert)
    deeper = QFormer.Config(**SMALL | {"depth": 3}, captions=Captions.Config(vocab=90))
    with pytest.raises(CheckpointError, match=r"has no bert\.encoder\.layer\.2"):
        begin_as(deeper.build(d_in=20, d_out=16), bert)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="'clip'; expected one of bert, blip-2, instructblip"):
        begin_as(deeper.build(d_in=20, d_out=16), tmp_path)


# ---- BLIP-2 ------------------------------------------------------------------------------------------------------
def published(folder: Path, *, text: bool = False) -> Any:
    """A small random BLIP-2 in transformers' form: with an LLM, or with words to compare with (`text`)."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2ForImageTextRetrieval,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    vision = Blip2VisionConfig(**SIZES | {"hidden_size": 20}, image_size=28, patch_size=14)
    asks = Blip2QFormerConfig(
        **SIZES, encoder_hidden_size=20, vocab_size=91, max_position_embeddings=24, use_qformer_text_input=text
    )
    llm = OPTConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, ffn_dim=32, num_attention_heads=2,
                    max_position_embeddings=64, word_embed_proj_dim=16)  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=asks.to_dict(), text_config=llm.to_dict(), num_query_tokens=3,
        image_text_hidden_size=8,
    )  # fmt: skip
    model = noisy((Blip2ForImageTextRetrieval if text else Blip2ForConditionalGeneration)(config))
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


@torch.no_grad()
@pytest.mark.parametrize("project", [False, True])
def test_queries_are_those_of_the_blip2_that_it_begins_as(tmp_path: Path, project: bool) -> None:
    model = published(tmp_path)
    connector = QFormer.Config(**SMALL, reads=True, source_project=project).build(d_in=20, d_out=16, vocab=70)
    before = connector.project.weight.clone() if connector.project else torch.empty(0)
    left = begin_as(connector.eval(), tmp_path)
    features = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(1))
    normed = model.vision_model.post_layernorm(features)
    theirs = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=normed).last_hidden_state
    assert torch.allclose(connector.qformer(features)[:, :3], theirs, atol=2e-5)
    assert connector.project is not None
    expected = model.language_projection.weight if project else before
    assert torch.equal(connector.project.weight, expected)
    words = {name for name in left if not name.startswith("project.")}
    assert words == {n for n in connector.state_dict() if "words" in n or "positions" in n}, "BLIP-2 reads no words"


@torch.no_grad()
def test_what_reads_words_comes_from_the_retrieval_model_where_there_is_one(tmp_path: Path) -> None:
    """InstructBLIP's layers for words; the words are another tokenizer's unless it says that it has BERT's."""
    model = published(tmp_path, text=True)
    own = QFormer.Config(**SMALL, reads=True, words=91).build(d_in=20, d_out=16)
    assert begin_as(own, tmp_path) == ["project.bias", "project.weight"]
    assert torch.equal(own.qformer.words.weight, model.embeddings.word_embeddings.weight)  # type: ignore[union-attr]
    other = QFormer.Config(**SMALL, reads=True).build(d_in=20, d_out=16, vocab=70)
    assert begin_as(other, tmp_path) == ["project.bias", "project.weight", "qformer.words.weight"]
    assert torch.equal(
        other.qformer.layers[0].ffn_words.up.weight,  # type: ignore[union-attr]
        model.qformer.encoder.layer[0].intermediate.dense.weight,
    )


def test_a_model_is_built_with_the_q_former_that_its_config_names(tmp_path: Path) -> None:
    model = published(tmp_path)
    recipe = at_scale(load_recipe("minigpt4")[1], "tiny")
    assert replace(recipe.model.connectors["image"], source=None) == recipe.model.connectors["image"]
    tower = Vision.Config(
        family="blip2", width=20, depth=1, heads=4, ffn=32, patch=14, trained_size=28, act="gelu", eps=1e-6,
        image=recipe.model.spec("image"), layer=-1, select="full",
    )  # fmt: skip
    connector = QFormer.Config(**SMALL, source=str(tmp_path))
    config = MLLM.Config(encoders={"image": tower}, connectors={"image": connector}, llm=recipe.model.llm)
    made = build_model(config, vocab=config.llm.vocab)
    assert torch.equal(made.connectors["image"].qformer.queries, model.query_tokens[0])  # type: ignore[union-attr]


def test_fresh_weights_are_berts_at_its_width_and_in_proportion_at_others() -> None:
    """So that queries and keys are as far from equal everywhere; 0.02 at a width of 192 would leave attention flat."""
    for dim, std in ((768, 0.02), (192, 0.04)):
        made = QFormer.Config(**SMALL | {"dim": dim, "ffn": dim}).build(d_in=20, d_out=16)
        assert float(made.qformer.layers[0].attention.q_proj.weight.detach().std()) == pytest.approx(std, rel=0.05)  # type: ignore[union-attr]


# ---- the LLM's words ---------------------------------------------------------------------------------------------
def test_words_that_are_the_llms_tokens_begin_as_the_llms() -> None:
    """At starter scale, where both are 192 wide: two words are as near to each other as in the LLM."""
    recipe = at_scale(load_recipe("blip2")[1], "starter")
    model = build_model(recipe.model, vocab=recipe.model.llm.vocab)
    connector: Any = model.connectors["image"]
    known = model.llm.tables()[0].detach()
    words = connector.captions.words.weight.detach()[: len(known)]
    near = [
        torch.nn.functional.cosine_similarity(t[200:210], t[300:310], dim=-1) for t in (words, known - known.mean(0))
    ]
    assert torch.allclose(near[0], near[1], atol=1e-5)
    assert abs(float(words.std()) - 0.02) < 1e-3
