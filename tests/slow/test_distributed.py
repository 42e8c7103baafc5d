"""Two processes compute what one does: same losses, same model, and each goes on from the other's checkpoint.

This file is also what `torchrun` starts: each of its processes runs all orders of a list one after the other, so that
the library is loaded once. The same orders run here in one process. About 40 s.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import picture_rows
from quintet import dist
from quintet.data.pipeline import Plan, Planner, measure_with
from quintet.data.sources import open_source
from quintet.lab.pretrained import load_tokenizer
from quintet.lab.run import Job, resolve, train
from quintet.training.loop import Interrupted, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOSS = 1e-5
"""float32 sums over two ranks instead of one, in another order, over up to 6 steps. Worst measured: 3.5e-7."""
WEIGHTS = 1e-4
"""A tenth of a step: Adam turns the sign of a gradient that is nothing but rounding into a step of the rate's size, so
equality to rounding cannot be promised for every weight. Worst measured: 1.2e-6."""

STAGES = ("pretrain", "instruct")
GATED_STAGES = ("pairs", "interleaved")
"""Of OpenFlamingo: what stands around blocks runs on every rank too, and a resampler."""


@dataclass(frozen=True)
class Order:
    """One run of `train`."""

    out: str
    data: str
    sets: list[str] = field(default_factory=list)
    stop_after: int | None = None
    recipe: str = "llava15"

    def job(self) -> Job:
        settings = Settings(precision="fp32", save_steps=2, stop_after=self.stop_after)
        return Job(
            recipe=self.recipe,
            scale="tiny",
            out=Path(self.out),
            data={s: Path(self.data) for s in (GATED_STAGES if self.recipe == "open_flamingo" else ("", *STAGES))},
            sets=self.sets,
            resume=True,
            settings=settings,
        )

    def obey(self) -> None:
        try:
            train(self.job())
        except Interrupted:
            assert self.stop_after


def sets(**amounts: int) -> list[str]:
    """No packing and one row a micro-batch: the same rows for any number of ranks, dealt out one by one."""
    both = [
        f"stages.{stage}.{s}" for stage in STAGES for s in ("packing=false", "micro=1", "row=300", "schedule=constant")
    ]
    return [
        *both,
        *(
            f"stages.{stage}.{name.removesuffix('_' + stage)}={value}"
            for name, value in amounts.items()
            for stage in STAGES
            if name.endswith(stage)
        ),
    ]


PICTURES = [
    *sets(batch_pretrain=4, steps_pretrain=3, batch_instruct=4, steps_instruct=4),
    'stages.instruct.train.encoders={"lr": 0.001}',
]
LONELY = sets(batch_pretrain=1, steps_pretrain=5, batch_instruct=3, steps_instruct=6)
ADAPTERS = [
    *sets(batch_pretrain=4, steps_pretrain=2, batch_instruct=4, steps_instruct=2),
    'stages.pretrain.train={"llm": {"lr": 0.001, "lora": {"rank": 2}}}',
]
GATED = [
    f"stages.{stage}.{s}"
    for stage in GATED_STAGES
    for s in ("packing=false", "micro=1", "row=300", "schedule=constant", "batch=3", "steps=4")
]

TOKENS = [
    *sets(batch_pretrain=4, steps_pretrain=2, batch_instruct=4, steps_instruct=2),
    'stages.pretrain.train={"tokens": {"lr": 0.001}}',
    'stages.pretrain.template.added=["<im_start>"]',
    'stages.pretrain.template.media={"image": {"before": "<im_start>"}}',
    "model.llm.tie_head=false",
]
EXPERTS = [
    f"stages.{stage}.{s}"
    for stage in ("pretrain", "instruct", "experts")
    for s in ("packing=false", "micro=1", "row=300", "batch=4", "steps=1")
]
REGIONS = [f"stages.grit.{s}" for s in ("packing=false", "micro=1", "row=300", "batch=4", "steps=4")]


def pointed(path: Path) -> Path:
    """The same rows, every third with a region in its question: a rank may have none beside one that has."""
    rows = json.loads(path.read_text())
    for row in rows[::3]:
        row["conversations"][0]["value"] += " In <region>?"
        row["regions"] = [[0.25, 0.25, 0.75, 1.0]]
    made = path.with_name("pointed.json")
    made.write_text(json.dumps(rows))
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: in `one` by one process, in `two` by two; `one-two` was begun by one and ended by two, and so on."""
    folder = tmp_path_factory.mktemp("runs")
    many = str(picture_rows(folder / "many", 7, text_only=2))
    picture_rows(folder / "pictured", 7)
    single = str(picture_rows(folder / "single", 1, text_only=3))

    def orders(where: str) -> list[Order]:
        made = [
            Order(str(folder / where / "pictures"), many, PICTURES),
            Order(str(folder / where / "lonely"), single, LONELY),
        ]
        made.append(Order(str(folder / where / "gated"), single, GATED, recipe="open_flamingo"))
        made.append(Order(str(folder / where / "adapters"), many, ADAPTERS))
        made.append(Order(str(folder / where / "experts"), many, EXPERTS, recipe="moe_llava"))
        made.append(Order(str(folder / where / "tokens"), many, TOKENS))
        regions = str(pointed(folder / "pictured" / "rows.json"))
        return [*made, Order(str(folder / where / "regions"), regions, REGIONS, recipe="ferret")]

    def across(where: str, stop: int | None) -> Order:
        """Stopped after two of three steps of the first stage, or on from there to the end."""
        return Order(str(folder / where), many, PICTURES, stop_after=stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUINTET_CACHE", str(folder / "cache-one"))
        for order in [*orders("one"), across("one-two", 2)]:
            order.obey()
        launch(folder, [*orders("two"), across("two-one", 2), across("one-two", None)])
        across("two-one", None).obey()
    return folder


def launch(folder: Path, orders: list[Order]) -> None:
    """`torchrun` with two processes; they may take two minutes, not for ever."""
    path = folder / "orders.json"
    path.write_text(json.dumps([asdict(order) for order in orders]))
    known = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    known |= {"QUINTET_CACHE": str(folder / "cache-two")}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        str(path),
    ]
    done = subprocess.run(command, env=known, timeout=500, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_steps(mine: Path, other: Path) -> None:
    found, wanted = lines(mine), lines(other)
    for name in ("stage", "step", "targets", "tokens", "dropped", "lr"):
        assert [row[name] for row in found] == [row[name] for row in wanted], name
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], abs=LOSS)
    assert [row["grad_norm"] for row in found] == pytest.approx(
        [row["grad_norm"] for row in wanted], rel=1e-3, abs=1e-6
    )


def assert_same_model(mine: Path, other: Path) -> None:
    for path in sorted((other / "model").glob("*.safetensors")):
        found, wanted = load_file(mine / "model" / path.name), load_file(path)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, atol=WEIGHTS, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("config.json", "processor.json", "tokenizer.json"):
        assert (mine / "model" / name).read_bytes() == (other / "model" / name).read_bytes()


@pytest.mark.parametrize("name", ["pictures", "lonely", "gated", "adapters", "experts", "tokens", "regions"])
def test_two_processes_have_the_losses_and_the_model_of_one(runs: Path, name: str) -> None:
    assert_same_steps(runs / "two" / name, runs / "one" / name)
    assert_same_model(runs / "two" / name, runs / "one" / name)


@pytest.mark.parametrize("way", ["one-two", "two-one"])
def test_a_checkpoint_of_one_world_goes_on_in_another(runs: Path, way: str) -> None:
    assert_same_steps(runs / way, runs / "one" / "pictures")
    assert_same_model(runs / way, runs / "one" / "pictures")


def test_losses_fall_so_equality_is_not_that_of_nothing(runs: Path) -> None:
    for name in ("pictures", "adapters"):
        losses = [row["loss"] for row in lines(runs / "one" / name)]
        assert len(set(losses)) == len(losses)


def test_the_lonely_run_has_the_cases_that_hang(runs: Path) -> None:
    """A rank without a row, a rank without a picture beside one that has it, and a step without any picture."""
    order = Order("none", str(runs / "single" / "rows.json"), LONELY)
    recipe = resolve(order.job())[1]
    tokenizer = load_tokenizer(recipe.model)
    specs = {"image": recipe.model.spec("image")}
    cases = set()
    for stage, world in ((s, 2) for s in recipe.stages):
        plan = Plan(
            batch=stage.batch,
            steps=stage.steps or 0,
            row=stage.row,
            micro=stage.micro,
            seed=0,
            packing=False,
            world=world,
        )
        ranks = [
            Planner(
                open_source(Path(order.data)),
                stage.template,
                tokenizer,
                measure_with(specs, recipe.model.columns),
                replace(plan, rank=rank),
            )
            for rank in range(world)
        ]
        for n in range(plan.steps):
            plans = [planner.step(n) for planner in ranks]
            pictures = [any(t.items for group in p.micro for row in group for t in row) for p in plans]
            cases |= {"no row"} if any(() in p.micro for p in plans) else set()
            cases |= {"no picture here"} if any(pictures) and not all(pictures) else set()
            cases |= {"no picture"} if not any(pictures) else set()
    assert cases == {"no row", "no picture here", "no picture"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with dist.group():
        for found in json.loads(Path(sys.argv[1]).read_text()):
            Order(**found).obey()
