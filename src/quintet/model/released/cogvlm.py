"""CogVLM's names: THUDM/cogvlm-chat-hf, `CogVLMForCausalLM`.

Sources: the names as ports of the released code read them (GGUF converters, PaddleMIX, a list of CogVLM2's shapes);
that the first release has the same is from memory. Queries, keys and values of both experts are one tensor, block
after block. In the last layer nothing reads more of the expert than keys and values; ours holds the rest as it is.
"""

import torch

from quintet.model.mllm import MLLM
from quintet.model.released.common import QKV, llama
from quintet.model.released.table import DROP, Layout, Rule, Way, rows

__all__ = ["layout"]

_ENDS = Way(
    lambda theirs: (torch.cat([end.flatten(0, -2) for end in theirs]),),
    lambda ours: tuple(end[None, None] for end in ours[0]),
)
"""Begin and end of a picture, float[1, 1, D] each, are two rows here."""


def layout(model: MLLM.Config) -> Layout:
    """The table."""
    attend, feed, block, expert = "model.layers.*.self_attn", "model.layers.*.mlp", "llm.blocks.*", "fusion.layers.*"
    vision, patch = "model.vision", "model.vision.patch_embedding"
    return Layout(
        model,
        (
            *(
                Rule(
                    f"{attend}.{mine}_expert_query_key_value.weight",
                    tuple(f"{ours}.attn.{name}.weight" for name in QKV),
                    rows(parts=3),
                )
                for mine, ours in (("language", block), ("vision", expert))
            ),
            Rule(f"{attend}.language_expert_dense.**", f"{block}.attn.o_proj.**"),
            Rule(f"{attend}.vision_expert_dense.**", f"{expert}.attn.o_proj.**"),
            Rule(f"{feed}.language_mlp.**", f"{block}.mlp.**"),
            Rule(f"{feed}.vision_mlp.**", f"{expert}.mlp.**"),
            Rule(f"{attend}.rotary_emb.inv_freq", DROP),
            Rule(f"{patch}.cls_embedding", "encoders.image.cls"),
            Rule(f"{patch}.position_embedding.weight", "encoders.image.positions"),
            Rule(f"{patch}.proj.**", "encoders.image.patches.**"),
            Rule(f"{vision}.transformer.layers.**", "encoders.image.layers.**"),
            Rule((f"{vision}.boi", f"{vision}.eoi"), "connectors.image.ends", _ENDS),
            Rule(f"{vision}.linear_proj.linear_proj.**", "connectors.image.linear.**"),
            Rule(f"{vision}.linear_proj.norm1.**", "connectors.image.norm.**"),
            Rule(f"{vision}.linear_proj.gate_proj.**", "connectors.image.gate.**"),
            Rule(f"{vision}.linear_proj.dense_h_to_4h.**", "connectors.image.up.**"),
            Rule(f"{vision}.linear_proj.dense_4h_to_h.**", "connectors.image.down.**"),
            *llama(),
        ),
    )
