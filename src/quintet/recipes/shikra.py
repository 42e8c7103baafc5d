"""Shikra: boxes and points as plain numerals, anywhere in questions and answers (Chen et al. 2023, arXiv:2306.15195).

Notable: no vocabulary, no position encoder and no head for coordinates. They are written with three decimals as shares
of the padded square, in the words of both sides; the LLM and one linear layer learn them as text. Stages and rates are
the paper's (section 5.1): 100,000 steps on reorganised sets, then a mix that is half LLaVA-Instruct and Shikra-RD,
whose length it does not give (three epochs in its repository, which also begins with a stage on referring expressions).
Its linear layer begins as LLaVA's (memory), here fresh.
"""

from quintet.components.connectors.linear import Linear
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_V1_1_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_regions import SHIKRA
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """Shikra-7B."""
    train = {"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)}
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-2, select="patch", fit="pad")},
            connectors={"image": Linear.Config()},
            fusion=TokenFusion.Config(),
            llm=VICUNA_V1_1_7B,
        ),
        stages=(
            Stage(
                name="reorganised",
                data=Data(name="shikra-reorganised", kind="regions"),
                template=SHIKRA,
                train=train,
                batch=64,
                steps=100_000,
            ),
            Stage(
                name="dialogue",
                data=Data(name="llava-instruct-150k+shikra-rd", kind="regions"),
                template=SHIKRA,
                train=train,
                batch=64,
                epochs=3.0,
            ),
        ),
        starter=0.85,
        paper=Paper(
            title="Shikra: Unleashing Multimodal LLM's Referential Dialogue Magic",
            authors="Chen et al.",
            year=2023,
            arxiv="2306.15195",
            derived={"connectors.image": "1024 · 4096 + 4096"},
            tokens={"image": 256},
        ),
    )
