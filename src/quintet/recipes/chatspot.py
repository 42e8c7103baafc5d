"""ChatSpot: an instruction points at what it means, by a point, a box or any outline (Zhao et al. 2023, 2307.09474).

Notable: a region is a list of as many normalised points as it takes, written between <box> and </box> in the question;
there is no region encoder, and one linear layer after CLIP. Not stated and ours: CLIP's layer and size (224 px, as the
name ViT-L/14 implies), the form of the numbers (three decimals), Vicuna's version, and that nothing of the LLM learns
in the first stage, where the paper freezes "the majority" of it.
"""

from quintet.components.connectors.linear import Linear
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_V1_1_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_regions import CHATSPOT
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """ChatSpot on Vicuna-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-2, select="patch")},
            connectors={"image": Linear.Config()},
            fusion=TokenFusion.Config(),
            llm=VICUNA_V1_1_7B,
        ),
        stages=(
            Stage(
                name="align",
                data=Data(name="mgvlid-image", kind="captions"),
                template=CHATSPOT,
                train={"connectors": Rate(lr=2e-3)},
                batch=128,
                epochs=3.0,
            ),
            Stage(
                name="refer",
                data=Data(name="mgvlid-region", kind="regions"),
                template=CHATSPOT,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
                epochs=3.0,
            ),
        ),
        paper=Paper(
            title="ChatSpot: Bootstrapping Multimodal LLMs via Precise Referring Instruction Tuning",
            authors="Zhao et al.",
            year=2023,
            arxiv="2307.09474",
            derived={"connectors.image": "1024 · 4096 + 4096"},
            tokens={"image": 256},
        ),
    )
