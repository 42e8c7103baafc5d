"""MobileVLM V2: a small LLM and a projector that leaves a quarter of the tokens (Chu et al. 2024, arXiv:2402.03766).

Notable: 144 tokens; after two linear layers the patches are averaged 2 × 2, and one depthwise convolution with a skip
is all that tells positions (LDPv2; `Ldp.Config(version=1)` is the first MobileVLM's). The LLM trains in the first stage
already, on ShareGPT4V's captions, more slowly than the connector. This is the 1.7B model, on MobileLLaMA-1.4B.
"""

from quintet.components.connectors.ldp import Ldp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import MOBILELLAMA_1_4B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN, VICUNA_V1
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """MobileVLM V2 1.7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L_336.at(layer=-2, select="patch", fit="pad")},
            connectors={"image": Ldp.Config(version=2)},
            fusion=TokenFusion.Config(),
            llm=MOBILELLAMA_1_4B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="sharegpt4v-pt", kind="captions", rows=1_246_000),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-3), "llm": Rate(lr=2e-5)},
                batch=256,
            ),
            Stage(
                name="multitask",
                data=Data(name="mobilevlm-v2-ft-mix2m", kind="instructions", rows=2_400_000),
                template=VICUNA_V1,
                train={"connectors": Rate(lr=4e-5), "llm": Rate(lr=4e-5)},
                batch=128,
            ),
        ),
        paper=Paper(
            title="MobileVLM V2: Faster and Stronger Baseline for Vision Language Model",
            authors="Chu et al.",
            year=2024,
            arxiv="2402.03766",
            published={"together": "1.7 B", "llm": "1.4 B", "connectors.image": "6.32 M"},
            differs={
                "together": "1.66 B, which is 1.7 B once rounded",
                "llm": "1.36 B, which is 1.4 B once rounded",
            },
            derived={
                "connectors.image": "(1024 + 1) · 2048 + (2048 + 1) · 2048 + (9 + 1) · 2048: two layers, and a 3 × 3 "
                "convolution of each channel by itself",
            },
            tokens={"image": 144},
        ),
    )
