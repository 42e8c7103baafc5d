"""What is examined: one stage of a recipe, its rows read and spelt, and the small model that its contracts run on."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from quintet.data.collate import Loaded
from quintet.data.media import load_image
from quintet.data.pipeline import Source
from quintet.data.processor import Processor
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError, DataError
from quintet.lab.doctor.findings import Finding, Progress, SourceCount
from quintet.model.mllm import MLLM
from quintet.training.stage import Stage
from quintet.values import Item, Origin, Sample, Tokens

__all__ = ["Case", "Reading", "choose", "read_rows"]


MISFITS = 5
"""Rows that no setting fits, and none that one does, after which reading ends: the recipe is wrong, not the rows."""


@dataclass(frozen=True)
class Case:
    """A sample with its tokens and its media, all made for the model that runs."""

    sample: Sample
    tokens: Tokens
    media: tuple[Loaded, ...]

    @property
    def origin(self) -> Origin:
        return self.sample.origin


@dataclass
class Reading:
    """The rows of a stage as training would see them. `good` are the numbers of those that are kept, from 0."""

    stage: Stage
    processor: Processor
    """At the scale that was asked for."""
    source: Source
    read: int = 0
    good: list[int] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    sizes: dict[tuple[str, tuple[int, ...]], tuple[Item, Origin]] = field(default_factory=dict)
    """(kind, size) → the first medium of it."""
    widest: int = -1
    """The row with the most media."""

    @property
    def count(self) -> SourceCount:
        return SourceCount(
            stage=self.stage.name, name=self.source.name, rows=len(self.source), read=self.read, dropped=self.dropped
        )

    def drop(self, fault: str) -> None:
        """Counts a row that training would leave out."""
        self.dropped[fault] = self.dropped.get(fault, 0) + 1

    def samples(self) -> Iterator[tuple[int, Sample, Tokens]]:
        """The kept rows, read again."""
        for index in self.good:
            sample = self.source.sample(index)
            yield index, sample, self.processor.tokens(sample)

    def cases(self, chosen: list[int], model: MLLM.Config) -> list[Case]:
        """The rows of these numbers, spelt and loaded for `model`."""
        processor = replace(self.processor, model=model)
        made = []
        for index in chosen:
            sample = self.source.sample(index)
            tokens = processor.tokens(sample)
            media = tuple(Loaded(load_image(item.ref, processor.spec(item.kind))) for item in tokens.items)
            made.append(Case(sample, tokens, media))
        return made


def read_rows(
    stage: Stage,
    source: Source,
    tokenizer: Tokenizer,
    model: MLLM.Config,
    *,
    limit: int,
    unreadable: dict[tuple[str, int], str],
    progress: Progress,
) -> Reading:
    """Reads and spells the first `limit` rows, and notes which ones training would drop, and why.

    `unreadable` are (file, row) → fault of rows with a medium that cannot be opened: training drops them while loading.
    """
    reading = Reading(stage, Processor(tokenizer, stage.template, model), source, read=min(limit, len(source)))
    most = 0
    for index in range(reading.read):
        progress(f"{stage.name}: reading", index, reading.read)
        try:
            sample = source.sample(index)
        except DataError as error:
            reading.drop(error.fault)  # the check of the data reports it, with all that is wrong with the row
            continue
        here = sample.origin
        if fault := unreadable.get((here.file, here.row)):
            reading.drop(fault)
            continue
        try:
            tokens = reading.processor.tokens(sample)
        except DataError as error:
            reading.drop(error.fault)
            placed = error.at(file=here.file, row=here.row)
            reading.findings.append(Finding.of(placed, contract="dropped", stage=stage.name))
            continue
        except ConfigError as error:
            reading.drop("does-not-fit")
            reading.findings.append(_misfit(error, here, stage))
            if not reading.good and len(reading.findings) >= MISFITS:
                reading.read = index + 1
                break
            continue
        if len(tokens) > stage.row:
            reading.drop("too-long")
            reading.findings.append(_too_long(tokens, stage))
            continue
        reading.good.append(index)
        for item in tokens.items:
            reading.sizes.setdefault((item.kind, item.size), (item, here))
        if len(tokens.items) > most:
            most, reading.widest = len(tokens.items), index
    return reading


def choose(reading: Reading, n: int) -> list[int]:
    """At most `n` kept rows, evenly spaced; the one with the most media is always among them."""
    good = reading.good
    chosen = [good[i * len(good) // n] for i in range(n)] if len(good) > n else list(good)
    if reading.widest >= 0 and reading.widest not in chosen:
        chosen[-1] = reading.widest
    return sorted(chosen)


def _misfit(error: ConfigError, here: Origin, stage: Stage) -> Finding:
    return Finding(
        contract="columns",
        fault="does-not-fit",
        found=str(error),
        expected="a model and a template that take this row",
        do="training would stop here",
        stage=stage.name,
        file=here.file,
        row=here.row,
    )


def _too_long(tokens: Tokens, stage: Stage) -> Finding:
    media = sum(item.columns for item in tokens.items)
    return Finding(
        contract="length",
        fault="too-long",
        found=f"{len(tokens)} tokens, {media} of them of media",
        expected=f"at most {stage.row}, the columns of a row",
        do=f"raise stages.{stage.name}.row, or split the conversation; the row is dropped until then",
        stage=stage.name,
        file=tokens.origin.file,
        row=tokens.origin.row,
    )
