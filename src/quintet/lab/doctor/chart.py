"""What the doctor writes down on the way: verdicts, findings, samples, counts."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from quintet.data.check import Report, check_source
from quintet.data.sources import Source, open_source
from quintet.errors import DataError
from quintet.lab.doctor.diagnosis import Diagnosis
from quintet.lab.doctor.findings import Finding, Progress, Rendered, SourceCount, Status, Verdict, said_once

__all__ = ["Chart", "unreadable"]


@dataclass
class Chart:
    """The growing diagnosis, and how much to look at."""

    target: str
    scale: str
    samples: int
    """Rows that are shown and run."""
    limit: int
    """Rows of a source that are read."""
    progress: Progress
    verdicts: list[Verdict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    rendered: list[Rendered] = field(default_factory=list)
    sources: list[SourceCount] = field(default_factory=list)

    def judge(
        self, contract: str, stage: str, found: Iterable[Finding], *, note: str = "", broken: bool = False
    ) -> bool:
        """Notes a contract's findings; true if there are none. `broken` says so where others report them."""
        own = [replace(f, stage=f.stage or stage) for f in found]
        self.findings += own
        status: Status = "broken" if own or broken else "proved"
        self.verdicts.append(Verdict(contract=contract, stage=stage, status=status, note=note))
        return status == "proved"

    def skip(self, stage: str, note: str, *contracts: str) -> None:
        """Notes contracts that could not be examined."""
        self.verdicts += [Verdict(contract=c, stage=stage, status="skipped", note=note) for c in contracts]

    def check(self, path: Path, stage: str) -> tuple[Source | None, Report]:
        """Opens a source and checks its data; the source is None if the file cannot be read at all."""
        try:
            source = open_source(path)
        except DataError as error:
            where = error.at(file=str(path))
            self.judge("data", stage, [Finding.of(where, contract="data", stage=stage)], note="the file is refused")
            return None, Report()
        report = check_source(source, limit=self.limit, progress=lambda n, of: self.progress("checking data", n, of))
        note = f"{report.rows:,} of {len(source):,} rows, {report.media:,} media"
        if report.rows < len(source):
            note += "; `quintet data check` reads all"
        self.judge("data", stage, [Finding.of(f, contract="data", stage=stage) for f in report.faults], note=note)
        return source, report

    def diagnosis(self) -> Diagnosis:
        """All of it."""
        return Diagnosis(
            target=self.target,
            scale=self.scale,
            verdicts=tuple(self.verdicts),
            findings=said_once(self.findings),
            samples=tuple(self.rendered),
            sources=tuple(self.sources),
        )


def unreadable(report: Report) -> dict[tuple[str, int], str]:
    """(file, row) → fault of rows with a medium that cannot be opened: training drops them while loading.

    The check names the field of such a fault `image`; those of a row's own words keep it from being a sample at all.
    """
    return {(f.file, f.row): f.fault for f in report.faults if f.field == "image" and f.row is not None}
