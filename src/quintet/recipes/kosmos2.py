"""Kosmos-2: grounding in words of its own (Peng et al. 2023, arXiv:2306.14824).

Notable: 1,024 tokens name the bins of a 32 × 32 grid, and a box is the bins of its upper left and its lower right
corner behind the phrase it belongs to: <phrase>a dog</phrase><object><patch_index_0044><patch_index_0863></object>.
Everything trains. Starts from Kosmos-1; the encoder's features are normed, made of length 1, and pooled by 64 latent
queries.

The paper counts tokens: 419 thousand in a batch of the first stage, of which 215 are pairs; ours are samples. The paper
writes <p> and <box><loc_k>; the released code and transformers <phrase> and <object><patch_index_k>, as here. The
released decoder has sinusoids where Kosmos-1's paper has xPos. Rates and amounts of instruction tuning are not given:
those of Kosmos-1 are used. The starter scale has 16 × 16 bins, for pictures of 64 pixels a side, whose tokens begin
alike where they are near; and of the paper's mixture the pairs.
"""

from dataclasses import replace

from quintet.components.connectors.resampler import AttentivePooling
from quintet.components.encoders.presets import CLIP_L
from quintet.components.llms.magneto import Magneto
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_query import KOSMOS2_CAPTION, KOSMOS2_CHAT
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """Kosmos-2, 1.6B."""
    pretrain = Stage(
        name="pretrain",
        data=Data(name="grit-text-pairs-interleaved", kind="captions", rows=91_000_000),
        template=KOSMOS2_CAPTION,
        train={part: Rate(lr=2e-4) for part in ("encoders", "connectors", "llm")},
        batch=4_000,  # 419K tokens an update, of which pairs of about 100 take half
        steps=60_000,
        warmup=375 / 60_000,
        schedule="linear",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        clip=2.0,
    )
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-1, select="full", norm=True, fit="squash")},
            connectors={"image": AttentivePooling.Config(unit=True)},
            llm=Magneto.Config(vocab=65_037, positions="sinusoid"),
        ),
        stages=(
            pretrain,
            replace(
                pretrain,
                name="instruct",
                data=Data(name="llava-unnatural-flan-grit", kind="regions"),
                template=KOSMOS2_CHAT,
                train={part: Rate(lr=2e-5) for part in ("encoders", "connectors", "llm")},
                batch=1_072,
                steps=10_000,
                warmup=375 / 10_000,
            ),
        ),
        starter_rates={"encoders": 3e-5},
        paper=Paper(
            title="Kosmos-2: Grounding Multimodal Large Language Models to the World",
            authors="Peng et al.",
            year=2023,
            arxiv="2306.14824",
            published={"together": "1.6 B"},
            differs={"together": "1.34 B, CLIP's 0.30 B and 0.02 B; 1.3 B and 0.3 B add up to it"},
            derived={"connectors.image": "1024 · 2048 + 2048 + 64 · 2048 + 4 · (2048 · 2048 + 2048)"},
            tokens={"image": 64},
        ),
    )
