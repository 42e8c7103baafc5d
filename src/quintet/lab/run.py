"""From a recipe's name to a trained model: what `quintet train` does, step by step.

load the recipe → its scale → weights → for each stage: its rows, its features kept if that pays, the loop → model/
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from quintet import dist
from quintet.config.override import override
from quintet.data.pipeline import Source
from quintet.data.processor import Processor
from quintet.data.scenes import LAYOUT, World, make_scenes
from quintet.data.sources import Mix, open_source
from quintet.data.texts import Texts, Told
from quintet.data.tokenizer import Tokenizer
from quintet.errors import CheckpointError, ConfigError
from quintet.evaluation.judge import Judge, TruthJudge
from quintet.lab.align import Start, count_of, look_at_preferences, own_rows
from quintet.lab.begin import as_begun, begun, check_folder, look_for_pictures, run_facts
from quintet.lab.facts import Request, asking, known_facts
from quintet.lab.features import Note, keep_features
from quintet.lab.pairs import Work
from quintet.lab.pretrained import (
    build_model,
    load_tokenizer,
    look_at_experts,
    spread_bins,
    stage_tokenizer,
)
from quintet.lab.recipe import load_recipe
from quintet.lab.references import keep_references
from quintet.lab.rewards import Base, Worth, reward_of, value_of
from quintet.log import logger
from quintet.model.checkpoint import CAPTIONS, TRAINED, read_json, replace_folder, save_model
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.training.folder import RunFolder
from quintet.training.loop import Given, Progress, Result, Settings, train_stage
from quintet.training.optim import set_trainable
from quintet.training.stage import Data, Stage

__all__ = [
    "STARTER_PICTURES",
    "Job",
    "cache_folder",
    "resolve",
    "resolved",
    "scenes_folder",
    "scenes_rows",
    "stage_source",
    "train",
]

log = logger(__name__)

STARTER_PICTURES = 6000
"""Scenes pictures that a starter-scale stage learns from when it is given no data."""


def cache_folder() -> Path:
    """Where what can be made again is kept: QUINTET_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quintet"
    return Path(os.environ.get("QUINTET_CACHE", default))


def scenes_folder(
    n: int = STARTER_PICTURES, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Scenes in the cache folder, made on first use."""
    out = cache_folder() / "scenes" / f"v{LAYOUT}-{n}-{seed}"
    if dist.is_first() and not (out / "scenes.json").exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        log.info("making %d pictures of Scenes in %s", n, out)
        make_scenes(out, n, seed, World(), progress=progress)
    dist.barrier()
    return out


def scenes_rows(folder: Path, kind: str) -> Path:
    """The file of Scenes whose rows are of a kind (`Data.kind`).

    Raises:
        ConfigError: the folder was made before there were rows of that kind.
    """
    names = {
        "captions": "train_captions.json",
        "regions": "train_regions.json",
        "interleaved": "train_interleaved.jsonl",
        "ocr": "train_ocr.json",
        "text": "train_text.json",
    }
    file = folder / names.get(kind, "train.json")
    if (folder / "scenes.json").exists() and not file.exists():
        raise ConfigError(
            f"{folder} has no {file.name}: it was made by an older version; `quintet data make scenes` anew"
        )
    return file


def _scenes_source(folder: Path, data: Data) -> Source:
    """What a stage learns from without a file of its own: as many rows of Scenes, with other kinds in their shares."""
    source = open_source(scenes_rows(folder, data.kind), pages=data.pages)
    if not data.mixed:
        return source
    others = [open_source(scenes_rows(folder, kind), pages=data.pages) for kind in data.mixed]
    weights = [1 - sum(data.mixed.values()), *data.mixed.values()]
    return Mix.weighted([source, *others], weights=weights, size=len(source), name=source.name)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, and how."""

    recipe: str
    out: Path
    scale: str = "starter"
    data: Mapping[str, Path] = field(default_factory=dict)
    """Stage → file. The empty name stands for the last stage."""
    root: Path | None = None
    """Folder that the files' pictures are named from; None is each file's own."""
    scenes: Path | None = None
    """Scenes for the stages without a file; None is the cache's."""
    start: Start | None = None
    """A run whose model this one goes on from; `recipe` names an alignment method then."""
    reward: str = ""
    """What answers are worth in stages that learn from their own, instead of what the stage says."""
    facts: Path | None = None
    """Captions by picture, which a reward model is told; None is the truth of Scenes."""
    judge: Judge = field(default_factory=TruthJudge)
    """Who judges the answers that stages make their own pairs of."""
    stages: Sequence[str] = ()
    """Only these; all if empty."""
    sets: Sequence[str] = ()
    """`a.b=c` overrides of the scaled recipe."""
    resume: bool = False
    download: bool = False
    settings: Settings = field(default_factory=Settings)
    note: Note = lambda text: None
    """Told of what happens between steps."""


def train(job: Job, *, progress: Progress | None = None) -> dict[str, Result]:
    """Runs the job; returns what each stage did that ran now.

    Raises:
        Interrupted: a signal asked to stop; `resume` goes on.
        ConfigError, DataError, TrainingError, CheckpointError: what is wrong, and what to do.
    """
    name, recipe = resolve(job)
    run = RunFolder(job.out)
    job = as_begun(job, run)
    chosen = recipe.only(list(job.stages)) if job.stages else recipe.stages
    # All that can be wrong is looked at before the first step, and before anything is written.
    facts = run_facts(job, name, recipe, run)
    check_folder(run, job, facts)
    waiting = [stage for stage in chosen if not run.finished(stage.name)]
    sources = {stage.name: stage_source(job, recipe, stage) for stage in waiting if not _makes_rows(job, recipe, stage)}
    look_at_experts(recipe, download=job.download)
    look_at_preferences(recipe, sources, files=job.data, reward=job.reward, facts=job.facts, judge=job.judge.name)
    tokenizer, spelt = _spellings(job, recipe)
    model = _model(job, recipe, tokenizer)
    results: dict[str, Result] = {}
    with begun(run, facts):
        for stage in recipe.stages:
            if run.finished(stage.name):
                _take(model, run, stage)
                job.note(f"stage {stage.name} is finished already")
                continue
            if stage not in chosen:
                continue
            source = sources.get(stage.name) or _own(job, recipe, stage, model, tokenizer, run)
            given = _given(job, model, stage, chosen, source, spelt[stage.name])
            results[stage.name] = train_stage(
                model, stage, source, spelt[stage.name], run=run, settings=job.settings, given=given, progress=progress
            )
            if dist.world() > 1:
                # Sharded weights end with their stage: on from what it wrote, as a resumed run does.
                model = _model(job, recipe, tokenizer)
                for done in recipe.stages[: recipe.stages.index(stage) + 1]:
                    if run.finished(done.name):
                        _take(model, run, done)
            _settle(model, stage)
    # Pictures are found by captions as they were where that was learnt: in that stage's spelling and by its weights.
    finished = [s for s in recipe.stages if run.finished(s.name)]
    match = next((s for s in reversed(finished) if not s.reads), None)
    captions = Processor(spelt[match.name], match.template, recipe.model) if match else None
    learnt = run.stage(match.name) / TRAINED if match and match is not finished[-1] else None
    _save(model, Processor(tokenizer, recipe.template, recipe.model), run, captions=captions, learnt=learnt)
    return results


def _spellings(job: Job, recipe: Recipe) -> tuple[Tokenizer, dict[str, Tokenizer]]:
    """The LLM's tokenizer, and that of each stage."""
    if job.start is not None:
        tokenizer = job.start.processor().tokenizer
        return tokenizer, {s.name: tokenizer for s in recipe.stages}
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens, download=job.download)
    return tokenizer, {
        s.name: stage_tokenizer(recipe.model, s, tokenizer, download=job.download) for s in recipe.stages
    }


def _given(job: Job, model: MLLM, stage: Stage, stages: Sequence[Stage], source: Source, tokenizer: Tokenizer) -> Given:
    """What is computed before a stage, where that pays or is needed."""
    how: Any = {"settings": job.settings, "note": job.note}
    cache = cache_folder()
    reward = _reward(job, stage, model, Processor(tokenizer, stage.template, model.config))
    return Given(
        keep_features(model, stage, stages, source, folder=cache / "features", **how),
        keep_references(model, stage, source, tokenizer, folder=cache / "references", **how),
        reward and reward.of,
        reward.value if reward else {},
    )


def resolve(job: Job) -> tuple[str, Recipe]:
    """The job's recipe at its scale, with its overrides."""
    if job.start is not None:
        name, recipe = job.recipe, job.start.aligned(job.recipe)
    else:
        name, recipe = load_recipe(job.recipe)
        recipe = at_scale(recipe, job.scale)
    for assignment in job.sets:
        recipe = override(recipe, assignment)
    named = {assignment.partition("=")[0].strip() for assignment in job.sets}
    for stage in recipe.stages:
        if stage.steps is not None and (path := f"stages.{stage.name}.epochs") in named:
            raise ConfigError(f"{path}: the stage takes {stage.steps} steps; set stages.{stage.name}.steps=null, too")
    return name, recipe


def _makes_rows(job: Job, recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage's rows are made with the model as it is when the stage begins."""
    given = stage.name in job.data or (stage is recipe.stages[-1] and "" in job.data)
    return bool(stage.data.pairs) and not given


def _own(job: Job, recipe: Recipe, stage: Stage, model: MLLM, tokenizer: Tokenizer, run: RunFolder) -> Source:
    """Rows that a stage makes for itself; every rank reads what the first one has written."""
    if job.scale == "full" and job.scenes is None:
        raise ConfigError(
            f"stage {stage.name!r} learns from {stage.data.name}, which does not come with the package; "
            f"name its file: --data {stage.name}=PATH, or pictures with a truth to make pairs of: --scenes FOLDER"
        )
    folder = _pictures(job)
    out = run.path / "pairs" / f"{stage.name}.jsonl"
    if not dist.is_first():
        dist.barrier()
    work = Work(
        scenes=folder,
        rows=count_of(stage, job.scale),
        seed=job.settings.seed,
        model=lambda: Engine(model, Processor(tokenizer, stage.template, recipe.model)),
        judge=job.judge,
    )
    made = own_rows(stage, work, out=out, note=job.note)
    if dist.is_first():
        dist.barrier()
    return _told(_judged(job, stage, made), recipe)


def _judged(job: Job, stage: Stage, source: Source) -> Source:
    """With a request behind every answer, where a reward model is asked for its quality or told facts."""
    how = stage.reward
    if not (how and (how.asked or how.facts)):
        return source
    return asking(source, Request(how.asked, known_facts(job.facts, scenes=_pictures(job)) if how.facts else None))


def _reward(job: Job, stage: Stage, model: MLLM, processor: Processor) -> Worth | None:
    """What a stage's own answers are worth, and what its value model begins as."""
    if stage.rollouts is None:
        return None
    name = job.reward or stage.rollouts.reward
    job.note(f"stage {stage.name!r}: answers are worth what {name} says")
    base = Base(model, processor, job.start.run, stage) if job.start else None
    found = Worth(reward_of(name, scenes=_pictures(job), facts=job.facts, base=base), value_of(name, base))
    if stage.rollouts.advantage == "gae" and Path(name).is_dir():
        other = f"anew: {name} is more than adapters of its rank over the same weights"
        job.note(f"stage {stage.name!r}: the value model begins {f'as {name}' if found.value else other}")
    return found


def _pictures(job: Job) -> Path:
    """The Scenes of a job that makes rows for itself."""
    return job.scenes or scenes_folder(STARTER_PICTURES if job.scale == "starter" else 64)


def _model(job: Job, recipe: Recipe, tokenizer: Tokenizer) -> MLLM:
    if job.start is not None:
        model = job.start.load()
        if recipe.model.score:
            torch.manual_seed(job.settings.seed)
            model.with_score()
        return model
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=added, seed=job.settings.seed, download=job.download)
    spread_bins(model, recipe, tokenizer)
    return model


def stage_source(job: Job, recipe: Recipe, stage: Stage) -> Source:
    """The rows that a stage of the job learns from.

    Raises:
        ConfigError: at full scale a stage has no file.
    """
    last = recipe.stages[-1].name
    path = job.data.get(stage.name) or (job.data.get("") if stage.name == last else None)
    if path is not None:
        source = open_source(path, root=job.root, pages=stage.data.pages)
        look_for_pictures(source, path, given=job.root is not None)
        return _told(_judged(job, stage, source), recipe)
    if job.scale == "full":
        raise ConfigError(
            f"stage {stage.name!r} learns from {stage.data.name}, which does not come with the package; "
            f"name its file: --data {stage.name}=PATH"
        )
    folder = job.scenes or scenes_folder(STARTER_PICTURES if job.scale == "starter" else 64)
    return _told(_scenes_source(folder, stage.data), recipe)


def _told(source: Source, recipe: Recipe) -> Source:
    """The source with media in words, where the recipe has experts for them."""
    experts = recipe.model.experts
    return Told(source, Texts(experts, folder=cache_folder() / "texts")) if experts else source


def _take(model: MLLM, run: RunFolder, stage: Stage) -> None:
    """The weights that a finished stage trained; its adapters are folded in, as they are when it ends."""
    tensors = load_file(run.stage(stage.name) / TRAINED)
    set_trainable(model, stage.train)
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise CheckpointError(f"{run.stage(stage.name)} holds weights that this recipe has not: {unexpected[:4]}")
    _settle(model, stage)


def _settle(model: MLLM, stage: Stage) -> None:
    """After a stage: adapters are folded in, and a fusion that stood aside copies what was learnt without it."""
    model.fold()
    if not stage.fused:
        model.fusion.begin(model.llm)
        model.fused = True


def _save(
    model: MLLM, processor: Processor, run: RunFolder, *, captions: Processor | None, learnt: Path | None
) -> None:
    """RUN/model/, whole or not at all."""
    if dist.is_first():
        aside = run.path / ".model"
        shutil.rmtree(aside, ignore_errors=True)
        save_model(model, aside)
        processor.save(aside)
        if captions is not None:
            captions.save(aside / CAPTIONS)
        if learnt is not None:
            shutil.copyfile(learnt, aside / CAPTIONS / TRAINED)
        replace_folder(aside, run.model)
    dist.barrier()


def resolved(run: Path) -> dict[str, Any]:
    """What a run was: the content of its recipe.json."""
    return read_json(RunFolder(run).recipe)
