"""Recipes side by side on the same data, with equal budgets or each with its own amounts: `quintet compare`."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from quintet.lab.compare.baseline import against
from quintet.lab.compare.budget import Budget
from quintet.lab.compare.page import html
from quintet.lab.compare.runs import Comparison, Watcher, failed_before, prepare, run_all
from quintet.lab.compare.table import Known, table
from quintet.lab.compare.words import markdown

__all__ = ["Budget", "Comparison", "Watcher", "against", "compare", "dumped", "write"]

EVERY = 120.0
"""Seconds between two writings of the table while runs are on."""


def compare(comparison: Comparison, watch: Watcher, *, command: str) -> dict[str, Any]:
    """Runs what has not run yet and returns the table, which is beside the runs as JSON, a page and Markdown.

    Raises:
        Interrupted: a signal asked to stop; the same call goes on.
        ConfigError, CheckpointError: what is wrong, and what to do. What is wrong with one recipe is in its row.
    """
    systems, tasks, scenes, failures = prepare(comparison, watch)
    known: Known = {}
    sound = [system for system in systems if all((system.name, seed) not in failures for seed in comparison.seeds)]
    written = time.monotonic()

    def written_anew() -> dict[str, Any]:
        found = table(comparison, systems, tasks, failed_before(comparison) | failures, command=command, known=known)
        write(comparison.out, found)
        return found

    for name, seed, why in run_all(comparison, sound, tasks, scenes, watch):
        if why:
            failures[name, seed] = why
        watch.note(f"{name}, seed {seed}: {f'failed, {why}' if why else 'done'}")
        if time.monotonic() - written > EVERY:
            written_anew()
            written = time.monotonic()
    return written_anew()


def dumped(found: dict[str, Any]) -> str:
    """JSON to be read and compared by people: a list of plain values is one line."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda m: "[" + re.sub(r",\n\s+", ", ", m[1]) + "]", text) + "\n"


def write(out: Path, found: dict[str, Any]) -> None:
    """The table's three files, in a folder that is there."""
    for name, text in (
        ("compare.json", dumped(found)),
        ("compare.html", html(found)),
        ("compare.md", markdown(found)),
    ):
        aside = out / f".{name}.{os.getpid()}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(out / name)
