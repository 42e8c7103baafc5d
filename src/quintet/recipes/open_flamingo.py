"""OpenFlamingo: Flamingo of open parts (Awadalla et al. 2023, arXiv:2308.01390).

Notable: the patches of CLIP ViT-L/14's last layer go through a resampler as wide as they are; gated blocks with eight
heads of 64 look at them at that width, before every fourth block of the LM, the fourth first. A column sees the last
picture before it (`look="all"` is its code's other setting). At the start the logits are the LM's, exactly.

The released OpenFlamingo-9B of March 2023 on LLaMA-7B, on which MultiModal-GPT builds; the paper's own models have MPT
and RedPajama-INCITE, whose blocks no fusion can stand around here. Data, rates and warm-up are the paper's (64 and 32
samples a GPU, 64 GPUs). It learns from both data sets in a step, LAION weighted 0.2; a stage here has one source, so
they follow each other. It is talked to as its evaluations ask questions.
"""

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.presets_llm import LLAMA_7B
from quintet.data.sources.pages import Pages
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_feature import OPEN_FLAMINGO, OPEN_FLAMINGO_PAIR
from quintet.training.stage import Data, Rate, Stage

MMC4 = Pages(similarity=0.24, pictures=6)
"""Pictures less like their sentence are left out, and those after the sixth (its code also cuts at 256 tokens)."""


def recipe() -> Recipe:
    """OpenFlamingo-9B on LLaMA-7B."""
    train = {"connectors": Rate(lr=1e-4), "fusion": Rate(lr=1e-4), "tokens": Rate(lr=1e-4)}
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-1, select="patch")},
            connectors={"image": Perceiver.Config(heads=8, head_dim=64, act="gelu")},
            fusion=GatedCrossAttention.Config(every=4, first=3, heads=8, head_dim=64, features=1024, act="gelu"),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="pairs",
                data=Data(name="laion-2b", kind="captions", rows=120_000_000),
                template=OPEN_FLAMINGO_PAIR,
                train=train,
                batch=4096,
                warmup=0.064,  # 1875 steps
                schedule="constant",
                weight_decay=0.1,
            ),
            Stage(
                name="interleaved",
                data=Data(name="mmc4", kind="interleaved", rows=60_000_000, pages=MMC4),
                template=OPEN_FLAMINGO_PAIR,
                train=train,
                batch=2048,
                warmup=0.064,
                schedule="constant",
                weight_decay=0.1,
            ),
        ),
        chat=OPEN_FLAMINGO,
        paper=Paper(
            title="OpenFlamingo: An Open-Source Framework for Training Large Autoregressive Vision-Language Models",
            authors="Awadalla et al.",
            year=2023,
            arxiv="2308.01390",
            derived={
                "connectors.image": "63,019,008: open_flamingo/src/helpers.py",
                "fusion": "8 · 139476994 + 4096: the same, and the row of <image>",
            },
            tokens={"image": 64},
        ),
    )
