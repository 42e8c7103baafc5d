"""What a recipe comes to before anything runs: parameters, what trains, tokens, memory, FLOPs.

The model is built on the meta device: real shapes, no memory, no weights, no network. Figures of the paper stand beside
ours, printed ones apart from arithmetic, and where ours is not the printed one the recipe says why. What a stage costs
is computed in `quintet.lab.cost`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from quintet.components.encoders.convnext import ConvNeXt
from quintet.components.encoders.vision import Vision
from quintet.lab.cost import TEXT_TOKENS, Cost, Memory, head_flops, token_flops, unread
from quintet.lab.run import STARTER_PICTURES
from quintet.model.mllm import MLLM
from quintet.recipes._figures import ENCODERS, agrees, arithmetic, printed
from quintet.recipes._recipe import Recipe
from quintet.training.optim import rate_of, set_trainable
from quintet.training.stage import Stage

__all__ = ["TOGETHER", "Check", "Learning", "Shown", "StageView", "checks_of", "llm_flops", "show"]

TOGETHER = "together"
"""In figures of parameters: the whole model."""


@dataclass(frozen=True)
class Learning:
    """What of a part learns in a stage."""

    parameters: int
    lr: float
    how: str
    """Where it is not all of it: adapters, upper layers."""


@dataclass(frozen=True)
class StageView:
    """What one stage trains and costs."""

    name: str
    data: str
    trainable: int
    share: float
    """Of all parameters."""
    learning: Mapping[str, Learning]
    """By part."""
    batch: int
    steps: int | None
    """None where the size of the data is not known."""
    memory: Memory
    flops_per_sample: float

    @property
    def rates(self) -> dict[str, float]:
        """Part → peak learning rate."""
        return {part: each.lr for part, each in self.learning.items()}

    def to_json(self) -> dict[str, Any]:
        """As `show --json` has it."""
        facts = {k: v for k, v in vars(self).items() if k not in ("name", "memory", "learning")}
        learning = {part: vars(each) for part, each in self.learning.items()}
        return facts | {"rates": self.rates, "learning": learning, "memory_bytes": self.memory.to_json()}


@dataclass(frozen=True)
class Check:
    """A figure that is held against ours."""

    what: str
    found: int
    stated: str
    """As it is printed, "3.15 M", or the terms it is computed from."""
    kind: Literal["printed", "arithmetic"]
    why: str = ""
    """Why ours is another, where it is."""

    @property
    def equal(self) -> bool:
        """Arithmetic holds exactly, what is printed within 1 %."""
        return agrees(self.found, self.stated) if self.kind == "printed" else arithmetic(self.stated) == self.found

    @property
    def off(self) -> float:
        """How far ours is above the stated figure, as a share of it."""
        value = printed(self.stated)[0] if self.kind == "printed" else arithmetic(self.stated)
        return self.found / value - 1

    def to_json(self) -> dict[str, Any]:
        """As `show --json` has it."""
        return vars(self) | {"equal": self.equal}


@dataclass(frozen=True)
class Shown:
    """Everything that `quintet show` prints."""

    recipe: str
    scale: str
    parts: dict[str, int]
    """Part → parameters."""
    unread: int
    """Parameters among them that nothing reads once the system is finished: experts were copied from them."""
    tokens: dict[str, int]
    """Modality → tokens an item of the size in `sizes` takes."""
    sizes: dict[str, tuple[int, ...]]
    """Modality → the size of the item that is shown: height and width of an image, pixels."""
    stages: tuple[StageView, ...]
    checks: tuple[Check, ...]
    experts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Modality → what stands before an expert's words → its weights, or its class: they tell of it in words. What they
    hold and compute, and the columns of their words, are in no figure here."""

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def memory_bytes(self) -> int:
        """Of the stage that needs most."""
        return max(stage.memory.total for stage in self.stages)

    @property
    def flops_per_sample(self) -> float:
        """Of the last stage, forward and backward."""
        return self.stages[-1].flops_per_sample

    def to_json(self) -> dict[str, Any]:
        """The form that scripts rely on (design.md, section 6)."""
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "parameters": self.parameters,
            "unread": self.unread,
            "parts": {name: {"parameters": count} for name, count in self.parts.items()},
            "stages": {stage.name: stage.to_json() for stage in self.stages},
            "tokens": self.tokens,
            "sizes": self.sizes,
            "experts": self.experts,
            "memory_bytes": self.memory_bytes,
            "flops_per_sample": self.flops_per_sample,
            "text_tokens": TEXT_TOKENS,
            "checks": [check.to_json() for check in self.checks],
        }


def show(name: str, recipe: Recipe, *, scale: str = "full") -> Shown:
    """The figures of a recipe, which is at `scale` already. The paper's are compared at full scale only."""
    with torch.device("meta"):
        model = recipe.build()
    config = model.config
    parts = {part: _count(module) for part, module in model.parts().items()}
    tokens = {kind: config.layout(kind, config.spec(kind).size).count for kind in config.encoders}
    idle = unread(model)
    stages: list[StageView] = []
    for stage in recipe.stages:
        stages.append(_stage(model, stage, scale=scale))
        model.fold()  # as after each stage of a run
    experts = {
        kind: {label: e.source or type(e).__qualname__.split(".")[0] for label, e in each.items()}
        for kind, each in config.experts.items()
    }
    trained = {stage.name: stage.trainable for stage in stages}
    checks = tuple(checks_of(recipe, parts=parts, trained=trained, tokens=tokens)) if scale == "full" else ()
    sizes = {kind: config.spec(kind).size for kind in config.encoders}
    return Shown(name, scale, parts, idle, tokens, sizes, tuple(stages), checks, experts)


def checks_of(
    recipe: Recipe, *, parts: Mapping[str, int], trained: Mapping[str, int], tokens: Mapping[str, int]
) -> list[Check]:
    """All figures that a recipe is held against, at full scale, with ours: of parts, of stages, and of items."""
    paper, found = recipe.paper, []
    for part, figure in paper.published.items():
        why = paper.differs.get(part, "")
        found.append(Check(f"parameters of {part}", _sum(parts, part), str(figure), "printed", why))
    found += [Check(f"parameters of {p}", _sum(parts, p), how, "arithmetic") for p, how in paper.derived.items()]
    for kind, encoder in recipe.model.encoders.items():
        if isinstance(encoder, Vision.Config | ConvNeXt.Config) and encoder.source in ENCODERS:
            part, figure = f"encoders.{kind}", ENCODERS[encoder.source]
            why = "no projection behind it"
            if isinstance(encoder, Vision.Config):
                why = f"{encoder.num_run} of its {encoder.depth} layers run, and no projection behind them"
            found.append(Check(f"parameters of {part}", _sum(parts, part), figure, "printed", why))
    for stage, figure in paper.trainable.items():
        why = paper.differs.get(stage, "")
        found.append(Check(f"trainable in {stage}", trained.get(stage, 0), str(figure), "printed", why))
    found += [Check(f"tokens of one {k}", tokens.get(k, 0), f"{n:,}", "arithmetic") for k, n in paper.tokens.items()]
    return found


def llm_flops(recipe: Recipe, stage: Stage) -> tuple[float, float]:
    """FLOPs of the LLM in training, forward and backward: (per token read, per token predicted).

    For a share of the machine's peak while training: it leaves out attention's own products and the encoders (whose
    features may come from the cache), so that share is a lower bound.
    """
    if not stage.reads:
        return 0.0, 0.0
    with torch.device("meta"):
        model = recipe.build()
    set_trainable(model, stage.train)
    return token_flops(model.llm), head_flops(model.llm)


def _stage(model: MLLM, stage: Stage, *, scale: str) -> StageView:
    set_trainable(model, stage.train)
    cost = Cost(model, stage)
    # Below full scale the rows are those of Scenes, of the same kind (`quintet.lab.run`).
    data, rows = (stage.data.name, stage.data.rows) if scale == "full" else ("scenes", STARTER_PICTURES)
    learning = {
        part: Learning(_learnt(module), rate.lr, rate.how)
        for part, module in model.parts().items()
        if (rate := rate_of(part, stage.train))
    }
    return StageView(
        name=stage.name,
        data=data,
        trainable=_learnt(model),
        share=_learnt(model) / _count(model),
        learning=learning,
        batch=stage.batch,
        steps=stage.num_steps(rows) if rows is not None else stage.steps,
        memory=cost.memory,
        flops_per_sample=cost.flops,
    )


def _sum(parts: Mapping[str, int], name: str) -> int:
    """Parameters of a part and all below it, or of all parts."""
    return sum(n for part, n in parts.items() if name == TOGETHER or f"{part}.".startswith(f"{name}."))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _learnt(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
