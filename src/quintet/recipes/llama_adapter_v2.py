"""LLaMA-Adapter V2: prompts, biases, scales and norms of a frozen LLaMA (Gao et al. 2023, arXiv:2304.15010).

Notable: two kinds of data train two sets of weights that have nothing in common. Pictures with captions train what
reads pictures (the connector and the gate of the first layer, whose prompts its features are: early fusion).
Instructions without pictures train prompts of the upper 31 layers, biases (from 0) and scales (from 1) of all linear
layers, and the norms. So instructions spoil no picture, and none on pictures are needed.

Biases, scales and norms are 0.04 % of LLaMA, as the paper prints, and 0.06 % with the prompts; the 5 M beside it would
be 0.07 %. Its abstract says that 14 M are added; what reads pictures here, sized as in the code, is 60.7 M.

Where paper and code differ, this is the paper: 20 features as prompts of the first layer alone. The code adds ten to
the prompts of all 31 layers, as the first LLaMA-Adapter does with one (`visual="added"`), trains these prompts with the
captions, and has no scales. The paper mixes both kinds of data in one training; here one stage follows the other, as in
the code. Rates are the code's before it multiplies them by batch / 256; its captions last 150 epochs of split data,
here one, and at the starter scale three times the samples of the instructions. The norm behind the last layer, 4,096
numbers, stays as it is. The picture's mark is as in `llama_adapter`.
"""

from quintet.components.connectors.query_blocks import QueryBlocks
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.prefix import AdaptionPrompts
from quintet.components.presets_llm import LLAMA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import ALPACA
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """LLaMA-Adapter-V2-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-1, select="full", norm=True)},
            connectors={"image": QueryBlocks.Config(queries=20)},
            fusion=AdaptionPrompts.Config(length=10, skip=1, visual="first", tuned=True),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="captions",
                data=Data(name="coco-captions", kind="captions", rows=567_000),
                template=ALPACA,
                train={"connectors": Rate(lr=1e-4), "fusion.early": Rate(lr=1e-4)},
                batch=32,
                weight_decay=0.05,
                betas=(0.9, 0.95),
            ),
            Stage(
                name="instruct",
                data=Data(name="gpt-4-llm-52k", kind="text", rows=52_002),
                template=ALPACA,
                train={"fusion.prompts": Rate(lr=1e-3), "fusion.tuning": Rate(lr=1e-3)},
                batch=32,
                epochs=4.0,
                weight_decay=0.02,
                betas=(0.9, 0.95),
            ),
        ),
        starter=0.9,
        starter_shares={"captions": 3},
        paper=Paper(
            title="LLaMA-Adapter V2: Parameter-Efficient Visual Instruction Model",
            authors="Gao et al.",
            year=2023,
            arxiv="2304.15010",
            derived={
                "fusion.prompts": "31 · (10 · 4096 + 32)",
                "fusion.early": "32: a gate a head",
                "fusion.tuning": "32 · (2 · (5 · 4096 + 2 · 11008) + 2 · 4096): outputs of linear layers, twice; norms",
            },
            trainable={"instruct": "5 M"},
            differs={"instruct": "2.98 M, the paper's 0.04 %, and 1.27 M of prompts"},
            tokens={"image": 20},
        ),
    )
