"""LLaMA-Adapter: ten learned prompts in each upper layer of a frozen LLaMA (Zhang et al. 2023, arXiv:2303.16199).

Notable: 1.2 M parameters learn. Prompts are looked at by an attention with a softmax of its own behind a gate that
starts at zero, so training begins at the LLM itself. The multimodal variant adds one feature of the picture, made of
CLIP's class tokens at several depths, to all prompts.

Where we differ: the picture has a mark in the text, one column whose embedding is zero; the paper has none, and there
the picture acts on all columns, here on those behind the mark, which stands before the instruction. The paper names
neither CLIP's size nor the depths: ViT-L/14 and every sixth layer are ours. Rate and batch are the paper's (the code
multiplies 9e-3 by batch / 256).
"""

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.prefix import AdaptionPrompts
from quintet.components.presets_llm import LLAMA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import ALPACA
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """LLaMA-Adapter-7B, multimodal."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=(6, 12, 18, 24), select="cls")},
            connectors={"image": Mlp.Config(depth=2)},
            fusion=AdaptionPrompts.Config(length=10, skip=2),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="instruct",
                data=Data(name="scienceqa", kind="instructions", rows=12_726),
                template=ALPACA,
                train={"connectors": Rate(lr=9e-3), "fusion": Rate(lr=9e-3)},
                batch=64,
                epochs=5.0,
                warmup=0.4,
                weight_decay=0.02,
                betas=(0.9, 0.95),
            ),
        ),
        starter=0.85,
        paper=Paper(
            title="LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention",
            authors="Zhang et al.",
            year=2023,
            arxiv="2303.16199",
            published={"fusion.prompts": "1.2 M"},
            derived={"fusion.prompts": "30 · (10 · 4096 + 32): prompts and gates"},
            trainable={"instruct": "1.2 M"},
            differs={
                "fusion.prompts": "1.23 M, which is 1.2 M once rounded",
                "instruct": "1.2 M is the variant without pictures; what projects them is the rest, and the paper "
                "does not say how large",
            },
            tokens={"image": 1},
        ),
    )
