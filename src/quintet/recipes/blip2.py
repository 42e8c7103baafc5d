"""BLIP-2: a Q-Former between a frozen encoder and a frozen LLM (Li et al. 2023, arXiv:2301.12597).

Notable: 32 queries of width 768 take what the LLM gets of a picture, whatever its size; nothing else trains. They learn
to see before there is an LLM: in the first stage one Q-Former under three attention masks tells which caption is of
which picture (ITC), whether one fits (ITM), and writes it (ITG). What reads captions, with BERT's words, is the part
`connectors.image.captions`; it trains there alone, and such a model also finds pictures by captions.

The second stage has one of two kinds of LLM: OPT reads the 32 features in front of its start token, Flan-T5 (`flan_t5`)
reads them with its encoder and answers with its decoder. Training sees captions only; questions are asked zero-shot as
"Question: … Answer:".

The paper lets the rate fall to 5e-5 in both stages, LAVIS to 1e-5; its warm-up is 2,000 steps, in LAVIS 5,000 of the
first stage. `ln_vision`, the encoder's last norm, trains with the Q-Former, as in LAVIS. The Q-Former begins as
BERT-base; at the small scales its words begin as the LLM's. OPT's end of an answer is a line's end.
"""

from dataclasses import replace

from quintet.components.connectors.qformer import Captions, QFormer
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.presets_llm import FLAN_T5_XL, OPT_2_7B
from quintet.data.template import Template
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Paper, Recipe
from quintet.recipes._templates_query import BLIP2_ALIGN, BLIP2_OPT, BLIP2_OPT_CAPTION, BLIP2_T5, BLIP2_T5_CAPTION
from quintet.training.stage import Data, Rate, Stage

ALIGN = Stage(
    name="align",
    data=Data(name="blip-129m", kind="captions", rows=129_000_000),
    template=BLIP2_ALIGN,
    objective="align",
    train={"connectors.image.qformer": Rate(lr=1e-4), "connectors.image.captions": Rate(lr=1e-4)},
    batch=1680,
    steps=250_000,
    warmup=2_000 / 250_000,
    final=0.5,
    betas=(0.9, 0.98),
    weight_decay=0.05,
)
"""The first stage."""


def recipe() -> Recipe:
    """BLIP-2 with OPT-2.7B."""
    return Recipe(
        model=MLLM.Config(
            encoders={"image": EVA_CLIP_G.at(select="full")},
            connectors={"image": QFormer.Config(captions=Captions.Config(), source="google-bert/bert-base-uncased")},
            llm=OPT_2_7B,
        ),
        stages=(ALIGN, _generative(BLIP2_OPT_CAPTION, batch=1920)),
        paper=Paper(
            title="BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language "
            "Models",
            authors="Li et al.",
            year=2023,
            arxiv="2301.12597",
            derived={
                "connectors.image.qformer": "12 · (4 · 768 · 769 + 2 · 768 · 3072 + 3072 + 768 + 4 · 768) + 6 · "
                "(2 · 768 · 769 + 2 · 1409 · 768 + 2 · 768) + 32 · 768 + 2 · 768 + 2 · 1408",
                "connectors.image.project": "768 · 2560 + 2560",
            },
            trainable={"align": "188 M", "generative": "107 M"},
            tokens={"image": 32},
        ),
        chat=BLIP2_OPT,
    )


def flan_t5() -> Recipe:
    """BLIP-2 with Flan-T5-XL."""
    base = recipe()
    return replace(
        base,
        model=replace(base.model, llm=FLAN_T5_XL),
        stages=(ALIGN, _generative(BLIP2_T5_CAPTION, batch=1520)),
        paper=replace(base.paper, derived={**base.paper.derived, "connectors.image.project": "768 · 2048 + 2048"}),
        chat=BLIP2_T5,
    )


def _generative(template: Template, *, batch: int) -> Stage:
    return Stage(
        name="generative",
        data=Data(name="blip-129m", kind="captions", rows=129_000_000),
        template=template,
        train={"connectors.image.qformer": Rate(lr=1e-4), "connectors.image.project": Rate(lr=1e-4)},
        batch=batch,
        steps=80_000,
        warmup=2_000 / 80_000,
        final=0.5,
        betas=(0.9, 0.98),
        weight_decay=0.05,
    )
