"""OpenFlamingo's names: openflamingo/OpenFlamingo-9B, the first release, on LLaMA-7B.

Source: mlfoundations/open_flamingo at e7d80ef (April 2023: `helpers.py`, `flamingo_lm.py`, `factory.py`, and
`get_checkpoint`, which keeps what trained). The LLM's layers and head, and the tower, are those that were published.
"""

import torch

from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.model.mllm import MLLM
from quintet.model.released.common import TOWER
from quintet.model.released.table import DROP, Layout, Rule, Way, rows

__all__ = ["layout"]

_EMBEDDING = Way(
    # The last three rows are <|endofchunk|>, <image> and <PAD>, in the order in which they were added.
    lambda theirs: (theirs[0][:-2], theirs[0][-2]),
    lambda ours: (torch.cat([ours[0], ours[1][None], torch.zeros_like(ours[1])[None]]),),
)
"""The row of <image> is the marker here. That of <PAD> is read nowhere."""


def layout(model: MLLM.Config) -> Layout:
    """The table."""
    fusion = model.fusion
    assert isinstance(fusion, GatedCrossAttention.Config)
    depth = model.llm.depth
    gated = [
        rule
        for place, index in enumerate(range(fusion.first, depth, fusion.every))
        for rule in _block(f"lang_encoder.model.layers.{index}.gated_cross_attn_layer", f"fusion.blocks.{place}")
    ]
    return Layout(
        model,
        (
            Rule("lang_encoder.model.embed_tokens.weight", ("llm.embedding.weight", "fusion.marker"), _EMBEDDING),
            *_perceiver(),
            *gated,
            # The same layers under the name of a list that also holds them.
            Rule("lang_encoder.gated_cross_attn_layers.**", DROP),
            Rule("lang_encoder.old_decoder_blocks.**", DROP),
        ),
        elsewhere=(TOWER, "llm.blocks.**", "llm.norm.**", "llm.lm_head.**"),
    )


def _block(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.attn_gate", f"{ours}.attend_gate"),
        Rule(f"{theirs}.ff_gate", f"{ours}.feed_gate"),
        Rule(f"{theirs}.attn.norm.**", f"{ours}.attend_norm.**"),
        *_attention(f"{theirs}.attn", f"{ours}.attn"),
        *_feed(f"{theirs}.ff", ours),
    )


def _perceiver() -> tuple[Rule, ...]:
    theirs, ours = "perceiver.layers.*", "connectors.image.layers.*"
    return (
        Rule("perceiver.latents", "connectors.image.latents"),
        Rule(f"{theirs}.0.norm_media.**", f"{ours}.features_norm.**"),
        Rule(f"{theirs}.0.norm_latents.**", f"{ours}.latents_norm.**"),
        *_attention(f"{theirs}.0", f"{ours}.attn"),
        *_feed(f"{theirs}.1", ours),
        Rule("perceiver.norm.**", "connectors.image.norm.**"),
    )


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.to_q.weight", f"{ours}.q_proj.weight"),
        Rule(f"{theirs}.to_kv.weight", (f"{ours}.k_proj.weight", f"{ours}.v_proj.weight"), rows(parts=2)),
        Rule(f"{theirs}.to_out.weight", f"{ours}.o_proj.weight"),
    )


def _feed(theirs: str, ours: str) -> tuple[Rule, ...]:
    """`nn.Sequential` of a norm, a linear layer, GELU and a linear layer."""
    return (
        Rule(f"{theirs}.0.**", f"{ours}.feed_norm.**"),
        Rule(f"{theirs}.1.weight", f"{ours}.mlp.up_proj.weight"),
        Rule(f"{theirs}.3.weight", f"{ours}.mlp.down_proj.weight"),
    )
