"""MiniGPT-4's and MiniGPT-v2's names: what they trained, and LAVIS' Q-Former.

    minigpt4      `prerained_minigpt4_7b.pth` (one linear layer) and, in the same folder, the Q-Former that it stands
                  on: LAVIS' `blip2_pretrained_flant5xxl.pth`
    minigpt_v2    `minigptv2_checkpoint.pth`: a linear layer, and adapters on the LLM's queries and values

Sources: Vision-CAIR/MiniGPT-4 at d94738a (`minigpt4.py`, `minigpt_v2.py`, `base_model.py`; `runner_base.py` saves what
trains; peft 0.2.0). The names of LAVIS' file are those of its Q-Former with BERT's halves for text cut away; that
the file also has `t5_proj` and BERT's position numbers is from memory.
"""

from quintet.components.lora import Lora
from quintet.model.mllm import MLLM
from quintet.model.released.common import LLM, TOWER
from quintet.model.released.table import DROP, Layout, Rule, Way

__all__ = ["minigpt4", "minigpt_v2"]

_LORA = Lora(rank=64, alpha=16)
_ADDED = Way(lambda theirs: (_LORA.scale * (theirs[1].float() @ theirs[0].float()),), lambda ours: ours)
"""(α / r) · B A, which is added to the LLM's weight."""


def minigpt4(model: MLLM.Config) -> Layout:
    """The table of both files."""
    ours = "connectors.image.qformer"
    layer, mine = "Qformer.bert.encoder.layer.*", f"{ours}.layers.*"
    attention = tuple(
        rule
        for theirs, own in (("attention", "attention"), ("crossattention", "cross"))
        for rule in (
            Rule(f"{layer}.{theirs}.self.query.**", f"{mine}.{own}.q_proj.**"),
            Rule(f"{layer}.{theirs}.self.key.**", f"{mine}.{own}.k_proj.**"),
            Rule(f"{layer}.{theirs}.self.value.**", f"{mine}.{own}.v_proj.**"),
            Rule(f"{layer}.{theirs}.output.dense.**", f"{mine}.{own}.o_proj.**"),
            Rule(f"{layer}.{theirs}.output.LayerNorm.**", f"{mine}.{own}.norm.**"),
        )
    )
    return Layout(
        model,
        (
            Rule("llama_proj.**", "connectors.image.project.**"),
            Rule("query_tokens", f"{ours}.queries"),
            Rule("ln_vision.**", f"{ours}.norm_picture.**"),
            Rule("Qformer.bert.embeddings.LayerNorm.**", f"{ours}.norm.**"),
            Rule("Qformer.bert.embeddings.position_ids", DROP),
            *attention,
            Rule(f"{layer}.intermediate_query.dense.**", f"{mine}.ffn.up.**"),
            Rule(f"{layer}.output_query.dense.**", f"{mine}.ffn.down.**"),
            Rule(f"{layer}.output_query.LayerNorm.**", f"{mine}.ffn.norm.**"),
            # To T5, in whose place Vicuna stands.
            Rule("t5_proj.**", DROP),
        ),
        elsewhere=(TOWER, LLM),
    )


def minigpt_v2(model: MLLM.Config) -> Layout:
    """The table. The norm behind the tower never trained and was never loaded: it is as it was made."""
    peft = "llama_model.base_model.model.model.layers.*.self_attn"
    adapters = tuple(
        Rule(
            (f"{peft}.{name}.lora_A.weight", f"{peft}.{name}.lora_B.weight"),
            f"llm.blocks.*.attn.{name}.weight",
            _ADDED,
            adds=True,
        )
        for name in ("q_proj", "v_proj")
    )
    return Layout(
        model,
        (Rule("llama_proj.**", "connectors.image.project.**"), *adapters),
        elsewhere=(TOWER, LLM),
        fixed={"encoders.image.norm.weight": 1.0, "encoders.image.norm.bias": 0.0},
    )
