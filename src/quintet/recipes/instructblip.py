"""InstructBLIP: the queries read the instruction too (Dai et al. 2023, arXiv:2305.06500).

Notable: other words take other features from the same picture; the Q-Former gets the same instruction as the LLM. There
are no chat roles: picture, instruction, answer. Data sets are drawn with the square root of their size (the file is
made by `quintet data mix FILE… --power 0.5`), 13 of 26 are kept for testing. It starts from BLIP-2 with the same LLM,
whose projection stays frozen. With Flan-T5 that is published; with Vicuna it is not, so BLIP-2's second stage runs
first on BLIP-2's Q-Former, as the authors did (appendix). At the small scales it runs first for both. What reads words
begins fresh: the paper takes BERT's.

The paper trains the Q-Former alone; LAVIS also trains its projection (`released=True`). `ln_vision` belongs to the
Q-Former in both. The released Q-Former reads BERT's tokens, this one the LLM's (`connectors/qformer.py` says why).
"""

from dataclasses import replace

from quintet.components.connectors.qformer import QFormer
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.presets_llm import FLAN_T5_XL, VICUNA_V1_1_7B
from quintet.data.template import Template
from quintet.model.mllm import MLLM
from quintet.recipes import blip2
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_query import INSTRUCTBLIP, INSTRUCTBLIP_T5
from quintet.training.stage import Data, Rate, Stage


def recipe(*, released: bool = False) -> Recipe:
    """InstructBLIP with Vicuna-7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": EVA_CLIP_G.at(select="full")},
            connectors={"image": QFormer.Config(reads=True, source="Salesforce/blip2-opt-2.7b")},
            llm=VICUNA_V1_1_7B,
        ),
        stages=(
            _blip2(INSTRUCTBLIP),
            Stage(
                name="instruct",
                data=Data(name="instructblip-13-held-in", kind="instructions"),
                template=INSTRUCTBLIP,
                train={"connectors" if released else "connectors.image.qformer": Rate(lr=1e-5)},
                batch=128,
                steps=60_000,
                warmup=1_000 / 60_000,
                weight_decay=0.05,
            ),
        ),
        paper=Paper(
            title="InstructBLIP: Towards General-purpose Vision-Language Models with Instruction Tuning",
            authors="Dai et al.",
            year=2023,
            arxiv="2305.06500",
            derived={
                "connectors.image.qformer": "105165056 + 11 · (2 · 768 · 3072 + 3072 + 768 + 2 · 768) + (32000 + "
                "512) · 768: BLIP-2's, eleven feed-forwards for words, rows for Vicuna's tokens and for places",
                "connectors.image.project": "768 · 4096 + 4096",
            },
            trainable={"instruct": "188 M"},
            differs={"instruct": "the last layer's feed-forward for words, 4.7 M, which nothing reads, is not built"},
            tokens={"image": 32},
        ),
    )


def flan_t5() -> Recipe:
    """InstructBLIP with Flan-T5-XL."""
    base = recipe()
    connector = QFormer.Config(reads=True, source="Salesforce/blip2-flan-t5-xl", source_project=True)
    return replace(
        base,
        model=replace(base.model, llm=FLAN_T5_XL, connectors={"image": connector}),
        stages=(replace(base.stages[-1], template=INSTRUCTBLIP_T5, batch=192),),
        paper=replace(base.paper, derived={"connectors.image.project": "768 · 2048 + 2048"}),
        before=(_blip2(INSTRUCTBLIP_T5),),
    )


def _blip2(template: Template) -> Stage:
    """BLIP-2's second stage."""
    stage = blip2.recipe().stages[-1]
    return replace(stage, name="blip2", template=template, train={"connectors": Rate(lr=1e-4)})
