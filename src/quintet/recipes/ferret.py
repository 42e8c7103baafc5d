"""Ferret: refers to and grounds anything, by coordinates and a feature together (You et al. 2023, arXiv:2310.07704).

Notable: a region in a question is spelt as discrete coordinates and followed by one continuous feature, which a
spatial-aware sampler makes of CLIP's features inside it; so a point, a box, a scribble and a mask of any form are
referred to alike. A region in an answer is coordinates alone. The projector begins as LLaVA's of its first stage, which
the paper does not train again; here there is one stage, as published.
"""

from dataclasses import replace

from quintet.components.connectors.linear import Linear
from quintet.components.connectors.region import RegionSampler
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_V1_1_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_regions import FERRET
from quintet.training.stage import Data, Rate, Stage

VICUNA_V1_3_7B = replace(VICUNA_V1_1_7B, source="lmsys/vicuna-7b-v1.3")


def recipe() -> Recipe:
    """Ferret-7B."""
    rate = Rate(lr=2e-5)
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L_336.at(layer=-2, select="patch", fit="squash")},
            connectors={"image": Linear.Config()},
            regions=RegionSampler.Config(),
            fusion=TokenFusion.Config(),
            llm=VICUNA_V1_3_7B,
        ),
        stages=(
            Stage(
                name="grit",
                data=Data(name="grit", kind="regions", rows=1_100_000),
                template=FERRET,
                train={"connectors": rate, "regions": rate, "llm": rate},
                batch=128,
                epochs=3.0,
            ),
        ),
        starter=0.85,
        paper=Paper(
            title="Ferret: Refer and Ground Anything Anywhere at Any Granularity",
            authors="You et al.",
            year=2023,
            arxiv="2310.07704",
            derived={
                "connectors.image": "1024 · 4096 + 4096",
                "regions": "44,069,900: the sampler of its released code",
            },
            tokens={"image": 576},
        ),
    )
