"""Rows that many tables share: the names of LLaMA, of the first Qwen, of CLIP.

LLaMA's and CLIP's are transformers'. Qwen's are those of its own `modeling_qwen.py`, as public ports have them and an
exporter of Qwen-VL prints them: names, shapes, and that w2 of the feed-forward is gated and w1 is not.
"""

from quintet.model.released.table import DROP, Rule, rows

__all__ = ["LLM", "QKV", "TOWER", "clip", "llama", "mlp", "qwen"]

LLM = "llm.**"
TOWER = "encoders.image.**"
"""What a release often leaves out, because it did not train it."""
QKV = ("q_proj", "k_proj", "v_proj")


def llama(prefix: str = "") -> tuple[Rule, ...]:
    """`LlamaForCausalLM`, and those that are named like it, behind a prefix (`language_model.`)."""
    layer, block = f"{prefix}model.layers.*", "llm.blocks.*"
    return (
        Rule(f"{prefix}model.embed_tokens.**", "llm.embedding.**"),
        Rule(f"{layer}.input_layernorm.**", f"{block}.attend_norm.**"),
        # A buffer of old files; it is a function of the config.
        Rule(f"{layer}.self_attn.rotary_emb.inv_freq", DROP),
        Rule(f"{layer}.self_attn.**", f"{block}.attn.**"),
        Rule(f"{layer}.post_attention_layernorm.**", f"{block}.feed_norm.**"),
        Rule(f"{layer}.mlp.**", f"{block}.mlp.**"),
        Rule(f"{prefix}model.norm.**", "llm.norm.**"),
        Rule(f"{prefix}lm_head.**", "llm.lm_head.**"),
    )


def qwen() -> tuple[Rule, ...]:
    """`QWenLMHeadModel`: queries, keys and values are one tensor, block after block."""
    layer, block = "transformer.h.*", "llm.blocks.*"
    return (
        Rule("transformer.wte.**", "llm.embedding.**"),
        Rule(f"{layer}.ln_1.**", f"{block}.attend_norm.**"),
        *(
            Rule(f"{layer}.attn.c_attn.{kind}", tuple(f"{block}.attn.{name}.{kind}" for name in QKV), rows(parts=3))
            for kind in ("weight", "bias")
        ),
        Rule(f"{layer}.attn.c_proj.**", f"{block}.attn.o_proj.**"),
        Rule(f"{layer}.ln_2.**", f"{block}.feed_norm.**"),
        Rule(f"{layer}.mlp.w2.**", f"{block}.mlp.gate_proj.**"),
        Rule(f"{layer}.mlp.w1.**", f"{block}.mlp.up_proj.**"),
        Rule(f"{layer}.mlp.c_proj.**", f"{block}.mlp.down_proj.**"),
        Rule("transformer.ln_f.**", "llm.norm.**"),
        Rule("transformer.rotary_emb.inv_freq", DROP),
        Rule("lm_head.**", "llm.lm_head.**"),
    )


def clip(prefix: str) -> tuple[Rule, ...]:
    """`CLIPVisionModel` of transformers behind a prefix. What is behind the feature layer has no use here."""
    return (
        Rule(f"{prefix}embeddings.class_embedding", "encoders.image.cls"),
        Rule(f"{prefix}embeddings.patch_embedding.**", "encoders.image.patches.**"),
        Rule(f"{prefix}embeddings.position_embedding.weight", "encoders.image.positions"),
        Rule(f"{prefix}embeddings.position_ids", DROP),
        Rule(f"{prefix}pre_layrnorm.**", "encoders.image.pre_norm.**"),
        Rule(f"{prefix}encoder.layers.**", "encoders.image.layers.**"),
        Rule(f"{prefix}encoder.layers.*.**", DROP),
        Rule(f"{prefix}post_layernorm.**", "encoders.image.norm.**"),
        Rule(f"{prefix}post_layernorm.**", DROP),
    )


def mlp(theirs: str, *, depth: int) -> tuple[Rule, ...]:
    """Linear layers with activations between, numbered as in `nn.Sequential`."""
    return tuple(Rule(f"{theirs}.{2 * n}.**", f"connectors.image.project.layers.{n}.**") for n in range(depth))
