"""The training loop. There is one: every recipe, stage, scale and world size runs through `train_stage`.

A step takes exactly `batch` samples, packed; its loss is the sum over its targets divided by the whole step's count,
over micro-batches and ranks. Between steps the state is the weights that train, the optimizer's moments and the
number of the step: data order and random numbers follow from that number. So a checkpoint at a step is all there is,
and a run that was killed goes on bit for bit.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from quintet import dist
from quintet.data.collate import collate
from quintet.data.drops import Drops
from quintet.data.features import FeatureCache
from quintet.data.pipeline import MediaLoader, Micro, Source, StepPlan, batches
from quintet.data.processor import Processor
from quintet.data.references import References
from quintet.data.tokenizer import Tokenizer
from quintet.errors import CheckpointError, TrainingError
from quintet.log import logger
from quintet.model.checkpoint import TRAINED, write_json
from quintet.model.mllm import MLLM
from quintet.training.folder import Checkpoint, Metrics, RunFolder
from quintet.training.hardware import Precision, autocast, peak_memory, pick_precision, prepare_cpu
from quintet.training.objectives import COUNTS, OBJECTIVES
from quintet.training.optim import make_optimizer, schedule, set_trainable, trainable
from quintet.training.parallel import Step, full_state, load_state, save_state, shard, training_state
from quintet.training.planning import planner
from quintet.training.rolling import RewardOf, Rolling
from quintet.training.stage import Stage
from quintet.values import Batch, Tokens

__all__ = ["Given", "Interrupted", "Progress", "Result", "Settings", "train_stage"]

log = logger(__name__)

Progress = Callable[[dict[str, Any]], None]
"""Told of every step: stage, step, steps, loss, lr, tokens, seconds and the rest of a metrics line."""


class Interrupted(Exception):
    """SIGINT or SIGTERM came; a checkpoint has been written."""


@dataclass(frozen=True)
class Settings:
    """How to run, where the recipe says what to run."""

    seed: int = 0
    precision: Precision = "auto"
    workers: int = 0
    """Processes that decode media; 0 decodes in this one."""
    compile: bool = False
    features: Literal["auto", "on", "off"] = "auto"
    """Whether a frozen encoder's features are kept on disk; "auto" decides by arithmetic."""
    save_seconds: float = 300.0
    """Time between checkpoints."""
    save_steps: int | None = None
    """Steps between checkpoints instead."""
    stop_after: int | None = None
    """Stop with a checkpoint after this many steps of a stage (tests, time slots)."""


@dataclass(frozen=True)
class Result:
    """What a stage did. Losses are per target, in nats."""

    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    tokens: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Samples by the fault that kept them out."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Pictures by the rule that left them out of their documents."""


@dataclass(frozen=True)
class Given:
    """What was computed before a stage."""

    cache: FeatureCache | None = None
    """Features of a frozen encoder."""
    references: References | None = None
    """Log-probabilities under the model before the stage."""
    reward: RewardOf | None = None
    """What the model's own answers are worth."""
    begin: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights that the stage adds and that begin as these, by name: a value model that begins as the reward model."""


def train_stage(
    model: MLLM,
    stage: Stage,
    source: Source,
    tokenizer: Tokenizer,
    *,
    run: RunFolder,
    settings: Settings,
    given: Given | None = None,
    progress: Progress | None = None,
) -> Result:
    """Trains one stage in place and writes the parts it trained; continues from its newest checkpoint, if any.

    Raises:
        Interrupted: a signal asked to stop; the checkpoint is written.
        TrainingError: the loss or the gradient is not finite, too many samples were dropped, or most pictures of
            documents are not there.
    """
    if dist.device().type == "cpu":
        prepare_cpu()
    how = stage.preference
    given = given or Given()
    if how and how.needs_reference and given.references is None and not stage.adapts:
        raise TrainingError(
            f"stage {stage.name!r} compares with the model before it, which is gone once other weights than adapters "
            "learn; give every part of `train` a lora, or pass the reference's log-probabilities"
        )
    if stage.rollouts and dist.world() > 1:
        raise TrainingError(
            f"stage {stage.name!r} draws answers of its own, which runs on one process only: sharded weights do not "
            "generate here. Start it without torchrun"
        )
    loop = _Loop(model, stage, source, tokenizer, run=run, settings=settings, given=given)
    with _signals() as asked:
        result = loop.run(asked, progress)
        loop.finish(result)
        if dist.total(float(bool(asked)))[0]:
            raise Interrupted(f"stopped after stage {stage.name!r}, which is finished")
    return result


class _Loop:
    def __init__(
        self,
        model: MLLM,
        stage: Stage,
        source: Source,
        tokenizer: Tokenizer,
        *,
        run: RunFolder,
        settings: Settings,
        given: Given,
    ) -> None:
        cache, reward = given.cache, given.reward
        self.model, self.stage, self.run_folder, self.settings = model, stage, run, settings
        self.device = dist.device()
        self.precision: Literal["fp32", "bf16"] = pick_precision(settings.precision, self.device)
        # Adapters begin with random numbers: the same on every rank, and when a run resumes at this stage.
        torch.manual_seed(settings.seed)
        rates = set_trainable(model, stage.train)
        if given.begin and (extra := model.load_state_dict(given.begin, strict=False).unexpected_keys):
            raise CheckpointError(f"stage {stage.name!r} has no weights that could begin as {extra[:4]}")
        model.kept_encoders = frozenset({cache.kind} if cache else ())
        model.fused = stage.fused
        model.to(self.device)
        self.step = Step(model, OBJECTIVES[stage.objective], stage.settings)
        shard(self.step, precision=self.precision)
        if settings.compile:
            for block in model.llm.blocks:
                block.compile(dynamic=True)
        self.optimizer = make_optimizer(model, rates, stage)
        self.rows, self.steps = len(source), stage.num_steps(len(source))
        self.planner = planner(model, stage, source, tokenizer, seed=settings.seed, references=given.references)
        self.workers = settings.workers
        if stage.rollouts is not None:
            assert reward is not None, "rollouts have a reward"
            # Plans must not be made ahead of the weights that draw them.
            self.workers, folder = 0, run.path / "rollouts"
            self.planner = Rolling(
                self.planner, model, stage, folder=folder, reward=reward, precision=self.precision,
                processor=Processor(tokenizer, stage.template, model.config),
            )  # fmt: skip
        specs = {kind: model.config.spec(kind) for kind in model.config.encoders}
        self.load = MediaLoader(specs, cache)
        self.drops = Drops(stage.drop_limit, self.rows)
        self.pad = tokenizer.pad_id
        self.known = ("reference",) if given.references else ()
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.metrics = Metrics(run.metrics)
        self.seconds, self.tokens = 0.0, 0
        self.losses: list[float] = []

    # ---- the run ------------------------------------------------------------------------------------------------
    def run(self, asked: "list[int]", progress: Progress | None) -> Result:
        start = self._resume()
        log.info("stage %s: steps %d to %d, %s", self.stage.name, start, self.steps, self._facts())
        self.step.train()
        saved, begun = time.monotonic(), time.monotonic()
        plans = (self.planner.step(n) for n in range(start, self.steps))
        for plan, micro in batches(plans, self.load, pad=self.pad, workers=self.workers):
            now = time.monotonic()
            row = self._one(plan, micro)
            self.tokens += plan.tokens
            self.seconds += time.monotonic() - begun
            begun = time.monotonic()
            row |= {"seconds": round(self.seconds, 3), "step_seconds": round(begun - now, 4), "steps": self.steps}
            self.metrics.write(row)
            if progress:
                progress(row)
            done = plan.step + 1
            last = done == self.steps
            stop = bool(dist.total(float(bool(asked)))[0]) or done - start == self.settings.stop_after
            if not last and (stop or self._due(done, saved)):
                self.save(done)
                saved = time.monotonic()
            if stop and not last:
                self.metrics.close()
                raise Interrupted(f"stopped after step {done} of stage {self.stage.name!r}; a checkpoint is written")
        self.metrics.close()
        self.drops.judge()
        first, last = (self.losses[0], self.losses[-1]) if self.losses else (float("nan"), float("nan"))
        return Result(self.steps, self.seconds, first, last, self.tokens, self.drops.faults, self.drops.left_out)

    def _one(self, plan: StepPlan, micro: list[Micro]) -> dict[str, Any]:
        """One optimizer step; returns its line of metrics."""
        # Random numbers follow from the step, so there is no state of theirs to save.
        torch.manual_seed(_seed(self.settings.seed, plan.step))
        self.drops.take(plan)
        for error in (e for m in micro for e in m.lost):
            self.drops.add(error)
        count, columns = dist.total(
            sum(COUNTS[self.stage.objective](m.batch) for m in micro if m.batch),
            sum(m.batch.tokens.numel() for m in micro if m.batch),
        )
        if count == 0:
            raise TrainingError(f"step {plan.step}: nothing to learn in it; every sample was dropped")
        rate = schedule(plan.step, steps=self.steps, stage=self.stage)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        total, noted = 0.0, dict[str, float]()
        for m in micro:
            batch = (m.batch or _empty(self.pad, known=self.known)).to(self.device)
            with autocast(self.precision, self.device):
                loss, notes = self.step(batch)
            total += float(loss.detach())
            noted |= {name: noted.get(name, 0.0) + float(value) for name, value in notes.items()}
            # Text alone does not reach a connector: if only that trains, there is nothing to go back through.
            if loss.requires_grad:
                # Sharded gradients are averaged over ranks; the sum is what a sum of losses needs.
                (loss * (dist.world() / count)).backward()
        loss_value = dist.total(total)[0] / count
        # A rank without rows has noted nothing.
        noted = {name: round(value / count, 6) for name, value in dist.summed(noted).items()}
        parameters = [p for _, p in trainable(self.model)]
        for parameter in parameters:
            # What a step did not use has no gradient: none as zero, as where other ranks used it. Momentum goes on.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = _clip(parameters, self.stage.clip)
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise TrainingError(
                f"step {plan.step} of stage {self.stage.name!r}: loss {loss_value}, gradient norm {norm}; "
                "lower the learning rate, or look at the step's samples with `quintet doctor`"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss_value)
        return {
            "stage": self.stage.name,
            "step": plan.step + 1,
            "loss": loss_value,
            "grad_norm": norm,
            "lr": rate,
            "targets": count,
            "tokens": plan.tokens,
            "fill": round(plan.tokens / columns, 4),
            "dropped": self.drops.dropped,
            "left_out": sum(self.drops.left_out.values()),
            "memory": peak_memory(self.device),
            **noted,
        }

    def _facts(self) -> str:
        count = sum(p.numel() for _, p in trainable(self.model))
        parts = ", ".join(f"{name} at {rate.lr:g}" for name, rate in self.stage.train.items())
        return f"training {parts} ({count:,} parameters), {self.precision} on {self.device}, {dist.world()} process(es)"

    # ---- checkpoints --------------------------------------------------------------------------------------------
    def _due(self, done: int, saved: float) -> bool:
        if self.settings.save_steps is not None:
            return done % self.settings.save_steps == 0
        # Ranks must agree, and their clocks may not.
        return dist.total(float(time.monotonic() - saved > self.settings.save_seconds))[0] > 0

    def save(self, done: int) -> Checkpoint:
        """Writes a checkpoint after `done` steps."""
        name = f"{self.stage.name}-{done:07d}"
        aside = self.run_folder.aside(name)
        save_state(training_state(self.model, self.optimizer), aside / "state")
        state = {
            "stage": self.stage.name,
            "step": done,
            "steps": self.steps,
            "rows": self.rows,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "losses": self.losses[:1],
            "drops": {k: v for k, v in asdict(self.drops).items() if k not in ("limit", "rows")},
        }
        self.run_folder.commit(aside, state)
        return Checkpoint(self.run_folder.checkpoints / name, self.stage.name, done)

    def _resume(self) -> int:
        found = self.run_folder.latest(self.stage.name)
        if found is None:
            self.metrics.rewind(self.stage.name, 0)
            return 0
        facts = json.loads((found.path / "state.json").read_text(encoding="utf-8"))
        if (facts["steps"], facts["rows"]) != (self.steps, self.rows):
            raise CheckpointError(
                f"{found.path} is of a run of {facts['steps']} steps over {facts['rows']} rows, "
                f"this one has {self.steps} over {self.rows}; use the same data and settings, or another --out"
            )
        state = training_state(self.model, self.optimizer)
        load_state(state, found.path / "state")
        with torch.no_grad():
            for name, parameter in trainable(self.model):
                moments = self.optimizer.moments(parameter)
                if "step" in moments:
                    moments["step"].copy_(state[f"optim.{name}.step"].reshape(()))
        self.seconds, self.tokens, self.losses = facts["seconds"], facts["tokens"], facts["losses"]
        self.drops = Drops(self.drops.limit, self.rows, **facts["drops"])
        self.metrics.rewind(self.stage.name, found.step)
        return found.step

    def finish(self, result: Result) -> None:
        """Writes the parts that the stage trained; from here on its checkpoints are not needed."""
        state = full_state(self.model)
        if dist.is_first():
            folder = self.run_folder.stage(self.stage.name)
            folder.mkdir(parents=True, exist_ok=True)
            learnt = {name for name, _ in trainable(self.model)}
            save_file({n: t.contiguous() for n, t in sorted(state.items()) if n in learnt}, folder / TRAINED)
            write_json(folder / "stage.json", {"name": self.stage.name, **asdict(result)})
            self.run_folder.forget(self.stage.name)
        dist.barrier()


def _seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 1_009 + dist.rank()) % (1 << 62)


def _clip(parameters: list[torch.nn.Parameter], most: float) -> float:
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _empty(pad: int, *, known: Sequence[str] = ()) -> Batch:
    """A batch that asks for nothing: what a rank computes when it has no rows left in a step.

    `known` is what comes with the batches of the other ranks, for what is known they do not compute.
    """
    one = torch.zeros(2, dtype=torch.int64)
    tokens = Tokens(one + pad, one.float(), one, one + 1, torch.arange(2), torch.arange(2), one - 1, ())
    return collate([[replace(tokens, known={name: one.float() for name in known})]], {}, pad=pad)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one does what it always did."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            signal.signal(number, old[number])
            signal.raise_signal(number)
        asked.append(number)

    old: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are somebody else's
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
