"""mPLUG-Owl's names: MAGAer13/mplug-owl-llama-7b, `MplugOwlForConditionalGeneration`.

Source: X-PLUG/mPLUG-Owl at 0f3068f, `mPLUG-Owl/mplug_owl/modeling_mplug_owl.py`: names, and that the tower's queries,
keys and values stand head by head.
"""

from quintet.components.encoders.vision import Vision
from quintet.model.mllm import MLLM
from quintet.model.released.common import QKV, llama
from quintet.model.released.table import Layout, Rule, heads

__all__ = ["layout"]


def layout(model: MLLM.Config) -> Layout:
    """The table."""
    tower = model.encoders["image"]
    assert isinstance(tower, Vision.Config)
    return Layout(model, (*_tower(tower), *_abstractor(), *llama("language_model.")))


def _tower(config: Vision.Config) -> tuple[Rule, ...]:
    vision, layer = "vision_model", "encoders.image.layers.*"
    block = f"{vision}.encoder.layers.*"
    return (
        Rule(f"{vision}.embeddings.cls_token", "encoders.image.cls"),
        Rule(f"{vision}.embeddings.patch_embed.weight", "encoders.image.patches.weight"),
        Rule(f"{vision}.embeddings.position_embedding", "encoders.image.positions"),
        Rule(f"{vision}.embeddings.pre_layernorm.**", "encoders.image.pre_norm.**"),
        Rule(f"{block}.input_layernorm.**", f"{layer}.layer_norm1.**"),
        *(
            Rule(
                f"{block}.self_attn.query_key_value.{kind}",
                tuple(f"{layer}.self_attn.{name}.{kind}" for name in QKV),
                heads(config.heads),
            )
            for kind in ("weight", "bias")
        ),
        Rule(f"{block}.self_attn.dense.**", f"{layer}.self_attn.out_proj.**"),
        Rule(f"{block}.post_attention_layernorm.**", f"{layer}.layer_norm2.**"),
        Rule(f"{block}.mlp.**", f"{layer}.mlp.**"),
        Rule(f"{vision}.post_layernorm.**", "encoders.image.norm.**"),
    )


def _abstractor() -> tuple[Rule, ...]:
    layer, ours = "abstractor.encoder.layers.*.crossattention", "connectors.image.layers.*"
    attend, out = f"{layer}.attention", f"{layer}.output"
    return (
        Rule("query_tokens", "connectors.image.queries"),
        Rule(f"{layer}.norm1.**", f"{ours}.norm_query.**"),
        Rule(f"{layer}.normk.**", f"{ours}.norm_key.**"),
        Rule(f"{attend}.query.**", f"{ours}.q_proj.**"),
        Rule(f"{attend}.key.**", f"{ours}.k_proj.**"),
        Rule(f"{attend}.value.**", f"{ours}.v_proj.**"),
        Rule(f"{out}.out_proj.**", f"{ours}.o_proj.**"),
        Rule(f"{out}.norm2.**", f"{ours}.norm.**"),
        Rule(f"{out}.mlp.w1.**", f"{ours}.gate_proj.**"),
        Rule(f"{out}.mlp.w3.**", f"{ours}.up_proj.**"),
        Rule(f"{out}.mlp.ffn_ln.**", f"{ours}.ffn_norm.**"),
        Rule(f"{out}.mlp.w2.**", f"{ours}.down_proj.**"),
        Rule("abstractor.visual_fc.**", "connectors.image.project.**"),
        Rule("abstractor.vit_eos", "connectors.image.end"),
    )
