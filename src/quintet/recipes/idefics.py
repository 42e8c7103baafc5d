"""IDEFICS: Flamingo on open parts and open web pages (Laurençon et al. 2023, OBELICS, arXiv:2306.16527).

Notable: queries and keys are normed, head by head, in the resampler and in the gated blocks, which are built as LLaMA's
own are (RMSNorm, SwiGLU) and stand before every fourth block, the first first; pictures stand between two
`<fake_token_around_image>`; the rows of added tokens learn apart from the frozen vocabulary. Everything of OpenCLIP
ViT-H/14's last layer goes in, the class token too. A column sees the last picture before it; `look="all"` is there.

UltraChat, text alone, is 29 % of its instructions (of tokens; here of rows); Wikipedia's 6 % of pre-training are not
among Scenes' pages. Rates, steps and batches are the model card's (idefics-9b and -instruct, sequences of 1024 and 2048
tokens). Without its z-loss of 1e-3 in pre-training. Only the released run's 65,000 steps, not the 200,000 that were
planned.
"""

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.presets import CLIP_H
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.presets_llm import LLAMA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_feature import IDEFICS, IDEFICS_INSTRUCT
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """IDEFICS-9B-instruct."""
    rate = Rate(lr=1e-5)
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_H.at(layer=-1, select="full", fit="squash")},
            connectors={"image": Perceiver.Config(heads=16, head_dim=96, act="relu", qk_norm=True)},
            fusion=GatedCrossAttention.Config(
                every=4,
                heads=32,
                head_dim=128,
                features=1280,
                act="swiglu",
                expand=11_008 / 4096,
                norm="rms",
                qk_norm=True,
            ),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="obelics+laion+wikipedia+pmd", kind="interleaved", rows=141_000_000),
                template=IDEFICS,
                train={"connectors": rate, "fusion": rate, "tokens": rate},
                batch=1280,  # 1.31 M tokens
                steps=65_000,
                warmup=0.031,  # 2000 steps
                schedule="linear",
                final=0.6,
                weight_decay=0.1,
                row=1024,
            ),
            Stage(
                name="instruct",
                data=Data(name="idefics-instruct", kind="instructions", mixed={"text": 0.29}),
                template=IDEFICS_INSTRUCT,
                train={"encoders": rate, "connectors": rate, "fusion": rate, "llm": rate},
                batch=100,  # 205 K tokens
                steps=22_000,
                warmup=0.045,  # 1000 steps
                schedule="linear",
                final=0.12,
                weight_decay=0.1,
            ),
        ),
        starter=0.6,
        paper=Paper(
            title="OBELICS: An Open Web-Scale Filtered Dataset of Interleaved Image-Text Documents",
            authors="Laurençon et al.",
            year=2023,
            arxiv="2306.16527",
            derived={
                "connectors.image": "125,961,984: transformers' IdeficsForVisionText2Text at idefics-9b's settings",
                "fusion": "1,434,519,568 + 4096: the same, and the row of <image>",
            },
            tokens={"image": 64},
        ),
    )
