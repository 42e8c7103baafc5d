"""LLaVA-1.5 with a quarter of the tokens: squares of four patches become one before the LLM reads them."""

# docs: start
from dataclasses import replace

from quintet.components.connectors.pool import AveragePool
from quintet.recipes import llava15
from quintet.recipes._recipe import Paper, Recipe


def recipe() -> Recipe:
    """LLaVA-1.5-7B with 2 × 2 average pooling."""
    base = llava15.recipe()
    return replace(
        base,
        model=replace(base.model, connectors={"image": AveragePool.Config(factor=2, depth=2)}),
        paper=Paper(
            title="A worked example",
            authors="Quintet",
            year=2026,
            arxiv="2310.03744",
            derived={"connectors.image": "1024 · 4096 + 4096 + 4096 · 4096 + 4096: pooling has no weights"},
            tokens={"image": 144},  # (24 / 2)²
        ),
    )


# docs: end
