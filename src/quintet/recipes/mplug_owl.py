"""mPLUG-Owl: an abstractor, and what trains changes sides (Ye et al. 2023, arXiv:2304.14178).

Notable: in the first stage the encoder and the abstractor train and the LLM is frozen; in the second they are frozen
and the LLM gets adapters, with text-only and picture instructions mixed. A picture takes 65 columns: 64 queries and a
learned feature that ends it. The encoder's last norm is applied to all of its 257 tokens.

The paper gives 2,000 steps to the second stage, the repository 3 epochs (4,236 steps). The batch of the first stage is
given in tokens, 2.1 million: with 65 for a picture and some 15 for its caption, about 26,000 samples.
"""

from quintet.components.connectors.abstractor import Abstractor
from quintet.components.encoders.presets import CLIP_L
from quintet.components.lora import Lora
from quintet.components.presets_llm import LLAMA_7B
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import PLAIN_EOS
from quintet.recipes._templates_query import MPLUG_OWL
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """mPLUG-Owl with LLaMA-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": CLIP_L.at(layer=-1, select="full", norm=True, fit="squash")},
            connectors={"image": Abstractor.Config()},
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="pretrain",
                data=Data(name="laion-coyo-cc-coco", kind="captions"),
                template=PLAIN_EOS,
                train={"encoders": Rate(lr=1e-4), "connectors": Rate(lr=1e-4)},
                batch=26_000,
                steps=50_000,
                warmup=2_000 / 50_000,
                betas=(0.9, 0.98),
                weight_decay=0.1,
            ),
            Stage(
                name="instruct",
                data=Data(
                    name="alpaca-vicuna-baize-llava150k", kind="instructions", mixed={"text": 0.62}, rows=361_481
                ),
                template=MPLUG_OWL,
                train={"llm": Rate(lr=2e-5, lora=Lora(rank=8, alpha=32, dropout=0.05, targets=("q_proj", "v_proj")))},
                batch=256,
                steps=2_000,
                betas=(0.9, 0.98),
                weight_decay=0.1,
            ),
        ),
        paper=Paper(
            title="mPLUG-Owl: Modularization Empowers Large Language Models with Multimodality",
            authors="Ye et al.",
            year=2023,
            arxiv="2304.14178",
            derived={
                "connectors.image": "105,097,216: in its released code, six layers (four projections, SwiGLU of 4096, "
                "norms), 64 queries, 1024 · 4096 + 4096 and the end",
            },
            tokens={"image": 65},
        ),
    )
