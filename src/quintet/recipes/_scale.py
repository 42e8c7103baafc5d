"""One recipe, three scales. A scale swaps the pretrained parts, their sizes and the amounts; never the structure.

Where a recipe starts from another system's published weights, the small scales run that system's stages first.

full      the published parts by their hub names, the published batches and rates
starter   the small trained parts that ship with the package, Scenes as data; minutes on two cores
tiny      random weights of a few thousand parameters; milliseconds, for tests
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from quintet.components.experts.tint import Tint
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.starter import STARTER_LLM
from quintet.data.scenes.reader import SceneReader
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.training.stage import Rate, Stage

__all__ = ["SCALES", "Scale", "aligned_at_scale", "aligned_stages", "at_scale"]

Scale = Literal["full", "starter", "tiny"]
SCALES: tuple[Scale, ...] = ("full", "starter", "tiny")

STARTER_RATES = {"encoders": 3e-4, "connectors": 2e-3, "regions": 2e-3, "fusion": 2e-3, "llm": 1e-3, "tokens": 1e-2}
"""Peak rates by kind of part: those of the papers are for widths of thousands, these are for 192. Rows of added tokens
begin as the mean of all, and where the LLM is frozen nothing else learns when to say them."""

ALIGNMENT_RATE = 1e-2
"""Of connectors and fusion while all else is frozen: at 2e-3 only some seeds found digits and words (docs/log.md)."""

TRANSFORMER_RATE = 1e-3
"""Of connectors and fusions that are layers of a transformer: at 1e-2 captions through a Q-Former name nothing of the
picture, at 1e-3 it learns most, at 3e-3 and 5e-4 less (docs/log.md)."""

STARTER_BATCH: Mapping[str, int] = {
    "captions": 16,
    "instructions": 16,
    "interleaved": 16,
    "regions": 16,
    "ocr": 16,
    "text": 16,
    "preferences": 16,
}
"""By kind of data."""

STARTER_EPOCHS = 2.0
"""Of a recipe, shared evenly by its stages: as long for three stages as for one. The stages that stand
for another system's published weights (`Recipe.before`) share as many among themselves. `Recipe.starter` and
`Recipe.starter_shares` change it."""

ALIGNED_BATCH, ALIGNED_RANK = 16, 16
ALIGNED_RATE, ADAPTER_RATE, REWARD_RATE, SCORE_RATE = 1e-4, 2e-4, 1e-3, 3e-3
"""Of alignment: whole weights, adapters, those of a policy or a reward model, and a head that begins as noise."""

PAGES = 0.5
"""Of such an epoch for pages: all of them meet each picture three to four times."""


def at_scale(recipe: Recipe, scale: str) -> Recipe:
    """The recipe at a scale."""
    if scale == "full":
        return recipe
    if scale not in SCALES:
        raise ConfigError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
    small = _starter_model(recipe.model) if scale == "starter" else _tiny_model(recipe.model)
    epochs = STARTER_EPOCHS * recipe.starter
    stages = tuple(
        each for part in (recipe.before, recipe.stages) for each in _small(part, small, scale, epochs, recipe)
    )
    chat = recipe.chat and (_starter_template(recipe.chat) if scale == "starter" else recipe.chat)
    return replace(recipe, model=small, stages=stages, before=(), chat=chat)


def aligned_at_scale(recipe: Recipe, scale: str) -> Recipe:
    """An alignment of a model that is at that scale already: its stages alone are made smaller."""
    return replace(recipe, stages=aligned_stages(recipe.stages, scale))


def aligned_stages(stages: tuple[Stage, ...], scale: str) -> tuple[Stage, ...]:
    """The stages of an alignment at a scale."""
    if scale == "full":
        return stages
    small = _aligning if scale == "starter" else _tiny_stage
    return tuple(small(stage) for stage in stages)


def _aligning(stage: Stage) -> Stage:
    rates = {part: _aligning_rate(part, rate, stage) for part, rate in stage.train.items()}
    drawn = stage.rollouts and replace(stage.rollouts, prompts=4 * ALIGNED_BATCH, max_tokens=96)
    return replace(
        stage, train=rates, batch=ALIGNED_BATCH, epochs=1.0, row=stage.row // 2, micro=8192, final=0.02, rollouts=drawn
    )


def _aligning_rate(part: str, rate: Rate, stage: Stage) -> Rate:
    if part == "score":
        return replace(rate, lr=SCORE_RATE)
    if rate.lora is None:
        return replace(rate, lr=STARTER_RATES["llm"] if stage.objective == "lm" else ALIGNED_RATE)
    # As strong as the paper's: alpha over rank stays.
    rank = min(rate.lora.rank, ALIGNED_RANK)
    lr = REWARD_RATE if stage.objective in ("policy", "reward") else ADAPTER_RATE
    return replace(rate, lr=lr, lora=replace(rate.lora, rank=rank, alpha=rate.lora.alpha / rate.lora.rank * rank))


def _small(stages: Sequence[Stage], model: MLLM.Config, scale: str, epochs: float, recipe: Recipe) -> Iterator[Stage]:
    parts = {stage.name: recipe.starter_shares.get(stage.name, 1.0) for stage in stages}
    for stage in stages:
        share = epochs * parts[stage.name] / sum(parts.values())
        yield (
            _starter_stage(stage, model, share, recipe.starter_rates, stage is stages[0])
            if scale == "starter"
            else _tiny_stage(stage)
        )


def _starter_model(model: MLLM.Config) -> MLLM.Config:
    return replace(
        model,
        encoders={k: e.starter() for k, e in model.encoders.items()},
        connectors={k: c.starter() for k, c in model.connectors.items()},
        experts={
            k: {n: SceneReader.Config(kind=e.writes) for n, e in each.items()} for k, each in model.experts.items()
        },
        regions=model.regions and model.regions.starter(),
        fusion=model.fusion.starter(),
        # No trained encoder–decoder ships with the package: a small random one learns in the recipe's own stages.
        llm=model.llm.starter() if isinstance(model.llm, HFSeq2Seq.Config) else STARTER_LLM,
    )


def _tiny_model(model: MLLM.Config) -> MLLM.Config:
    return replace(
        model,
        encoders={k: e.tiny() for k, e in model.encoders.items()},
        connectors={k: c.tiny() for k, c in model.connectors.items()},
        experts={k: {n: Tint.Config(kind=e.writes) for n, e in each.items()} for k, each in model.experts.items()},
        regions=model.regions and model.regions.tiny(),
        fusion=model.fusion.tiny(),
        llm=model.llm.tiny(),
    )


def _starter_stage(stage: Stage, model: MLLM.Config, epochs: float, rates: Mapping[str, float], first: bool) -> Stage:
    # Where the LLM does not read, words are learnt from nothing, which ALIGNMENT_RATE is too fast for.
    aligns = stage.reads and not any(part.startswith(("llm", "encoders")) for part in stage.train)
    train = {part: _starter_rate(part, rate, model, aligns) for part, rate in stage.train.items()}
    train |= {part: replace(train[part], lr=lr) for part, lr in rates.items() if part in train}
    if first and stage.template.end in stage.template.added and not any(p.startswith(("llm", "tokens")) for p in train):
        # The published LLM, which is frozen here, knows how an answer ends in its template; the starter's does not.
        train["tokens"] = Rate(lr=STARTER_RATES["tokens"])
    return replace(
        stage,
        template=_starter_template(stage.template) if stage.reads else stage.template,
        train=train,
        batch=STARTER_BATCH[stage.data.kind],
        epochs=epochs * (PAGES if stage.data.kind == "interleaved" else 1.0),
        steps=None,
        row=1024,
        micro=8192,
        schedule="cosine",
        final=0.02,
    )


def _starter_template(template: Template) -> Template:
    # The starter LLM has read nearly all answers with a space in front: without one, a model that describes digits
    # never answers with them behind ChatML's header, and others learn more slowly (docs/log.md).
    answer = template.answer or (" " if template.assistant else "")
    return replace(template, regions=template.regions.starter(), answer=answer)


def _starter_rate(part: str, rate: Rate, model: MLLM.Config, aligns: bool) -> Rate:
    kind, _, rest = part.partition(".")
    own = [c for k, c in model.connectors.items() if rest.split(".")[0] in ("", k)] if kind == "connectors" else []
    if any(config.deep for config in (own if kind != "fusion" else [model.fusion])):
        return replace(rate, lr=TRANSFORMER_RATE)
    return replace(rate, lr=ALIGNMENT_RATE if aligns and kind in ("connectors", "fusion") else STARTER_RATES[kind])


def _tiny_stage(stage: Stage) -> Stage:
    drawn = stage.rollouts and replace(stage.rollouts, prompts=4, max_tokens=8, group=min(stage.rollouts.group, 3))
    return replace(stage, batch=4, steps=2, row=1024, micro=1024, warmup=0.0, rollouts=drawn)
