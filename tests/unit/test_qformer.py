"""The Q-Former: transformers' numbers and size, and what reads its instruction. Seconds."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.components.connectors.qformer import QFormer, Queries
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.errors import ConfigError
from quintet.model.blip2 import LAYER
from quintet.values import Features, Layout
from systems import count

PARITY = 2e-5
"""float32, states normalised to about 1; the same sums in another order. Worst measured: 3e-6."""


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Q-Former's weights of transformers under our names."""
    layer = {f".{theirs}.": f".{ours}." for ours, theirs in LAYER.items()}
    others = {
        "encoder.layer.": "layers.",
        "embeddings.layernorm.": "norm.",
        "embeddings.word_embeddings.": "words.",
        "embeddings.position_embeddings.": "positions.",
    }
    found = {}
    for name, value in state.items():
        for theirs, ours in (layer | others).items():
            name = name.replace(theirs, ours)
        found[re.sub("^layernorm.", "norm.", name)] = value
    return found


SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "encoder_hidden_size": 24,
    "vocab_size": 50,
}


@pytest.mark.parametrize("reads", [False, True])
def test_it_is_transformers_qformer(reads: bool) -> None:
    """BLIP-2's without words and InstructBLIP's with them, padded."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel, InstructBlipQFormerConfig, InstructBlipQFormerModel

    torch.manual_seed(0)
    if reads:
        theirs: Any = InstructBlipQFormerModel(InstructBlipQFormerConfig(**SHAPE)).eval()
    else:
        theirs = Blip2QFormerModel(Blip2QFormerConfig(**SHAPE)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    config = QFormer.Config(queries=5, dim=32, depth=4, heads=4, ffn=64, norm=False, reads=reads)
    ours = Queries(config, d_in=24, vocab=50 if reads else 0)
    state = as_published(theirs.state_dict())
    missing, unused = ours.load_state_dict(state, strict=False)
    assert missing == ["queries"]
    assert all(n.startswith("layers.3.ffn_words.") for n in unused)
    pictures, queries = torch.randn(2, 7, 24), ours.queries.expand(2, -1, -1)
    with torch.no_grad():
        if reads:
            ids = torch.tensor([[3, 9, 4], [8, 0, 0]])
            there = torch.tensor([[1, 1, 1], [1, 0, 0]])
            seen = torch.cat([torch.ones(2, 5, dtype=torch.long), there], 1)
            wanted = theirs(ids, attention_mask=seen, query_embeds=queries, encoder_hidden_states=pictures)
            found = ours(pictures, ids, seen.bool()[:, None, None])
        else:
            wanted, found = theirs(queries, encoder_hidden_states=pictures), ours(pictures)
    torch.testing.assert_close(found[:, :5], wanted.last_hidden_state[:, :5], atol=PARITY, rtol=0)


def test_it_has_the_size_of_the_published_one() -> None:
    """With 32 queries and `ln_vision`, which transformers keeps elsewhere."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    with torch.device("meta"):
        theirs = count(Blip2QFormerModel(Blip2QFormerConfig()))
        ours = count(Queries(QFormer.Config(), d_in=1408, vocab=0))
    assert ours == theirs + 32 * 768 + 2 * 1408


def test_an_item_alone_gives_what_it_gives_beside_a_longer_instruction() -> None:
    """Absolute 1e-6 on values of about 1; measured 3e-7."""
    torch.manual_seed(0)
    config = QFormer.Config(queries=3, dim=32, depth=3, heads=4, ffn=64, reads=True)
    made: Any = config.build(d_in=8, d_out=6, vocab=20)
    pictures = Features(torch.randn(8, 8), (Layout((2, 2)), Layout((4,))))
    long, short = torch.arange(7), torch.arange(2)
    both = Features(pictures.values, (Layout((2, 2)), Layout((2, 2))))
    together = made(both, (long, short)).split()
    for item, prompt, found in zip(both.split(), (long, short), together, strict=True):
        alone = made(Features(item, (Layout((2, 2)),)), (prompt,))
        torch.testing.assert_close(alone.values, found, atol=1e-6, rtol=0)


def test_an_instruction_that_is_too_long_is_refused() -> None:
    made: Any = QFormer.Config(queries=2, dim=8, depth=1, heads=2, ffn=8, reads=True, positions=4).build(
        d_in=4, d_out=4, vocab=9
    )
    with pytest.raises(ConfigError, match="an instruction of 5 tokens; the Q-Former reads at most 4"):
        made(Features(torch.randn(2, 4), (Layout((2,)),)), (torch.zeros(5, dtype=torch.long),))


def test_the_encoder_of_blip2_is_transformers() -> None:
    """All 257 tokens, before the last norm; the same layers, so equal to rounding."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    from quintet.components.encoders.hf_config import to_hf
    from quintet.components.encoders.weights import to_hf_state

    config = replace(EVA_CLIP_G.at(select="full", norm=True), width=32, depth=3, heads=4, ffn=64, trained_size=28)
    torch.manual_seed(0)
    ours = config.build().eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs: Any = Blip2VisionModel(Blip2VisionConfig(**to_hf(ours.config))).eval()
    theirs.load_state_dict(to_hf_state(ours))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(pixels), theirs(pixels).last_hidden_state, atol=PARITY, rtol=0)
