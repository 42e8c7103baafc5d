"""Lynx: a resampler's prefix, and adapters behind the blocks of a frozen LLM (Zeng et al. 2023, arXiv:2307.02469).

Notable: 32 features made by a Perceiver of three layers as wide as the LLM stand before the text, and the LLM learns
through bottleneck adapters of half its width; neither its weights nor the encoder's change. The paper has an adapter
behind every block, the released configuration behind every second one (`released=True`).

Pretraining begins at 224 px and ends at 420 px; the model here has one size, 420, in which it was released. Batches are
not given: ours are those that make 14 billion tokens of the pretraining's steps and 3 billion of the tuning's. The
encoder is EVA's of one billion weights, of which BLIP-2's file lacks the last layer.
"""

from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.fusion.adapters import Adapters
from quintet.components.presets_llm import VICUNA_V1_1_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN_EOS
from quintet.recipes._templates_query import LYNX
from quintet.training.stage import Data, Rate, Stage


def recipe(*, released: bool = False) -> Recipe:
    """Lynx with Vicuna-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": EVA_CLIP_G.at(select="full", size=420)},
            connectors={"image": Perceiver.Config(latents=32, depth=3, heads=8, head_dim=64, width=4096, act="gelu")},
            fusion=Adapters.Config(every=2 if released else 1),
            llm=VICUNA_V1_1_7B,
        ),
        stages=(
            _stage("pretrain", lr=1e-4, batch=1_536, steps=100_000),
            _stage("enlarge", lr=1e-5, batch=1_536, steps=10_000),
            _stage("instruct", lr=2e-5, batch=768, steps=20_000),
        ),
        paper=Paper(
            title="What Matters in Training a GPT4-Style Language Model with Multimodal Inputs?",
            authors="Zeng et al.",
            year=2023,
            arxiv="2307.02469",
            derived={
                "fusion": f"{16 if released else 32} · (2 · 4096 + 4096 · 2048 + 2048 + 2048 · 4096 + 4096 + 1)",
            },
            tokens={"image": 32},
        ),
    )


def _stage(name: str, *, lr: float, batch: int, steps: int) -> Stage:
    tuning = name == "instruct"
    return Stage(
        name=name,
        data=Data(name="lynx-50-tasks" if tuning else "lynx-120m", kind="instructions" if tuning else "captions"),
        template=LYNX if tuning else PLAIN_EOS,
        train={"connectors": Rate(lr=lr), "fusion": Rate(lr=lr)},
        batch=batch,
        steps=steps,
        warmup=0.05,
        schedule="linear",
        weight_decay=0.01,
    )
