"""LLaMA-Adapter's names: `llama_adapter_len10_layer30_release.pth`, the adapter for text.

Source: OpenGVLab/LLaMA-Adapter at 521a09d (`alpaca_finetuning_v1`: `llama/model.py`, `extract_adapter_…py`).
The multimodal adapter of that paper was not released, so this one is the recipe's without pictures. The released
LLaMA-Adapter V2 for pictures is another model than the paper's (ten visual queries added to the prompts of all layers,
behind CLIP's projection to 768), and has no table.
"""

from dataclasses import replace

from quintet.components.fusion.prefix import AdaptionPrompts
from quintet.model.mllm import MLLM
from quintet.model.released.common import LLM
from quintet.model.released.table import DROP, Layout, Rule, rows

__all__ = ["layout"]


def layout(model: MLLM.Config) -> Layout:
    """The table. All prompts are one tensor, the lowest adapted layer first; every layer has a gate, adapted or not."""
    fusion = model.fusion
    assert isinstance(fusion, AdaptionPrompts.Config)
    count = model.llm.depth - fusion.skip
    prompts = tuple(f"fusion.prompts.{n}.prompt" for n in range(count))
    gates = tuple(Rule(f"layers.{n + fusion.skip}.attention.gate", f"fusion.prompts.{n}.gate") for n in range(count))
    return Layout(
        replace(model, encoders={}, connectors={}),
        (
            Rule("adapter_query.weight", prompts, rows(parts=count)),
            *gates,
            Rule("layers.*.attention.gate", DROP),
        ),
        elsewhere=(LLM,),
    )
