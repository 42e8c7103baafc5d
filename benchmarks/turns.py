"""Two sides of a benchmark that take turns: what `sft.py` and `dpo.py` share.

Each side is a process of its own, so its memory is its own, and takes a few steps before it is the other's turn, so
whatever else runs on the machine hits both. A side that waits sleeps. The first turn is warm-up: first allocations,
kernels that compile themselves.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

WARMUP = 3
"""Steps at the beginning that are not counted."""
TURN = 3
"""Steps that a side takes before it is the other's turn."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is compared: plain values, the same for both sides."""

    folder: str
    precision: str
    steps: int
    batch: int
    threads: int
    row: int
    micro: int


# ---- the end inside a side's process -----------------------------------------------------------------------------
class Turns:
    """Takes steps when it is told to, and says how long each took and what its loss was."""

    def __init__(self, steps: int) -> None:
        # What libraries print must not reach the other end.
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.left, self.to_come = 0, steps
        self.begun = self.begun_cpu = 0.0

    def ready(self, **facts: Any) -> None:
        """Waits for the first turn."""
        self.say(facts)
        self._wait()

    def step(self, loss: float) -> None:
        """One step is done."""
        seconds, cpu = time.perf_counter() - self.begun, time.process_time() - self.begun_cpu
        self.say({"seconds": seconds, "cpu": cpu, "loss": loss})
        self.left -= 1
        self.to_come -= 1
        if self.to_come:
            self._wait()

    def say(self, facts: Mapping[str, Any]) -> None:
        """A line to the other end."""
        self.out.write(json.dumps(facts) + "\n")
        self.out.flush()

    def _wait(self) -> None:
        while self.left == 0:
            self.left = int(sys.stdin.readline())
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()


# ---- the end that compares ---------------------------------------------------------------------------------------
class Side:
    """A process in a role of `script`, which is run with `--child ROLE CASE`, and what it said."""

    def __init__(self, script: str, role: str, case: Any) -> None:
        self.role, self.errors = role, tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        # One thread count for both. A side that waits for its turn sleeps: OpenMP's threads spin for milliseconds only.
        env = os.environ | {"OMP_NUM_THREADS": str(case.threads), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, script, "--child", role, json.dumps(asdict(case))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env
        )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def hear(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"{self.role} ended with {self.process.returncode}:\n{self.errors.read()[-4000:]}")
        return json.loads(line)

    def take(self, steps: int) -> None:
        """A turn of so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for _ in range(steps):
            said = self.hear()
            self.seconds.append(said["seconds"])
            self.cpu.append(said["cpu"])
            self.losses.append(said["loss"])

    def last(self) -> dict[str, Any]:
        """The last line, when the process has ended."""
        said = self.hear()
        self.process.wait()
        return said


def ask(script: str, role: str, case: Any) -> dict[str, Any]:
    """What a process has to say that takes no turns."""
    return Side(script, role, case).last()


def take_turns(sides: Mapping[str, Side], steps: int) -> None:
    """So many steps of each side, the warm-up together."""
    done = 0
    while done < steps:
        turn = min(WARMUP if done == 0 else TURN, steps - done)
        for side in sides.values():
            side.take(turn)
        done += turn


def step_seconds(side: Side) -> dict[str, float]:
    """Of the steps after warm-up, in seconds."""
    counted = side.seconds[WARMUP:]
    return {"step_seconds": round(median(counted), 4), "best_step_seconds": round(min(counted), 4)}


def first_losses(sides: Mapping[str, Side], *, tolerance: float, what: str) -> dict[str, Any]:
    """The first losses and how far the sides come apart; ends the benchmark where they begin apart."""
    ours, theirs = sides["ours"].losses, sides["theirs"].losses
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    if not gaps[0] <= tolerance:
        raise SystemExit(f"{what}: first losses {ours[0]}, {theirs[0]}")
    return {
        "first_loss": {name: round(side.losses[0], 6) for name, side in sides.items()},
        "first_loss_gap": float(f"{gaps[0]:.3g}"),
        "worst_loss_gap": float(f"{max(gaps):.3g}"),
    }


def precisions(asked: str) -> tuple[str, ...]:
    """fp32, and bf16 where the processor has instructions for it."""
    if asked != "both":
        return (asked,)
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return ("fp32", "bf16") if any(f in flags for f in ("avx512_bf16", "amx_bf16")) else ("fp32",)
