"""From sources to the batches of a training step, the same for any number of ranks and workers.

A step is exactly `batch` samples, taken from a seeded order; they are packed into rows among themselves, so no buffer
survives a step and the whole state of the data is the number of the step. Every rank plans every step (text only) and
loads the media of its own rows; so the count that a step's loss is divided by is known before any of it is computed,
and the plan is the same for every world size.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from quintet.components.roles import ImageSpec
from quintet.data.collate import Loaded, collate
from quintet.data.completion import Completion
from quintet.data.contrast import Contrast
from quintet.data.differences import mark_differences
from quintet.data.features import FeatureCache
from quintet.data.media import image_size, load_image
from quintet.data.pack import pack, share
from quintet.data.references import References
from quintet.data.template import Template
from quintet.data.texts import Told
from quintet.data.tokenizer import Tokenizer
from quintet.errors import DataError, TrainingError
from quintet.sizes import rounded
from quintet.values import Batch, Item, Media, Sample, Tokens

__all__ = ["MediaLoader", "Micro", "Plan", "Planner", "Source", "StepPlan", "batches", "measure_with", "order"]


class Source(Protocol):
    """A random-access table of samples."""

    name: str

    def __len__(self) -> int: ...
    def sample(self, index: int) -> Sample: ...


Columns = Callable[[str, tuple[int, ...]], int]
"""(kind, size) → columns of text: `MLLM.Config.columns`."""


def measure_with(specs: dict[str, ImageSpec], columns: Columns) -> Callable[[Media], tuple[tuple[int, ...], int]]:
    """The template's measure: a medium's size after preparation and the columns it takes.

    A header is read only where the size policy depends on it.
    """

    def measure(medium: Media) -> tuple[tuple[int, ...], int]:
        if medium.kind not in specs:
            raise DataError(
                "no-encoder",
                f"{medium.ref.name} is of kind {medium.kind!r}; this model takes {sorted(specs) or 'text only'}",
            )
        spec = specs[medium.kind]
        size = spec.size if spec.fixed else spec.output_size(*image_size(medium.ref))
        return size, columns(medium.kind, size)

    return measure


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: the samples of this rank's micro-batches, row by row, and the whole step's numbers."""

    step: int
    micro: tuple[tuple[tuple[Tokens, ...], ...], ...]
    count: float
    """Sum of the target weights over all ranks: what the step's loss is divided by."""
    tokens: int
    """Columns that are not padding, over all ranks."""
    seen: int
    """Samples that were looked at, over all ranks."""
    dropped: tuple[DataError, ...] = ()
    """Why those of them that are in no row are not. Counted when the step is taken: plans are made ahead of it."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Pictures that a rule left out of the documents among the samples, by the rule."""
    shown: int = 0
    """Media that are in the samples."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers that shape a stage's steps."""

    batch: int
    """Samples in a step, over all ranks."""
    steps: int
    row: int
    """Columns of a row."""
    micro: int
    """Columns of a micro-batch on one rank; at least one row."""
    seed: int
    packing: bool = True
    rank: int = 0
    world: int = 1
    too_long: str = "drop"
    completion: Completion | None = None
    contrast: Contrast | None = None
    differences: bool = False
    """Whether tokens are marked in which two answers differ."""
    check: Callable[[Tokens], None] | None = None
    """Raises a DataError for a sample that the objective cannot learn from."""


def order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of an epoch, int64[rows]: each has a permutation of its own."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


class Planner:
    """Which samples make which step."""

    def __init__(
        self,
        source: Source,
        template: Template,
        tokenizer: Tokenizer,
        measure: Callable[[Media], tuple[tuple[int, ...], int]],
        plan: Plan,
        references: References | None = None,
    ) -> None:
        self.source, self.template, self.tokenizer, self.measure, self.plan = source, template, tokenizer, measure, plan
        self.references = references
        if not len(source):
            raise DataError("no-rows", "there is no row to train on", file=source.name)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def index(self, n: int) -> int:
        """The row of the n-th sample of the run."""
        epoch, at = divmod(n, len(self.source))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(len(self.source), seed=self.plan.seed, epoch=epoch)
        return int(self._order[at])

    def tokens(self, n: int) -> Tokens:
        """The n-th sample of the run as tokens.

        Raises:
            DataError: it cannot be used; the message has file and row.
        """
        return self._read(n)[1]

    def _read(self, n: int) -> tuple[Sample, Tokens]:
        index, plan, seed = self.index(n), self.plan, (self.plan.seed, n)
        try:
            sample = self.source.sample(index)
            for drawing in (plan.completion, plan.contrast):
                if drawing:
                    sample = drawing.draw(sample, seed=seed)
            if plan.contrast and isinstance(self.source, Told):
                sample = self.source.texts.sample(sample)
            made = self.template.tokens(sample, self.tokenizer, self.measure)
            if plan.completion:
                made = plan.completion(made, self.tokenizer, seed=seed)
            if plan.differences:
                made = mark_differences(made)
            if plan.check:
                plan.check(made)
            if len(made) > plan.row:
                message = f"{len(made)} tokens; a row holds {plan.row}. Raise the stage's `row` or shorten the sample"
                raise DataError("too-long", message, file=made.origin.file, row=made.origin.row)
            if self.references:
                made = self.references.give(made)
        except DataError as error:
            raise error.at(file=self.source.name, row=index + 1) from None
        return sample, made

    def step(self, step: int) -> StepPlan:
        """The plan of one step.

        Raises:
            DataError: a sample is too long, and the policy is "error".
            TrainingError: nothing is left of the step.
        """
        p = self.plan
        made: list[Tokens] = []
        dropped: list[DataError] = []
        left_out: Counter[str] = Counter()
        shown = 0
        for n in range(step * p.batch, (step + 1) * p.batch):
            try:
                sample, tokens = self._read(n)
                made.append(tokens)
                left_out.update(sample.left_out)
                shown += len(sample.media())
            except DataError as error:
                if error.fault == "too-long" and p.too_long == "error":
                    raise
                dropped.append(error)
        if not made:
            raise TrainingError(f"step {step}: all of its {p.batch} samples were dropped; the last: {dropped[-1]}")
        lengths = [len(t) for t in made]
        rows = pack(lengths, capacity=p.row) if p.packing else [[i] for i in range(len(made))]
        mine = share([sum(lengths[i] for i in row) for row in rows], parts=p.world)
        micro = [_micro_batches(rows, deal, lengths, p.micro) for deal in mine]
        # Ranks step together: whoever has fewer micro-batches gets empty ones.
        most = max(map(len, micro))
        own = micro[p.rank] + [()] * (most - len(micro[p.rank]))
        return StepPlan(
            step=step,
            micro=tuple(tuple(tuple(made[i] for i in rows[r]) for r in group) for group in own),
            count=sum(t.count for t in made),
            tokens=sum(lengths),
            seen=p.batch,
            dropped=tuple(dropped),
            left_out=dict(left_out),
            shown=shown,
        )


def _micro_batches(rows: list[list[int]], deal: list[int], lengths: list[int], columns: int) -> list[tuple[int, ...]]:
    """Rows of similar length together, as many as fit into `columns` when padded to the longest of them."""
    width = {r: sum(lengths[i] for i in rows[r]) for r in deal}
    groups: list[list[int]] = []
    for r in sorted(deal, key=lambda r: (-width[r], r)):
        if groups and (len(groups[-1]) + 1) * width[groups[-1][0]] <= columns:
            groups[-1].append(r)
        else:
            groups.append([r])
    return [tuple(g) for g in groups]


class MediaLoader:
    """Turns an item's bytes into what the encoder takes, or into its kept features. Lives in the workers."""

    def __init__(self, specs: dict[str, ImageSpec], cache: FeatureCache | None = None) -> None:
        self.specs, self.cache = specs, cache

    def __call__(self, item: Item) -> Loaded:
        """What was loaded.

        Raises:
            DataError: the medium cannot be read, or its features should be kept and are not.
        """
        cache = self.cache if self.cache is not None and item.kind == self.cache.kind else None
        if cache and (found := cache.lookup(item)):
            return found
        loaded = Loaded(load_image(item.ref, self.specs[item.kind]))
        if cache:
            # Raw among kept features: the encoder would run here and on no other rank.
            raise DataError("not-kept", f"{item.ref.name} changed while the run was on; resume to encode it")
        return loaded


@dataclass(frozen=True)
class Micro:
    """A micro-batch that is ready: None when this rank has nothing to do, and what was lost on the way."""

    batch: Batch | None
    lost: tuple[DataError, ...] = ()


class _Loading(Dataset[Micro]):
    """Plans of micro-batches in, batches out; runs in workers."""

    def __init__(self, load: Callable[[Item], Loaded], pad: int) -> None:
        self.load, self.pad = load, pad

    def __getitem__(self, rows: tuple[tuple[Tokens, ...], ...]) -> Micro:
        if not rows:
            return Micro(None)
        media: dict[int, Loaded] = {}
        lost: list[DataError] = []
        kept = []
        for row in rows:
            good = []
            for t in row:
                try:
                    loaded = [self.load(item) for item in t.items]
                except DataError as error:
                    lost.append(error.at(file=t.origin.file, row=t.origin.row))
                    continue
                media |= {len(media) + n: value for n, value in enumerate(loaded)}
                good.append(t)
            if good:
                kept.append(good)
        if not kept:
            return Micro(None, tuple(lost))
        width = rounded(max(sum(len(t) for t in row) for row in kept), per_octave=16)
        return Micro(collate(kept, media, pad=self.pad, width=width), tuple(lost))


def batches(
    plans: Iterator[StepPlan], load: Callable[[Item], Loaded], *, pad: int, workers: int = 0
) -> Iterator[tuple[StepPlan, list[Micro]]]:
    """Steps with their micro-batches loaded, in order, whatever the number of workers."""
    pending: list[StepPlan] = []

    def rows() -> Iterator[tuple[tuple[Tokens, ...], ...]]:
        for plan in plans:
            pending.append(plan)
            yield from plan.micro

    loader = DataLoader(
        _Loading(load, pad),
        batch_size=None,
        sampler=_Once(rows()),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
    )
    ready: list[Micro] = []
    for micro in loader:
        ready.append(micro)
        if len(ready) == len(pending[0].micro):
            yield pending.pop(0), ready
            ready = []


class _Once(torch.utils.data.Sampler[Sequence[tuple[Tokens, ...]]]):
    """Hands a generator to the loader as its sampler."""

    def __init__(self, rows: Iterator[tuple[tuple[Tokens, ...], ...]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[tuple[Tokens, ...], ...]]:
        return self.rows
