"""The result of `quintet doctor`, for scripts (`to_json`, `ok`) and for people (`render`)."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from quintet.lab.doctor.findings import CONTRACTS, Finding, Rendered, SourceCount, Verdict
from quintet.lab.doctor.show import drawn, table

__all__ = ["Diagnosis"]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was examined and what was found."""

    target: str
    scale: str
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    samples: tuple[Rendered, ...]
    sources: tuple[SourceCount, ...]

    @property
    def ok(self) -> bool:
        """Whether no fault was found; a contract that was skipped is none, and its note says why."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `quintet doctor --json` prints it."""
        return {
            "target": self.target,
            "scale": self.scale,
            "ok": self.ok,
            "contracts": [asdict(v) | {"claim": CONTRACTS[v.contract]} for v in self.verdicts],
            "faults": [f.to_json() for f in self.findings],
            "sources": [asdict(s) | {"kept": s.kept} for s in self.sources],
            "samples": [asdict(s) for s in self.samples],
        }

    def render(self, console: Console, *, most: int = 20) -> None:
        """Samples with what is learnt in colour, then the contracts, then a line for each fault.

        At most `most` lines are shown of one kind of fault; how many are left out is said.
        """
        for sample in self.samples:
            console.print(drawn(sample))
        console.print(table(self.verdicts))
        for source in self.sources:
            lost = ", ".join(f"{n} {fault}" for fault, n in sorted(source.dropped.items())) or "none dropped"
            console.print(
                f"{source.stage or 'data'}: {source.name}: {source.kept:,} of {source.read:,} rows kept ({lost}); "
                f"{source.rows:,} rows in all",
                markup=False,
                highlight=False,
            )
        shown: dict[str, int] = {}
        for finding in self.findings:
            shown[finding.fault] = shown.get(finding.fault, 0) + 1
            if shown[finding.fault] <= most:
                console.print(f"✗ {finding.line}", style="red", markup=False, highlight=False, soft_wrap=True)
        for fault, n in shown.items():
            if n > most:
                console.print(f"… and {n - most:,} more of {fault}; --json has them all", markup=False)
        count = len(self.findings)
        last = "No fault found." if self.ok else f"{count:,} fault{'s' if count > 1 else ''} found."
        console.print(last, style="green" if self.ok else "red")
