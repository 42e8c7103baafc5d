"""LLaVA: one linear layer from CLIP's patches into Vicuna (Liu et al. 2023, Visual Instruction Tuning).

Notable: a single linear layer with a bias maps the penultimate layer of CLIP ViT-L/14 at 224 px, without the class
token, to 256 embeddings; in the first stage only that layer learns. Rates and batches are the paper's (2e-3 with 128,
2e-5 with 32); later scripts of its repository use others. The first stage's rows are single turns with a random brief
instruction, spelt as a conversation; the plain form without questions came with later code. The first code added
<im_start> and <im_end> around a picture of <im_patch>; here nothing is added, as in later code.
"""

from quintet.components.connectors.linear import Linear
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_V0_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import LLAVA_V0
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """LLaVA-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-2, select="patch")},
            connectors={"image": Linear.Config()},
            fusion=TokenFusion.Config(),
            llm=VICUNA_V0_7B,
        ),
        stages=(
            Stage(
                name="align",
                data=Data(name="cc3m-595k", kind="captions", rows=595_375),
                template=LLAVA_V0,
                train={"connectors": Rate(lr=2e-3)},
                batch=128,
            ),
            Stage(
                name="instruct",
                data=Data(name="llava-instruct-158k", kind="instructions", rows=157_712),
                template=LLAVA_V0,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=32,
                epochs=3.0,
            ),
        ),
        paper=Paper(
            title="Visual Instruction Tuning",
            authors="Liu et al.",
            year=2023,
            arxiv="2304.08485",
            derived={"connectors.image": "1024 · 4096 + 4096"},
            tokens={"image": 256},
        ),
    )
