"""LLaVA-1.5: CLIP's patches at 336 px through a two-layer MLP into Vicuna (Liu et al. 2023, arXiv:2310.03744).

Notable: 576 tokens an image from the penultimate layer; pictures padded to a square with CLIP's mean colour; the first
stage drops the question and learns captions plainly; the answer's format is asked for in the question ("Answer the
question using a single word or phrase.").
"""

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN, VICUNA_V1
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """LLaVA-1.5-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L_336.at(layer=-2, select="patch", fit="pad")},
            connectors={"image": Mlp.Config(depth=2)},
            fusion=TokenFusion.Config(),
            llm=VICUNA_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="lcs-558k", kind="captions", rows=558_128),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-3)},
                batch=256,
            ),
            Stage(
                name="instruct",
                data=Data(name="llava-v1.5-mix665k", kind="instructions", rows=665_298),
                template=VICUNA_V1,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
            ),
        ),
        paper=Paper(
            title="Improved Baselines with Visual Instruction Tuning",
            authors="Liu et al.",
            year=2023,
            arxiv="2310.03744",
            derived={"connectors.image": "1024 · 4096 + 4096 + 4096 · 4096 + 4096"},
            tokens={"image": 576},
        ),
    )
