"""MultiModal-GPT: OpenFlamingo that learns to follow instructions by adapters (Gong et al. 2023, arXiv:2305.04790).

Notable: everything of OpenFlamingo-9B is frozen; low-rank adapters learn in the LM's attention and in the gated blocks,
attention and feed-forward layers; text alone and pictures share one template in Alpaca's style, with a block
`### Image:`. A batch is half pictures, half text.

The first stages are OpenFlamingo's, whose released weights it starts from: no part can name them as its source, so
`quintet show` counts these stages too, and a run from scratch has them. Its code has one projection `to_kv` where
ours are two, so our adapters have 16 more rows there.
"""

from dataclasses import replace

from quintet.components.lora import Lora
from quintet.recipes import open_flamingo
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_feature import MULTIMODAL_GPT
from quintet.training.stage import Data, Rate, Stage

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def recipe() -> Recipe:
    """MultiModal-GPT-9B."""
    base = open_flamingo.recipe()
    llm = Lora(rank=16, alpha=16.0, targets=ATTENTION)
    fusion = replace(llm, targets=(*ATTENTION, "up_proj", "down_proj"))
    return Recipe(
        model=base.model,
        stages=(
            *base.stages,
            Stage(
                name="instruct",
                # LLaVA 158 K, A-OKVQA 5000, COCO 512, OCR-VQA 512, MiniGPT-4 3.5 K, and as much text.
                data=Data(name="multimodal-gpt", kind="instructions", mixed={"text": 0.5}, rows=167_500),
                template=MULTIMODAL_GPT,
                train={"llm": Rate(lr=1e-5, lora=llm), "fusion": Rate(lr=1e-5, lora=fusion)},
                batch=256,
            ),
        ),
        starter=0.63,
        paper=Paper(
            title="MultiModal-GPT: A Vision and Language Model for Dialogue with Humans",
            authors="Gong et al.",
            year=2023,
            arxiv="2305.04790",
            derived=base.paper.derived,
            tokens=base.paper.tokens,
        ),
    )
