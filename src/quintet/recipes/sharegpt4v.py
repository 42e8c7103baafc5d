"""ShareGPT4V: LLaVA-1.5 on captions so good that half of the vision encoder learns from them (Chen et al. 2023).

Notable: LLaVA-1.5's parts, but in pre-training, on 1.2 M detailed captions, the upper half of CLIP's layers (from index
12 on), the connector and the LLM all train at one rate. The connector begins as LLaVA-1.5's first stage leaves it,
which is the stage `align` here; CLIP is frozen again while the model is instructed. arXiv:2311.12793.
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
    """ShareGPT4V-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L_336.at(layer=-2, select="patch", fit="pad")},
            connectors={"image": Mlp.Config(depth=2)},
            fusion=TokenFusion.Config(),
            llm=VICUNA_7B,
        ),
        stages=(
            Stage(
                name="align",
                data=Data(name="lcs-558k", kind="captions", rows=558_128),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-3)},
                batch=256,
            ),
            Stage(
                name="pretrain",
                data=Data(name="sharegpt4v-pt", kind="captions", rows=1_246_000),
                template=PLAIN,
                train={"encoders": Rate(lr=2e-5, upper=0.5), "connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=256,
            ),
            Stage(
                name="instruct",
                data=Data(name="sharegpt4v-mix665k", kind="instructions", rows=665_000),
                template=VICUNA_V1,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
            ),
        ),
        paper=Paper(
            title="ShareGPT4V: Improving Large Multi-Modal Models with Better Captions",
            authors="Chen et al.",
            year=2023,
            arxiv="2311.12793",
            derived={"connectors.image": "1024 · 4096 + 4096 + 4096 · 4096 + 4096"},
            tokens={"image": 576},
        ),
    )
