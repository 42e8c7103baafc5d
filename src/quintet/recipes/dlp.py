"""DLP: what the queries should say is learnt from text first (Jian et al. 2023, arXiv:2307.07063).

Notable: the P-Former reads captions, no pictures, and learns the 32 soft prompts from which the frozen LLM says each of
them again. Then BLIP-2's two stages follow, in which the queries are also drawn to the prompts of their picture's
caption: the mean squared distance, 10 times beside ITC, ITM and ITG (where the projection to the LLM learns already),
100 times beside the language modelling loss. The P-Former is not used any more after that.

The sentences are 12 M (from memory), the pictures 4 M. Batches are 128 a GPU, of which we take eight. The Q-Former
reads the LLM's tokens, as the P-Former does (released: both read BERT's and begin as BERT-base, here fresh);
`connectors/qformer.py` and `fusion/pformer.py` say where else the two differ from the released ones.
"""

from dataclasses import replace

from quintet.components.connectors.qformer import Captions, QFormer
from quintet.components.fusion.pformer import PFormer
from quintet.recipes import blip2
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_query import BLIP2_OPT_CAPTION, DLP_TEXT
from quintet.training.stage import Data, Rate, Stage


def recipe() -> Recipe:
    """DLP with OPT-2.7B."""
    base = blip2.recipe()
    connector = QFormer.Config(captions=Captions.Config(source="", vocab=0))
    generative = Stage(
        name="generative",
        data=Data(name="coco-vg-sbu-cc3m-4m", kind="captions", rows=4_000_000),
        template=BLIP2_OPT_CAPTION,
        train={"connectors.image.qformer": Rate(lr=1e-4), "connectors.image.project": Rate(lr=1e-4)},
        batch=1024,
        epochs=10,
        warmup=2_000 / 39_063,
        final=0.1,
        weight_decay=0.05,
        extra={"alignment": 100.0},
    )
    return Recipe(
        model=replace(base.model, connectors={"image": connector}, fusion=PFormer.Config()),
        stages=(
            Stage(
                name="prompts",
                data=Data(name="laion-sentences-12m", kind="captions", rows=12_000_000),
                template=DLP_TEXT,
                train={"fusion": Rate(lr=1e-4)},
                objective="prompts",
                batch=1024,
                epochs=5,
                warmup=2_000 / 58_594,
                final=0.1,
                weight_decay=0.05,
            ),
            replace(
                generative,
                name="align",
                objective="align",
                train={"connectors": Rate(lr=1e-4)},
                warmup=5_000 / 39_063,
                extra={"alignment": 10.0},
            ),
            generative,
        ),
        starter=0.77,
        paper=Paper(
            title="Bootstrapping Vision-Language Learning with Decoupled Language Pre-training",
            authors="Jian et al.",
            year=2023,
            arxiv="2307.07063",
            derived={
                **base.paper.derived,
                # BERT-base's layers and places; OPT's words and a hidden one; 768 to 32 · 768, 768, 2560 and 256.
                "fusion": "12 · 7087872 + (512 + 1 + 2) · 768 + 50273 · 768 + 769 · (32 · 768 + 768 + 2560 + 256) + 1",
            },
            tokens={"image": 32},
        ),
        chat=base.chat,
    )
