"""How a training run looks in the terminal: a bar with loss, speed, share of the machine's peak and time left."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from quintet.pace import Pace, minutes

__all__ = ["Bars", "CompareBars", "TrainingBars", "bar"]

Flops = Mapping[str, tuple[float, float]]
"""Stage → FLOPs of the LLM (per token read, per token predicted), forward and backward."""

_WINDOW = 20
"""Steps that the speed is an average of."""


class Bars:
    """A bar for each thing that counts: so much of it is done.

    Without a terminal there is a line about every half minute.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.paces: dict[str, Pace] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Tells how far it is."""
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total)
            self.paces[what] = Pace(self._say, what)
        self.progress.update(self.tasks[what], completed=done, total=total)
        if not self.console.is_terminal:
            self.paces[what](done, total)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


@contextmanager
def bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """One bar, told of (done, in all)."""
    with Bars(console) as bars:
        yield partial(bars.update, title)


class TrainingBars:
    """One bar a stage, and one for whatever else counts; told of every step by the loop.

    Without a terminal there is a line about every half minute.
    """

    def __init__(self, console: Console, *, flops: Flops, peak: float) -> None:
        self.console, self.flops, self.peak = console, flops, peak
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=_WINDOW)
        self.said = 0.0

    def __enter__(self) -> "TrainingBars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    def count(self, what: str, done: int, total: int) -> None:
        """So much of something else than steps is done."""
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, facts="")
        self.progress.update(self.tasks[what], completed=done, total=total)

    def step(self, row: dict[str, Any]) -> None:
        """A line of metrics, as `quintet.training.loop` makes it."""
        name = row["stage"]
        if name not in self.tasks:
            self.recent.clear()
            self.tasks[name] = self.progress.add_task(name, total=row["steps"], facts="")
        self.recent.append(row)
        facts = self.facts()
        self.progress.update(self.tasks[name], completed=row["step"], facts=facts)
        last = row["step"] == row["steps"]
        if not self.console.is_terminal and (last or time.monotonic() - self.said > 30):
            self.said = time.monotonic()
            self.console.print(f"{name} {row['step']}/{row['steps']}  {facts}", highlight=False)

    def facts(self) -> str:
        """Loss, speed and share of the peak, over the last steps.

        The first row of a stage dates from before its first step, so speeds need two rows.
        """
        rows, last = list(self.recent), self.recent[-1]
        text = f"loss {last['loss']:.3f}"
        # Of pairs: how often the better answer is ahead, and by how much. Of a policy: what its answers are worth, how
        # long they are in tokens, and how far they have drifted from the model before, in nats a token.
        told = ("accuracy", "margin", "reward", "length", "drift")
        text += "".join(f"  {name} {last[name]:.2f}" for name in told if name in last)
        seconds = last["seconds"] - rows[0]["seconds"]
        if len(rows) < 2 or seconds <= 0:
            return text
        tokens, targets = (sum(r[key] for r in rows[1:]) for key in ("tokens", "targets"))
        text += f"  {tokens / seconds:,.0f} tokens/s"
        if last["stage"] in self.flops and self.peak:
            read, predicted = self.flops[last["stage"]]
            text += f"  {(tokens * read + targets * predicted) / seconds / self.peak:.0%} of peak"
        return text


QUICK = 2.0
"""Seconds: a run that takes less was done before."""


class CompareBars:
    """How a comparison looks: one bar for all runs with the time left, and one for what is being done.

    Without a terminal there is a line about every half minute.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.all = self.progress.add_task("all runs", total=None, facts="")
        self.now = self.progress.add_task("", total=None, facts="", visible=False)
        self.what, self.begun, self.said = "", time.monotonic(), 0.0
        self.first: tuple[float, float] | None = None
        self.left = ""

    def __enter__(self) -> "CompareBars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    def runs(self, done: float, total: int) -> None:
        """So many runs are done, and of the one that is on such a share."""
        now = time.monotonic()
        begun, at = self.first or (now, done)
        # By what this call has done: runs that were there already took no time.
        if now - begun < QUICK * (done - at):
            begun, at = now, done
        self.first = begun, at
        if done - at > 0.05 and now - begun > 1:
            self.left = f", about {minutes((now - begun) / (done - at) * (total - done))} left"
        self.progress.update(self.all, completed=done, total=total, facts=f"{int(done)} of {total}{self.left}")

    def count(self, what: str, done: int, total: int) -> None:
        """So much of one thing is done."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.begun = what, now
        left = (now - self.begun) / done * (total - done) if done else 0.0
        facts = f"{done:,} of {total:,}" + (f", {minutes(left)} left" if left > 1 else "")
        self.progress.update(self.now, description=what, completed=done, total=total, facts=facts, visible=True)
        if not self.console.is_terminal and now - self.said > 30:
            self.said = now
            rest = f"; all runs{self.left}" if self.left else ""
            self.console.print(f"{what}: {facts}{rest}", highlight=False, markup=False)
