"""Qwen-VL's names: Qwen/Qwen-VL and Qwen-VL-Chat, `QWenLMHeadModel`.

Sources: the printed module of the released model and splits of its weights, as a public exporter has them (names,
shapes, and that the tower's queries, keys and values stand head by head). The resampler's positions are fixed sines,
which are computed here.
"""

from quintet.components.encoders.vision import Vision
from quintet.model.mllm import MLLM
from quintet.model.released.common import QKV, qwen
from quintet.model.released.table import DROP, Layout, Rule, heads, rows, turned

__all__ = ["layout"]


def layout(model: MLLM.Config) -> Layout:
    """The table. The vocabulary is the file's: its 151,936 rows have the special tokens of pictures among them."""
    tower = model.encoders["image"]
    assert isinstance(tower, Vision.Config)
    return Layout(model, (*qwen(), *_tower(tower), *_resampler()))


def _tower(config: Vision.Config) -> tuple[Rule, ...]:
    visual, layer = "transformer.visual", "encoders.image.layers.*"
    block = f"{visual}.transformer.resblocks.*"
    return (
        Rule(f"{visual}.conv1.weight", "encoders.image.patches.weight"),
        Rule(f"{visual}.positional_embedding", "encoders.image.positions"),
        Rule(f"{visual}.ln_pre.**", "encoders.image.pre_norm.**"),
        Rule(f"{block}.ln_1.**", f"{layer}.layer_norm1.**"),
        *(
            Rule(
                f"{block}.attn.in_proj.{kind}",
                tuple(f"{layer}.self_attn.{name}.{kind}" for name in QKV),
                heads(config.heads),
            )
            for kind in ("weight", "bias")
        ),
        Rule(f"{block}.attn.out_proj.**", f"{layer}.self_attn.out_proj.**"),
        Rule(f"{block}.ln_2.**", f"{layer}.layer_norm2.**"),
        Rule(f"{block}.mlp.c_fc.**", f"{layer}.mlp.fc1.**"),
        Rule(f"{block}.mlp.c_proj.**", f"{layer}.mlp.fc2.**"),
    )


def _resampler() -> tuple[Rule, ...]:
    visual, ours = "transformer.visual", "connectors.image"
    pool = f"{visual}.attn_pool"
    return (
        Rule(f"{pool}.query", f"{ours}.queries"),
        Rule(f"{pool}.pos_embed", DROP),
        Rule(f"{pool}.kv_proj.weight", f"{ours}.enter.weight"),
        Rule(f"{pool}.ln_q.**", f"{ours}.norm_query.**"),
        Rule(f"{pool}.ln_kv.**", f"{ours}.norm_key.**"),
        # torch's MultiheadAttention: block after block, unlike the tower's.
        *(
            Rule(f"{pool}.attn.in_proj_{kind}", tuple(f"{ours}.attend.{name}.{kind}" for name in QKV), rows(parts=3))
            for kind in ("weight", "bias")
        ),
        Rule(f"{pool}.attn.out_proj.**", f"{ours}.attend.o_proj.**"),
        Rule(f"{visual}.ln_post.**", f"{ours}.norm.**"),
        Rule(f"{visual}.proj", f"{ours}.project.weight", turned),
    )
