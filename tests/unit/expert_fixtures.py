"""Tiny models with something inside their LLM, rows for them, and the same LLM with nothing around its blocks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from conftest import byte_tokenizer
from quintet.components.fusion.token import TokenFusion
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.template import Template
from quintet.lab.pretrained import build_model
from quintet.lab.recipe import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.values import Batch, Media, Node, Origin, Ref, Sample, Text, Turn
from systems import shown

VOCAB = 512


def tiny(name: str, **fusion: Any) -> tuple[Recipe, Any]:
    """A recipe at the tiny scale and its model as training finds it; `fusion` replaces settings of its fusion."""
    recipe = at_scale(load_recipe(name)[1], "tiny")
    if fusion:
        recipe = replace(recipe, model=replace(recipe.model, fusion=replace(recipe.model.fusion, **fusion)))
    return recipe, build_model(recipe.model, vocab=VOCAB).eval()


def sample(*, pictures: int, question: str = "What is it?", answer: str = "A dog.") -> Sample:
    media = tuple(Media("image", Ref(f"{n}.png")) for n in range(pictures))
    turns = (Turn("user", (*media, Text(question))), Turn("assistant", (Text(answer),)))
    return Sample(Node(turns), Origin("memory", 1))


def batch(recipe: Recipe, samples: Sequence[Sample]) -> Batch:
    """A row a sample."""
    columns, spec = recipe.model.columns("image", (32, 32)), recipe.model.spec("image")
    rows = [[recipe.template.tokens(s, byte_tokenizer(), lambda medium: ((32, 32), columns))] for s in samples]
    items = [item for row in rows for tokens in row for item in tokens.items]
    return collate(rows, {n: Loaded(load_image(shown(n).ref, spec)) for n in range(len(items))}, pad=0)


def spelt(template: Template) -> str:
    """A question without a picture and its answer."""
    made = template.tokens(sample(pictures=0), byte_tokenizer(), lambda medium: ((32, 32), 1))
    return byte_tokenizer().decode(made.ids.tolist(), keep_special=True)


def hidden(model: Any, made: Batch) -> Tensor:
    with model.inference():
        return model(made).hidden


def bare(model: Any) -> Any:
    """The same encoder, connector and LLM with nothing around the blocks."""
    found = replace(model.config, fusion=TokenFusion.Config()).build(vocab=VOCAB).eval()
    found.encoders, found.connectors, found.llm = model.encoders, model.connectors, model.llm
    return found


@torch.no_grad()
def scramble(module: torch.nn.Module, *, seed: int = 1) -> None:
    """Other weights, far from what they began as."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter))
