"""MoE-LLaVA-1.8B×4-Top2: feed-forward layers of a trained LLaVA become experts (Lin et al. 2024, arXiv:2401.15947).

Notable: three stages. The first two train a dense LLaVA; the third copies the feed-forward network of every second
layer four times, sends each token through two of the copies, and trains these and their routers alone, with a loss that
keeps the experts evenly used. About 2.2 B parameters work on a token, 3.1 B are there.

Where we differ: of the paper's four LLMs this is the one whose blocks our decoder has (Qwen-1.8B; StableLM and Phi-2
have layer norms, and Phi-2 parallel branches). The first Qwen's files need code of their own; Qwen1.5-1.8B has its
shape and is what is loaded. The feed-forward weights that the experts were copied from stay in the file of the LLM,
unread. Capacity 1.5 drops tokens in training only (`MixtureOfExperts.Config.capacity`).
"""

from dataclasses import replace

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.moe import MixtureOfExperts
from quintet.components.presets_llm import QWEN15_1_8B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN, VICUNA_V1
from quintet.training.stage import Data, Rate, Stage

CHAT = replace(VICUNA_V1, name="moe_llava", end="<|endoftext|>", added=("<|endoftext|>",))
"""{system} USER: <image>\\n{q} ASSISTANT: {a}<|endoftext|>USER: … (conv `qwen`)."""


def recipe() -> Recipe:
    """MoE-LLaVA with Qwen-1.8B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L_336.at(layer=-2, select="patch", fit="pad")},
            connectors={"image": Mlp.Config(depth=2)},
            fusion=MixtureOfExperts.Config(experts=4, top=2, every=2, capacity=1.5),
            llm=QWEN15_1_8B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="lcs-558k", kind="captions", rows=558_128),
                template=PLAIN,
                train={"connectors": Rate(lr=1e-3)},
                batch=256,
                fused=False,
            ),
            Stage(
                name="instruct",
                data=Data(name="hybrid-ft-964k", kind="instructions", rows=964_000),
                template=CHAT,
                train={"connectors": Rate(lr=2e-5), "llm": Rate(lr=2e-5)},
                batch=128,
                fused=False,
            ),
            Stage(
                name="experts",
                data=Data(name="llava-v1.5-mix665k", kind="instructions", rows=665_298),
                template=CHAT,
                train={"fusion": Rate(lr=2e-5)},
                batch=128,
                extra={"balance": 0.01},
            ),
        ),
        paper=Paper(
            title="MoE-LLaVA: Mixture of Experts for Large Vision-Language Models",
            authors="Lin et al.",
            year=2024,
            arxiv="2401.15947",
            published={"together": "3.1 B"},
            differs={
                "together": "the paper leaves out the encoder, 0.29 B, and the 12 feed-forward networks that became "
                "experts, 0.41 B",
            },
            derived={
                "fusion": "12 · (4 · 3 · 2048 · 5504 + 4 · 2048): twelve layers of four SwiGLU networks and a router",
                "connectors.image": "1024 · 2048 + 2048 + 2048 · 2048 + 2048",
            },
            tokens={"image": 576},
        ),
    )
