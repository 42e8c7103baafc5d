"""What a run left out: samples and pictures of documents, by the reason; past a share of all it stops."""

from collections import Counter
from dataclasses import dataclass, field

from quintet.data.pipeline import StepPlan
from quintet.errors import DataError, TrainingError
from quintet.log import logger

__all__ = ["Drops"]

log = logger(__name__)

MISSING = "missing-file"
"""The rule of a picture that is not where it should lie."""

_ENOUGH = 100
"""Samples, or pictures of documents, that are met before a share of them can stop a run."""


@dataclass
class Drops:
    """Samples and pictures of documents that were left out, by the reason; past a share of all the run stops."""

    limit: float
    rows: int = _ENOUGH
    """Of the source. Of one that has fewer than 100 the faulty rows count, and one of them is always borne."""
    seen: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # pictures not in their documents, by the rule
    shown: int = 0  # media that are in their samples
    told: list[str] = field(default_factory=list)  # a row that is met again is counted, and not named again

    @property
    def dropped(self) -> int:
        return sum(self.faults.values())

    def take(self, plan: StepPlan) -> None:
        """Counts what the plan of a step left out.

        Raises:
            TrainingError: too many samples were dropped (`add`), or too many pictures are missing (`judge`).
        """
        self.seen += plan.seen
        for error in plan.dropped:
            self.add(error)
        unheard = not self.left_out.get(MISSING)
        self.left_out = dict(Counter(self.left_out) + Counter(plan.left_out))
        self.shown += plan.shown
        if unheard and self.left_out.get(MISSING):
            log.warning("pictures are left out of their documents, at step %d: %s", plan.step + 1, self.lost())
        self.judge(_ENOUGH)

    def lost(self) -> str:
        """'8 of 40 pictures (7 missing-file, 1 too-many)': those that are not in their documents."""
        counts = ", ".join(f"{n:,} {rule}" for rule, n in sorted(self.left_out.items()))
        return f"{(lost := sum(self.left_out.values())):,} of {lost + self.shown:,} pictures ({counts})"

    def judge(self, least: int = 1) -> None:
        """Stops the run when most pictures are not there: that is no loss of a few but a wrong folder.

        Raises:
            TrainingError: of at least `least` pictures that were met, more than half are missing.
        """
        met = self.shown + sum(self.left_out.values())
        if met >= least and 2 * self.left_out.get(MISSING, 0) > met:
            raise TrainingError(
                f"{self.lost()} are left out of their documents, more than half of them because no file is there. "
                "Pictures lie beside the data file, by name or by the SHA-256 of their address. If they are elsewhere, "
                "`quintet data filter FILE --root FOLDER` writes the documents with them"
            )

    def add(self, error: DataError) -> None:
        """Counts one, says so, and stops the run when there are too many.

        Raises:
            TrainingError: more than `limit` were dropped of at least 100 samples, or of the rows where they are fewer.
        """
        self.faults[error.fault] = self.faults.get(error.fault, 0) + 1
        if (text := str(error)) not in self.told:
            log.warning("sample dropped: %s", text)
            self.told.append(text)
        if self.rows < _ENOUGH:
            over = len(self.told) > max(1.0, self.limit * self.rows)
            lost = f"{len(self.told)} of {self.rows} rows"
        else:
            over = self.seen >= _ENOUGH and self.dropped > self.limit * self.seen
            lost = f"{self.dropped} of {self.seen} samples"
        if over:
            counts = ", ".join(f"{n} {fault}" for fault, n in sorted(self.faults.items()))
            raise TrainingError(
                f"{lost} were dropped ({counts}), over the limit of {self.limit:.0%}; "
                f"the last: {error}. Run `quintet data check` on the file"
            )
