"""A process that forks a child for every run, and lets it die at a chosen moment: for tests of what goes on after it.

The library is imported once, so a real process trains and really dies in little time. The child counts two kinds of
moments and gets its signal at a chosen one: `write`, before every change on the disk inside RUN (an audit hook sees
opens, renames and removals), and `forward`, before every micro-batch.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DIED", "Nursery", "Outcome", "nursery_of"]

NURSERY = r"""
import json, os, signal, sys
from pathlib import Path
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from quintet.errors import QuintetError
from quintet.lab.align import Start
from quintet.lab.run import Job, train
from quintet.training.loop import Interrupted, Settings
from quintet.training.parallel import Step

torch.set_num_threads(1)
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}


def job(order):
    os.environ["QUINTET_CACHE"] = order["cache"]
    given = dict(order["job"])
    if "start" in given:
        given["start"] = Start(Path(given["start"]))
    if "scenes" in given:
        given["scenes"] = Path(given["scenes"])
    given["data"] = {stage: Path(path) for stage, path in given.get("data", {}).items()}
    return Job(out=Path(order["out"]), scale="tiny", resume=order["resume"], settings=Settings(**order["settings"]),
               **given)


def live(order):
    counts, run = {"write": 0, "forward": 0}, order["out"]

    def moment(kind):
        counts[kind] += 1
        if [kind, counts[kind]] == order["at"]:
            os.kill(os.getpid(), order["signal"])

    def hook(event, args):
        if event not in CHANGES or not isinstance(args[0], (str, os.PathLike)):
            return
        if os.path.realpath(args[0]).startswith(run) and not (event == "open" and args[2] & 3 == os.O_RDONLY):
            moment("write")

    sys.addaudithook(hook)
    register_module_forward_pre_hook(lambda module, args: moment("forward") if isinstance(module, Step) else None)
    try:
        train(job(order))
        code = 0
    except Interrupted:
        code = 130
    except QuintetError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 1
    Path(order["counts"]).write_text(json.dumps(counts))
    return code


# What is imported and set up at first use is so once, and not in every child.
train(job(json.loads(sys.stdin.readline())))
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os._exit(live(json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

DIED = -signal.SIGKILL


@dataclass
class Nursery:
    """Asks the process for one life after the other."""

    process: subprocess.Popen[str]
    job: dict[str, Any]
    """Settings of `quintet.lab.run.Job` as JSON."""

    def live(
        self, folder: Path, *, at: tuple[str, int] | None = None, number: int = signal.SIGKILL, **settings: Any
    ) -> int:
        """Trains in `folder`, or goes on; the exit code, negative for a signal."""
        self.send(folder, at=at, number=number, **settings)
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def send(
        self, folder: Path, *, at: tuple[str, int] | None = None, number: int = signal.SIGKILL, **settings: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        order = {
            "out": str(folder / "run"),
            "cache": str(folder / "cache"),
            "job": self.job,
            "counts": str(folder / "counts"),
            "resume": True,
            "at": at,
            "signal": number,
            "settings": {"save_steps": 2, "precision": "fp32"} | settings,
        }
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()


@dataclass(frozen=True)
class Outcome:
    """What must be equal: bytes of the model, and every line of the metrics but what a clock or the system said."""

    model: dict[str, bytes]
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        files = {p.name: p.read_bytes() for p in sorted((folder / "run" / "model").iterdir())}
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        told = {"seconds", "step_seconds", "memory"}
        return cls(files, [{k: v for k, v in row.items() if k not in told} for row in rows])


@contextmanager
def nursery_of(job: dict[str, Any], folder: Path) -> Iterator[Nursery]:
    """A nursery for one job, warm: what is imported and set up at first use is so once."""
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        made = Nursery(process, job)
        made.send(folder / "warm")
        yield made
        process.kill()
