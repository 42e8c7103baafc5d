"""What a recipe comes to before anything runs: parameters, what trains, tokens, memory, FLOPs.

The model is built on the meta device: real shapes, no memory, no weights, no network. Figures that the paper gives
stand beside ours. Memory and FLOPs are arithmetic on the modules, for a sample of one item of each modality and
`TEXT_TOKENS` tokens of text; L are a part's linear and convolution layers:

    forward        2 × Σ_L weights per token, and 4 × tokens × width per token and attention (half of it if causal)
    backward       as much again where a gradient passes, and 2 × Σ_L weights per token for weights that train
    weights        4 bytes a parameter, and 2 more for the bf16 copy that a forward under autocast holds
    gradients      4 bytes a parameter that trains
    moments        8 bytes a parameter that trains (AdamW)
    activations    tokens of a micro-batch × (Σ_L (in + out) + widths of norms) × 2 bytes in the parts that a gradient
                   passes, and logits

In a stage that the LLM does not read (`Stage.reads`) the connector takes a picture and a caption of half the text
`ALIGN_PASSES` times, and its own small head is left out.

Activations are an estimate: what a block keeps besides (the products of the gate) and what it shares (one input for
queries, keys and values) about cancel; tests/unit/test_show.py measures by how much. A part passes a gradient when it
trains or something before it does: encoder → connector → fusion and LLM.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from quintet.lab.run import STARTER_PICTURES
from quintet.model.mllm import LOGIT_BYTES, MLLM
from quintet.recipes._recipe import Recipe
from quintet.training.optim import rate_of, set_trainable
from quintet.training.stage import Stage

__all__ = [
    "TEXT_TOKENS",
    "Check",
    "Cost",
    "Memory",
    "Shown",
    "StageView",
    "agrees",
    "kept_numbers",
    "llm_flops",
    "show",
]

TEXT_TOKENS = 128
"""Tokens of text in the sample that costs are computed for, half of them learnt."""

ALIGN_PASSES = 5
"""Passes of a pair through a Q-Former in its first stage: ITC one, ITM three, ITG one."""

_QUERIES = ("q_proj", "query", "q")
"""Names of the projection to queries in our decoder and in transformers' layers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process without sharding or activation checkpointing."""

    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations

    def to_json(self) -> dict[str, int]:
        """The four and their sum."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class StageView:
    """What one stage trains and costs."""

    name: str
    data: str
    trainable: int
    share: float
    """Of all parameters."""
    rates: Mapping[str, float]
    batch: int
    steps: int | None
    """None where the size of the data is not known."""
    memory: Memory
    flops_per_sample: float

    def to_json(self) -> dict[str, Any]:
        """As `show --json` has it."""
        facts = {k: v for k, v in vars(self).items() if k not in ("name", "memory")}
        return facts | {"rates": dict(self.rates), "memory_bytes": self.memory.to_json()}


def agrees(found: int, published: int) -> bool:
    """Whether a figure of ours is the paper's: exactly, or within 1 % where the paper's is rounded (five zeros).

    >>> agrees(20_979_713, 20_979_712), agrees(196_979_200, 197_000_000), agrees(190_000_000, 194_000_000)
    (False, True, False)
    """
    if published % 100_000 or not published:
        return found == published
    return abs(found - published) <= 0.01 * published


@dataclass(frozen=True)
class Check:
    """A figure that the paper gives, and ours."""

    what: str
    found: int
    published: int

    @property
    def equal(self) -> bool:
        return agrees(self.found, self.published)


@dataclass(frozen=True)
class Shown:
    """Everything that `quintet show` prints."""

    recipe: str
    scale: str
    parts: dict[str, int]
    """Part → parameters."""
    tokens: dict[str, int]
    """Modality → tokens an item of the default size takes."""
    stages: tuple[StageView, ...]
    checks: tuple[Check, ...]
    experts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Modality → what stands before an expert's words → its weights, or its class: they tell of it in words."""

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
            "parts": {name: {"parameters": count} for name, count in self.parts.items()},
            "stages": {stage.name: stage.to_json() for stage in self.stages},
            "tokens": self.tokens,
            "experts": self.experts,
            "memory_bytes": self.memory_bytes,
            "flops_per_sample": self.flops_per_sample,
            "text_tokens": TEXT_TOKENS,
            "checks": [vars(check) | {"equal": check.equal} for check in self.checks],
        }


def show(name: str, recipe: Recipe, *, scale: str = "full") -> Shown:
    """The figures of a recipe, which is at `scale` already. The paper's are compared at full scale only."""
    with torch.device("meta"):
        model = recipe.build()
    parts = {part: _count(module) for part, module in model.parts().items()}
    sizes = {kind: model.config.spec(kind).size for kind in model.config.encoders}
    tokens = {kind: model.config.layout(kind, size).count for kind, size in sizes.items()}
    checks: list[Check] = []
    if scale == "full":
        paper = recipe.paper
        checks += [Check(f"parameters of {p}", parts.get(p, 0), n) for p, n in paper.published.items()]
        checks += [Check(f"trainable in {s}", _trained(model, recipe, s), n) for s, n in paper.trainable.items()]
        checks += [Check(f"tokens of one {kind}", tokens.get(kind, 0), n) for kind, n in paper.tokens.items()]
    stages: list[StageView] = []
    for stage in recipe.stages:
        stages.append(_stage(model, stage, scale=scale))
        model.fold()  # as after each stage of a run
    experts = {
        kind: {label: e.source or type(e).__qualname__.split(".")[0] for label, e in each.items()}
        for kind, each in recipe.model.experts.items()
    }
    return Shown(name, scale, parts, tokens, tuple(stages), tuple(checks), experts)


def _trained(model: MLLM, recipe: Recipe, name: str) -> int:
    """Parameters that learn in a stage."""
    [stage] = recipe.only([name])
    set_trainable(model, stage.train)
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.fold()
    return learnt


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
    cost = _Part.of(model.llm, passes=True, vocab=model.llm.vocab)
    head = 2 * model.llm.dim * model.llm.vocab
    return cost.flops(tokens=1, attend=False), head * (3 if cost.trained else 2)


def kept_numbers(module: nn.Module, *, vocab: int = -1) -> int:
    """Numbers that one token leaves in a module for the backward pass, by the arithmetic at the top."""
    return _Part.of(module, passes=True, vocab=vocab).kept


# ---- one stage ---------------------------------------------------------------------------------------------------
def _stage(model: MLLM, stage: Stage, *, scale: str) -> StageView:
    set_trainable(model, stage.train)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = Cost(model, stage)
    rates = {part: rate.lr for part in model.parts() if (rate := rate_of(part, stage.train))}
    # Below full scale the rows are those of Scenes, of the same kind (`quintet.lab.run`).
    data, rows = (stage.data.name, stage.data.rows) if scale == "full" else ("scenes", STARTER_PICTURES)
    return StageView(
        name=stage.name,
        data=data,
        trainable=trainable,
        share=trainable / _count(model),
        rates=rates,
        batch=stage.batch,
        steps=stage.num_steps(rows) if rows is not None else stage.steps,
        memory=Memory(cost.weights, 4 * trainable, 8 * trainable, cost.activations),
        flops_per_sample=cost.flops,
    )


class Cost:
    """A stage's arithmetic on a model whose `requires_grad` flags are set."""

    def __init__(self, model: MLLM, stage: Stage) -> None:
        config, vocab = model.config, model.llm.vocab
        self.parts: list[tuple[int, _Part]] = []
        """(tokens that one sample takes through the part, the part)."""
        columns = TEXT_TOKENS
        for kind, encoder in model.encoders.items():
            size = config.spec(kind).size
            seen, reach = config.encoders[kind].layout(size), config.layout(kind, size)
            learns = any(p.requires_grad for p in encoder.parameters())
            self.parts.append((seen.count, _Part.of(encoder, passes=learns, causal=False)))
            after = learns or any(p.requires_grad for p in model.connectors[kind].parameters())
            # Read at the width that reaches it, written at its own: the larger count bounds both.
            connector = _Part.of(model.connectors[kind], passes=after, causal=False)
            taken = reach.count if stage.reads else ALIGN_PASSES * (reach.count + TEXT_TOKENS // 2)
            self.parts.append((max(seen.count, taken), connector))
            columns += config.columns(kind, size)
        self.columns = columns
        readers = [_Part.of(m, passes=True, vocab=vocab) for m in (model.llm, model.fusion)] if stage.reads else []
        self.parts += [(columns, part) for part in readers]
        self.samples = max(1, stage.micro // columns)
        """Samples in a micro-batch."""
        predicted = TEXT_TOKENS // 2 if stage.reads else 0
        self.head = 2 * model.llm.dim * vocab * predicted * (3 if readers and readers[0].trained else 2)
        self.logits = min(LOGIT_BYTES, 4 * vocab * self.samples * predicted)
        self.weights = 4 * _count(model) + 2 * sum(part.matrices for _, part in self.parts)

    @property
    def flops(self) -> float:
        """One sample, forward and backward."""
        return self.head + sum(part.flops(tokens=tokens) for tokens, part in self.parts)

    @property
    def activations(self) -> int:
        """One micro-batch, bytes. Logits and their gradient are there at the same time."""
        kept = sum(tokens * part.kept for tokens, part in self.parts if part.passes)
        return 2 * kept * self.samples + 2 * self.logits


@dataclass(frozen=True)
class _Part:
    """Sums over the linear and convolution layers of a part, the LLM's head left out."""

    matrices: int
    trained: int
    """Weights of matrices that train."""
    kept: int
    """Numbers a token leaves for the backward pass."""
    attention: int
    """Widths of all attentions."""
    causal: bool
    passes: bool

    @staticmethod
    def of(module: nn.Module, *, passes: bool, causal: bool = True, vocab: int = -1) -> "_Part":
        layers = [layer for layer in _layers(module) if layer.weight.shape[0] != vocab]
        return _Part(
            matrices=sum(layer.weight.numel() for layer in layers),
            trained=sum(layer.weight.numel() for layer in layers if layer.weight.requires_grad),
            kept=sum(layer.weight[0].numel() + layer.weight.shape[0] for layer in layers) + _norms(module),
            attention=sum(_queries(each) for each in module.modules()),
            causal=causal,
            passes=passes,
        )

    def flops(self, *, tokens: int, attend: bool = True) -> float:
        """Of one sample's tokens: forward, the gradient of what comes in, the gradient of weights."""
        own = (2 if self.causal else 4) * tokens * self.attention if attend else 0
        forward = 2 * self.matrices + own
        return tokens * float(forward * (2 if self.passes else 1) + (own if self.passes else 0) + 2 * self.trained)


def _layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    for each in module.modules():
        if isinstance(each, nn.Linear | nn.Conv2d):
            yield each


def _norms(module: nn.Module) -> int:
    """The widths of all norms: modules whose weight is a vector."""
    weights = (p for name, p in module.named_parameters() if name.rsplit(".", 1)[-1] == "weight")
    return sum(p.numel() for p in weights if p.ndim == 1)


def _queries(module: nn.Module) -> int:
    """The width of an attention's queries; 0 for a module that is none."""
    for name, child in module.named_children():
        if name in _QUERIES and isinstance(child, nn.Linear):
            return child.out_features
    return 0


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
