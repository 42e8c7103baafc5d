"""`quintet report`: what a run was, what it cost and what it is worth, on one page that needs no network.

Everything is read from the run's own files; what is missing is left out, never guessed.
"""

from pathlib import Path

from quintet.lab import sections
from quintet.lab.page import page, write_page
from quintet.lab.record import RunRecord, find_runs

__all__ = ["write_report"]


def write_report(path: Path, *, out: Path | None = None, pictures: Path | None = None) -> Path:
    """Writes `report.html` for a run, or for all runs of a folder; returns where. `pictures` is looked in first.

    Raises:
        CheckpointError: there is no run, or a file of it is broken.
    """
    records = [RunRecord.read(run, pictures=pictures) for run in find_runs(path)]
    body = sections.overview(records) if len(records) > 1 else ""
    body += "\n".join(f'<article class="run">{sections.of_run(record)}</article>' for record in records)
    place = out if out is not None else path / "report.html"
    title = records[0].name if len(records) == 1 else path.resolve().name
    return write_page(place, page(f"{title} · Quintet", body))
