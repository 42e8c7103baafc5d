"""Where runs were made: what a table of times must say, from the runs themselves."""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import quintet
from quintet.model.checkpoint import read_json

__all__ = ["MACHINE", "machine", "machine_of"]

MACHINE = "machine.json"
"""In a run's folder."""


def machine() -> dict[str, Any]:
    """This one, and the versions that run on it."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "quintet": quintet.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def machine_of(runs: Iterable[Path]) -> dict[str, Any]:
    """That of the runs; where they differ in something, all that they have; this one's if none says."""
    found = [read_json(run / MACHINE) for run in runs if (run / MACHINE).exists()] or [machine()]
    made: dict[str, Any] = {}
    for key in found[0]:
        values = list(dict.fromkeys(each[key] for each in found))
        made[key] = values[0] if len(values) == 1 else " or ".join(map(str, values))
    return made
