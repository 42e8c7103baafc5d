"""A Q-Former that reads captions: the three masks of BLIP-2's first stage, and its words. Seconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintet.components.connectors.qformer import Captions, QFormer, Sight, sight
from quintet.data.processor import Processor
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError
from quintet.lab.pretrained import load_tokenizer, stage_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes import blip2
from quintet.recipes._scale import at_scale
from systems import asked, count, enlarge

QUERIES, WORDS = 4, 5
EXACT = 0.0
"""A masked key has the weight exp(−∞) = 0, and nothing else changes."""


def connector(**settings: Any) -> Any:
    config = QFormer.Config(queries=QUERIES, dim=32, depth=3, heads=4, ffn=64, captions=Captions.Config().small(16))
    torch.manual_seed(0)
    made: Any = replace(config, **settings).build(d_in=24, d_out=8, vocab=50)
    enlarge(made)
    return made.eval()


# ---- the masks ---------------------------------------------------------------------------------------------------
def test_the_three_masks_are_figure_2() -> None:
    there = torch.tensor([[True, True, True]])

    def drawn(kind: Sight) -> list[str]:
        return ["".join("■" if seen else "·" for seen in row) for row in sight(kind, 2, there)[0, 0].tolist()]

    assert drawn("apart") == ["■■···", "■■···", "··■■■", "··■■■", "··■■■"]
    assert drawn("together") == ["■■■■■"] * 5
    assert drawn("causal") == ["■■···", "■■···", "■■■··", "■■■■·", "■■■■■"]


def test_padding_is_seen_by_nobody() -> None:
    there = torch.tensor([[True, True, False]])
    for kind in ("apart", "together", "causal"):
        assert not sight(kind, 2, there)[0, 0, :, 4].any()


REACH = {
    # What moves when (the picture, the third word of five) is another: queries, words 0 to 4.
    "apart": ("Q·····", "·01234"),
    "together": ("Q01234", "Q01234"),
    "causal": ("Q01234", "···234"),
}


@pytest.mark.parametrize("kind", REACH)
def test_a_mask_lets_through_exactly_what_it_should(kind: Sight) -> None:
    made = connector()
    picture, ids, there = torch.randn(1, 6, 24), torch.tensor([[1, 2, 3, 4, 5]]), torch.ones(1, 5, dtype=torch.bool)
    other = ids.clone()
    other[0, 2] = 9

    def states(picture: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            asked, words = made.read(picture, ids, there, kind)
        return torch.cat([asked, words], 1)[0]

    before = states(picture, ids)
    for after, wanted in zip((states(torch.randn(1, 6, 24), ids), states(picture, other)), REACH[kind], strict=True):
        moved = (after - before).abs().amax(-1)
        queries = moved[:QUERIES]
        assert bool((queries > 1e-3).all()) if "Q" in wanted else float(queries.max()) == EXACT
        for n, change in enumerate(moved[QUERIES:].tolist()):
            assert change > 1e-3 if str(n) in wanted else change == EXACT, f"word {n}"


def test_apart_is_what_queries_and_words_are_without_each_other() -> None:
    """Retrieval reads a gallery once, training reads pairs in one pass; rounding alone may differ."""
    made = connector()
    pictures, ids = torch.randn(3, 6, 24), torch.randint(0, 50, (3, WORDS))
    there = torch.ones(3, WORDS, dtype=torch.bool)
    there[1, 3:] = False
    with torch.no_grad():
        seen, said = made.compared(*made.read(pictures, ids, there, "apart"))
        torch.testing.assert_close(made.pictures(pictures), seen, atol=1e-5, rtol=0)
        torch.testing.assert_close(made.sentences(ids, there), said, atol=1e-5, rtol=0)


def test_words_share_the_queries_self_attention_and_have_a_feed_forward_of_their_own() -> None:
    made = connector()
    ids, there = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    made.sentences(ids, there).sum().backward()
    shared = {n for n, p in made.qformer.named_parameters() if p.grad is not None}
    assert all(".attention." in name or name.startswith("norm.") for name in shared)
    assert {f"layers.{i}.attention.q_proj.weight" for i in range(3)} <= shared
    assert all(p.grad is not None for p in made.captions.ffn.parameters())


def test_dec_takes_the_place_of_the_first_token_when_a_caption_is_written() -> None:
    made = connector()
    picture, there = torch.randn(1, 6, 24), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        one, other = (made.write(picture, torch.tensor([[first, 5, 6, 7]]), there) for first in (1, 2))
        assert torch.equal(one, other)
        made.captions.words.weight[made.captions.dec] *= -1.0
        assert not torch.allclose(made.write(picture, torch.tensor([[1, 5, 6, 7]]), there), one, atol=1e-3)
    assert one.shape == (1, 4, 51)


def test_a_caption_that_is_too_long_is_refused_and_so_is_a_connector_without_words() -> None:
    with pytest.raises(ConfigError, match="a caption of 5 tokens; the Q-Former reads at most 4"):
        connector(positions=4).captions.embed(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ConfigError, match="reads no captions"):
        connector(captions=None).pictures(torch.randn(1, 6, 24))


# ---- words -------------------------------------------------------------------------------------------------------
def test_at_full_scale_captions_are_berts_words(tmp_path: Path) -> None:
    """Its 30,522 and [DEC]; a folder of a small BERT tokenizer stands for the published one."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = blip2.recipe().model
    with torch.device("meta"):
        made: Any = model.connectors["image"].build(d_in=8, d_out=8, vocab=50_272)  # type: ignore[call-arg]
    assert made.captions.words.weight.shape == (30_523, 768)
    vocabulary = {w: n for n, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "circle"))}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(tmp_path)
    captions = Captions.Config(source=str(tmp_path), vocab=6, dim=16)
    queries = replace(at_scale(blip2.recipe(), "tiny").model.connectors["image"], captions=captions)  # type: ignore[type-var]
    config = replace(at_scale(blip2.recipe(), "tiny").model, connectors={"image": queries})
    llm = load_tokenizer(config)
    align_stage, generative = blip2.recipe().stages
    assert stage_tokenizer(config, generative, llm) is llm
    spelt = Processor(stage_tokenizer(config, align_stage, llm), align_stage.template, config)
    assert spelt.tokens(asked(answer="a circle")).ids[-4:].tolist() == [2, 4, 5, 3]


def test_bert_without_an_end_token_is_read_and_gpt_without_any_is_not(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(Exception, match="no end token"):
        Tokenizer.load(tmp_path)


def test_full_scale_recipes_have_the_parameters_of_both_stages() -> None:
    """188 M in the paper's table 1, 186.7 M here; what captions add is BERT-base's words and layers, and the heads."""
    recipe = load_recipe("blip2")[1]
    assert recipe.paper.trainable["align"] == "188 M"
    with torch.device("meta"):
        parts = MLLM.Config.build(recipe.model).parts()
    captions = count(parts["connectors.image.captions"])
    words, places, ffn = 30_523 * 768, 512 * 768, 12 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)
    heads = 2 * (768 * 256 + 256) + 768 * 2 + 2 + 768 * 768 + 768 + 2 * 768 + 30_523 + 1
    assert captions == words + places + ffn + heads
