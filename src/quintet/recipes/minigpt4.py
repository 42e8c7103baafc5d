"""MiniGPT-4: BLIP-2's frozen eyes and one linear layer into Vicuna (Zhu et al. 2023, arXiv:2304.10592).

Notable: the only weights that ever train are one linear layer, in both stages; the encoder, its last norm, the Q-Former
and the LLM are frozen. The first stage has no prompt at all, the second makes it talk with 3,500 long descriptions. The
picture stands between <Img> and </Img>, which are plain text. In chat a system message is added that training never
saw.

The Q-Former is BLIP-2's, the one that was trained with Flan-T5-XXL: at full scale it is loaded, at the small scales
BLIP-2's second stage runs first. A frozen Q-Former that nobody taught would hand on noise.

The paper's second stage has 400 steps, the repository's configuration 1,000, of which 200 warm up: a fifth, as here.
Vicuna v0 in its 7B size: 13B is the paper's main one, with a layer of 768 × 5120.
"""

from dataclasses import replace

from quintet.components.connectors.qformer import QFormer
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.presets_llm import VICUNA_V0_7B
from quintet.model.mllm import MLLM
from quintet.recipes import blip2
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN
from quintet.recipes._templates_query import MINIGPT4, MINIGPT4_CHAT
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """MiniGPT-4 with Vicuna-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": EVA_CLIP_G.at(select="full")},
            connectors={"image": QFormer.Config(source="Salesforce/blip2-flan-t5-xxl")},
            llm=VICUNA_V0_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="laion-cc-sbu", kind="captions", rows=5_000_000),
                template=PLAIN,
                train={"connectors.image.project": Rate(lr=1e-4)},
                batch=256,
                steps=20_000,
                warmup=0.25,
                final=0.8,
                weight_decay=0.05,
            ),
            Stage(
                name="finetune",
                data=Data(name="cc_sbu_align", kind="instructions", rows=3_439),
                template=MINIGPT4,
                train={"connectors.image.project": Rate(lr=3e-5)},
                batch=12,
                steps=400,
                warmup=0.2,
                final=1 / 3,
                weight_decay=0.05,
            ),
        ),
        paper=Paper(
            title="MiniGPT-4: Enhancing Vision-Language Understanding with Advanced Large Language Models",
            authors="Zhu et al.",
            year=2023,
            arxiv="2304.10592",
            published={"connectors.image.project": "3.15 M"},
            derived={"connectors.image.project": "768 · 4096 + 4096"},
            tokens={"image": 32},
        ),
        chat=MINIGPT4_CHAT,
        before=(replace(blip2.recipe().stages[-1], name="blip2"),),
    )
