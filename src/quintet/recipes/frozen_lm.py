"""Frozen: a picture becomes two words that a language model, never changed, understands (Tsimpoukelli et al. 2021).

Notable: only the vision side learns, from scratch, through the LLM's frozen layers: an NF-ResNet-50's pooled vector is
mapped to two embeddings that stand before the caption. Questions, also with solved ones as examples before them, are
asked of the finished model as it is. arXiv:2106.13884.

The language model, 7B parameters on C4 with relative positions, was never released: LLaMA-7B stands in. Rate, batch,
picture size, templates and the number of prefix embeddings are memory; 40.3 M parameters that train, as later papers
count, are NF-ResNet-50 and a map to two embeddings of 4096. At the starter scale the vision encoder is the one that
ships with the package: from scratch it would take millions of captions.
"""

from quintet.components.connectors.prefix import Prefix
from quintet.components.encoders.nf_resnet import NFResNet
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import LLAMA_7B
from quintet.components.roles import ImageSpec
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates import FROZEN_CAPTION, FROZEN_VQA
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """Frozen (7B)."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": NFResNet.Config(image=ImageSpec(size=(224, 224), fit="squash"))},
            connectors={"image": Prefix.Config(tokens=2)},
            fusion=TokenFusion.Config(),
            llm=LLAMA_7B,
        ),
        stages=(
            Stage(
                name="captions",
                data=Data(name="cc3m", kind="captions", rows=3_318_333),
                template=FROZEN_CAPTION,
                train={"encoders": Rate(lr=3e-4), "connectors": Rate(lr=3e-4)},
                batch=128,
                betas=(0.9, 0.95),
                schedule="constant",
            ),
        ),
        chat=FROZEN_VQA,
        paper=Paper(
            title="Multimodal Few-Shot Learning with Frozen Language Models",
            authors="Tsimpoukelli et al.",
            year=2021,
            arxiv="2106.13884",
            derived={"connectors.image": "(2048 + 1) · 2 · 4096"},
            trainable={"captions": "40.3 M"},
            tokens={"image": 2},
        ),
    )
