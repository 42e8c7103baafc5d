"""Two vision encoders side by side: DINOv2 and SigLIP, channels joined (Karamcheti et al. 2024, Prismatic VLMs).

Notable: both see the same 384 px in the same 27 × 27 grid, so each of 729 tokens has the features of both; pictures are
squeezed to the square ("naive resize"); a connector of three layers, after the first four times as wide as the
features; one stage, in which connector and LLM train and nothing was aligned before. The released DINOv2 has four
register tokens beside its patches, ours is the one without. arXiv:2402.07865; facts are memory of paper and code.
"""

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.mix import Mix
from quintet.components.encoders.presets import DINOV2_L, SIGLIP_SO400M_384
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import VICUNA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import VICUNA_V1
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """Prism-DINOSigLIP-7B."""
    towers = (
        DINOV2_L.at(layer=-2, select="patch", size=384, norm=False),
        SIGLIP_SO400M_384.at(layer=-2, select="patch"),
    )
    return Recipe(
        model=MLLM.Config(
            encoders={"image": Mix.Config(encoders=towers, image=SIGLIP_SO400M_384.spec, join="channels")},
            connectors={"image": Mlp.Config(depth=3, widen=4)},
            fusion=TokenFusion.Config(),
            llm=VICUNA_7B,
        ),
        stages=(
            Stage(
                name="instruct",
                data=Data(name="llava-v1.5-mix665k", kind="instructions", rows=665_298),
                template=VICUNA_V1,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
                weight_decay=0.1,
            ),
        ),
        starter=0.8,
        paper=Paper(
            title="Prismatic VLMs: Investigating the Design Space of Visually-Conditioned Language Models",
            authors="Karamcheti et al.",
            year=2024,
            arxiv="2402.07865",
            derived={"connectors.image": "(1024 + 1152 + 1) · 8704 + (8704 + 1) · 4096 + (4096 + 1) · 4096"},
            tokens={"image": 729},
        ),
    )
