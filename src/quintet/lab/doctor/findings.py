"""What the doctor says: findings, verdicts by contract, counts by source, and samples as they will be learnt."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from quintet.data.check import Fault
from quintet.errors import DataError

__all__ = ["CONTRACTS", "Finding", "Progress", "Rendered", "Segment", "SourceCount", "Status", "Verdict", "said_once"]

CONTRACTS = {
    "data": "every row can be read and every medium opened",
    "dropped": "no row is dropped",
    "length": "every sample fits a row, and nothing of it is cut",
    "answers": "what is learnt is the answers with their end markers, and nothing else",
    "chat": "a chat's prompt is a prefix of training, the answer decodes back, its end stops it",
    "columns": "every medium makes as many features as the text has places",
    "shift": "every target is predicted from the one column before it, and counted once",
    "packing": "samples in a row do not see each other",
    "media": "a medium acts from its place on, and never before",
    "gradients": "what a stage trains gets a gradient, what is frozen none",
}
"""Contract → its claim, in the order in which they are examined."""

_OF_RECIPES = ("does-not-fit", "does-not-run", "missing-special", "unknown-part")
"""Faults of a recipe and not of a row: the same one wherever it is met."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

Status = Literal["proved", "broken", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault: a stable word for its kind, its place, what was found, what was expected, what to do."""

    contract: str
    fault: str
    found: str
    expected: str = ""
    do: str = ""
    stage: str = ""
    file: str = ""
    row: int | None = None
    """From 1."""
    field: str = ""
    times: int = 1
    """In how many rows and stages it was met; the place is that of the first."""

    @staticmethod
    def of(error: DataError | Fault, *, contract: str, stage: str) -> "Finding":
        """A fault of the data, whose message says all three."""
        return Finding(
            contract=contract,
            fault=error.fault,
            found=error.message,
            stage=stage,
            file=error.file or "",
            row=error.row,
            field=error.field or "",
        )

    @property
    def line(self) -> str:
        """The fault in one line.

        >>> Finding(contract="length", fault="too-long", found="90 tokens", expected="at most 64", do="raise `row`",
        ...         stage="instruct", file="a.json", row=3).line
        'too-long: a.json, row 3, stage instruct: found 90 tokens; expected at most 64; raise `row`'
        """
        place = [self.file] if self.file else []
        place += [f"row {self.row}"] if self.row is not None else []
        place += [f"field {self.field}"] if self.field else []
        place += [f"stage {self.stage}"] if self.stage else []
        said = f"found {self.found}; expected {self.expected}" if self.expected else self.found
        parts = [f"{self.fault}: {', '.join(place)}" if place else self.fault, said]
        often = f" ({self.times:,} times)" if self.times > 1 else ""
        return " ".join((": ".join(parts) + (f"; {self.do}" if self.do else "")).split()) + often

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the line as `message`."""
        return asdict(self) | {"message": self.line}


def said_once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings with each fault of the recipe at its first place alone, and how often it was met."""
    kept: dict[Finding, tuple[Finding, int]] = {}
    for finding in findings:
        key = replace(finding, stage="", file="", row=None) if finding.fault in _OF_RECIPES else finding
        first, times = kept.get(key, (finding, 0))
        kept[key] = first, times + 1
    return tuple(replace(first, times=times) for first, times in kept.values())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one contract stands in one stage. `note` says on what it was proved, or why it was not examined."""

    contract: str
    stage: str
    status: Status
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceCount:
    """What becomes of the rows of one source: read = kept + dropped."""

    stage: str
    name: str
    rows: int
    """Rows of the source."""
    read: int
    """Rows that the doctor looked at."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Fault → rows."""

    @property
    def kept(self) -> int:
        return self.read - sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a sample. `kind`: text, special (a control token) or media; `learnt`: it is in the loss."""

    text: str
    kind: Literal["text", "special", "media"]
    learnt: bool


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A sample as the model reads it."""

    stage: str
    file: str
    row: int
    tokens: int
    learnt: int
    """Tokens in the loss."""
    segments: tuple[Segment, ...]
