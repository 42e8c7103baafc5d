"""MoE-LLaVA's names: LanguageBind/MoE-LLaVA-Qwen-1.8B-4e, `MoELLaVAQWenForCausalLM`.

Source: PKU-YuanGroup/MoE-LLaVA at 6cb5f66 (`llava_qwen_moe.py`, `llava_arch.py`, `multimodal_projector/builder.py`,
`clip_encoder.py`); the names inside DeepSpeed's `MoE` layer are those that public converters of its files read. Whether
the release has the tower is from memory: both are read.
"""

from dataclasses import replace

import torch

from quintet.components.fusion.moe import MixtureOfExperts
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.rope import Rope
from quintet.model.mllm import MLLM
from quintet.model.released.common import TOWER, clip, mlp, qwen
from quintet.model.released.table import Layout, Rule, Way

__all__ = ["layout"]

_EXPERTS = Way(
    lambda theirs: (torch.stack(theirs), theirs[0]),
    lambda ours: ours[0].unbind(),
)
"""One tensor an expert, all of them in one here. The LLM's own weights in such a layer, which nothing reads, are not in
the file: they become the first expert's."""


def layout(model: MLLM.Config) -> Layout:
    """The table. The release is of the first Qwen, whose positions turn with base 10,000."""
    llm, fusion = model.llm, model.fusion
    assert isinstance(llm, Decoder.Config)
    assert isinstance(fusion, MixtureOfExperts.Config)
    rules: list[Rule] = []
    for place, index in enumerate(range(0, llm.depth, fusion.every)):
        moe = f"transformer.h.{index}.mlp.deepspeed_moe"
        experts = [f"{moe}.experts.deepspeed_experts.{n}" for n in range(fusion.experts)]
        rules.append(Rule(f"{moe}.gate.wg.weight", f"fusion.layers.{place}.router.weight"))
        for theirs, ours in (("w2", "gate_proj"), ("w1", "up_proj"), ("c_proj", "down_proj")):
            own = (f"fusion.layers.{place}.{ours}", f"llm.blocks.{index}.mlp.{ours}.weight")
            rules.append(Rule(tuple(f"{expert}.{theirs}.weight" for expert in experts), own, _EXPERTS))
    projector = mlp("transformer.mm_projector.image_spatial_proj", depth=2)
    tower = clip("transformer.image_tower.image_tower.vision_model.")
    first = replace(llm, rope=Rope(), source=llm.source and "Qwen/Qwen-1_8B")
    return Layout(replace(model, llm=first), (*rules, *projector, *tower, *qwen()), elsewhere=(TOWER,))
