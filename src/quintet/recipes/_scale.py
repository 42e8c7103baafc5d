"""One recipe, three scales. A scale swaps the pretrained parts, their sizes and the amounts; never the structure.

full      the published parts by their hub names, the published batches and rates
starter   the small trained parts that ship with the package, Scenes as data; minutes on two cores
tiny      random weights of a few thousand parameters; milliseconds, for tests
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from quintet.components.starter import STARTER_LLM
from quintet.errors import ConfigError
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.training.stage import Rate, Stage

__all__ = ["SCALES", "Scale", "at_scale"]

Scale = Literal["full", "starter", "tiny"]
SCALES: tuple[Scale, ...] = ("full", "starter", "tiny")

STARTER_RATES = {"encoders": 3e-4, "connectors": 2e-3, "regions": 2e-3, "fusion": 2e-3, "llm": 1e-3, "tokens": 2e-3}
"""Peak rates by kind of part: those of the papers are for widths of thousands, these are for 192."""

ALIGNMENT_RATE = 1e-2
"""Of connectors and fusion while all else is frozen: at 2e-3 only some seeds found digits and words (docs/log.md)."""

STARTER_AMOUNTS: Mapping[str, Mapping[str, int | float]] = {
    "captions": {"batch": 32, "epochs": 1.0},
    "instructions": {"batch": 16, "epochs": 1.0},
    "interleaved": {"batch": 16, "epochs": 1.0},
    "regions": {"batch": 16, "epochs": 1.0},
    "text": {"batch": 16, "epochs": 1.0},
}


def at_scale(recipe: Recipe, scale: str) -> Recipe:
    """The recipe at a scale."""
    if scale == "full":
        return recipe
    if scale not in SCALES:
        raise ConfigError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
    small = _starter_model(recipe.model) if scale == "starter" else _tiny_model(recipe.model)
    stage = _starter_stage if scale == "starter" else _tiny_stage
    return replace(recipe, model=small, stages=tuple(stage(s) for s in recipe.stages))


def _starter_model(model: MLLM.Config) -> MLLM.Config:
    return replace(
        model,
        encoders={k: e.starter() for k, e in model.encoders.items()},
        connectors={k: c.starter() for k, c in model.connectors.items()},
        regions=model.regions and model.regions.starter(),
        fusion=model.fusion.starter(),
        llm=STARTER_LLM,
    )


def _tiny_model(model: MLLM.Config) -> MLLM.Config:
    return replace(
        model,
        encoders={k: e.tiny() for k, e in model.encoders.items()},
        connectors={k: c.tiny() for k, c in model.connectors.items()},
        regions=model.regions and model.regions.tiny(),
        fusion=model.fusion.tiny(),
        llm=model.llm.tiny(),
    )


def _starter_stage(stage: Stage) -> Stage:
    aligns = not any(part.startswith(("llm", "encoders")) for part in stage.train)
    train = {part: _starter_rate(part, rate, aligns) for part, rate in stage.train.items()}
    amounts = STARTER_AMOUNTS[stage.data.kind]
    return replace(
        stage,
        train=train,
        batch=int(amounts["batch"]),
        epochs=float(amounts["epochs"]),
        steps=None,
        row=1024,
        micro=8192,
        final=0.02,
    )


def _starter_rate(part: str, rate: Rate, aligns: bool) -> Rate:
    kind = part.split(".")[0]
    return replace(rate, lr=ALIGNMENT_RATE if aligns and kind in ("connectors", "fusion") else STARTER_RATES[kind])


def _tiny_stage(stage: Stage) -> Stage:
    return replace(stage, batch=4, steps=2, row=512, micro=1024, warmup=0.0)
