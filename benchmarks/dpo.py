"""DPO steps of one tiny LLaVA: TRL's DPOTrainer against our loop, on the same pairs, in one run.

    python benchmarks/dpo.py [--tokens 64|576|both] [--train full|lora|both] [--precision fp32|bf16|both] [--steps 21]

`full`: the connector and the LLM learn; TRL runs a frozen copy of the model beside it, as it does by default (its
option to compute the reference's log-probabilities before refuses pictures), ours reads them from disk. The pass that
fills the disk is timed apart, and a ratio with it spread over one epoch is given too. `lora`: adapters on the LLM; both
sides turn them off for the reference.

Both sides start from one folder that transformers saved, take the same pairs in the same order with the same ids and
pixels, and use the same optimizer, rate, clipping and number of threads. TRL is given what makes it fast here: no
recomputed activations, no truncation, texts that are rendered already. Its collator prepares each picture twice, pads
to the longest pair and runs each pair as two rows; ours runs it as one tree. Ratios are of pairs a second.

First the gradients of one step are compared, policy and reference being different models; then the losses of all
steps. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from dpo_gradients import gradients
from dpo_sides import Case, kept, peft_name, trainer
from tiny_pairs import make_pairs, write_reference
from turns import WARMUP, Side, Turns, ask, first_losses, precisions, step_seconds, take_turns

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Of the first step's loss, in nats a pair."""
GRADIENT_TOLERANCE = 1e-4
"""The largest difference of two gradients as a share of the largest gradient, in float32: the sides sum in different
orders, over a thousand and more tokens a step."""


# ---- the two sides, each in a process of its own -------------------------------------------------------------------
def ours(case: Case, turns: Turns) -> None:
    """Our loop, as `quintet align dpo` runs it."""
    import time

    from tiny_llava import tokenizer

    from quintet.data.sources import open_source
    from quintet.model.convert import import_model
    from quintet.training.folder import RunFolder
    from quintet.training.hardware import prepare_cpu
    from quintet.training.loop import Given, Settings, train_stage

    prepare_cpu()
    model, _ = import_model(case.pairs.model)
    source, reader = open_source(case.pairs.rows), tokenizer()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    references = kept(case, model, source, reader, place=Path(case.folder))
    passed = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - begun_cpu} if references else {}
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        turns.ready(reference=passed)
        train_stage(
            model,
            case.stage,
            source,
            reader,
            run=RunFolder(Path(folder)),
            settings=Settings(precision=case.precision),  # type: ignore[arg-type]
            given=Given(references=references),
            progress=lambda row: turns.step(row["loss"]),
        )


def theirs(case: Case, turns: Turns) -> None:
    """TRL's trainer."""
    from transformers import TrainerCallback

    class Telling(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                turns.step(logs["loss"])

    made = trainer(case, case.pairs.adapter if case.train == "lora" else case.pairs.model, [Telling()])
    turns.ready()
    made.train()


# ---- what a process does -----------------------------------------------------------------------------------------
def child(role: str, case: Case) -> None:
    """What a process does."""
    import torch

    torch.set_num_threads(case.threads)
    turns = Turns(case.steps)
    if role == "material":
        turns.say({"steps": material(case)})
    elif role == "gradients":
        turns.say(gradients(case))
    else:
        from quintet.training.hardware import peak_memory

        (ours if role == "ours" else theirs)(case, turns)
        turns.say({"peak_bytes": peak_memory(torch.device("cpu"))})


def material(case: Case) -> list[dict[str, int]]:
    """Writes what both sides read."""
    import torch

    from quintet.components import lora
    from quintet.model.convert import import_model
    from quintet.training.optim import set_trainable

    make_pairs(case.pairs, rows=case.steps * case.batch)
    if case.train == "lora":
        model, _ = import_model(case.pairs.model)
        torch.manual_seed(0)  # as the loop does before it makes adapters
        set_trainable(model, case.stage.train)
        lora.save(model.llm, case.pairs.adapter, rename=peft_name)
    return write_reference(case.pairs, case.stage, seed=0)


# ---- the comparison ----------------------------------------------------------------------------------------------
def compare(case: Case) -> dict[str, Any]:
    """Compares gradients, runs both sides in turns; returns the figures."""
    what = f"{case.tokens} tokens, {case.train}, {case.precision}"
    facts = ask(__file__, "material", case)["steps"][WARMUP:]
    found = ask(__file__, "gradients", case)
    gap = abs(found["losses"][0] - found["losses"][1])
    if not (found["gap"] <= GRADIENT_TOLERANCE and gap <= LOSS_TOLERANCE["fp32"]):
        raise SystemExit(f"{what}: the sides do not compute the same: {found}")
    # One after the other: what ours does before its first step is timed.
    sides, begun = {}, {}
    for name in ("ours", "theirs"):
        sides[name] = Side(__file__, name, case)
        begun[name] = sides[name].hear()
    take_turns(sides, case.steps)
    peaks = {name: side.last()["peak_bytes"] for name, side in sides.items()}
    losses = first_losses(sides, tolerance=LOSS_TOLERANCE[case.precision], what=what)
    columns = {name: median(fact[name] for fact in facts) for name in facts[0]}
    head = {"tokens": case.tokens, "train": case.train, "precision": case.precision, "columns": columns}
    compared = {
        "gradients": found["compared"],
        "gradient_gap": float(f"{found['gap']:.3g}"),
        "moved_losses": [round(loss, 6) for loss in found["losses"]],
    }
    return head | _figures(case, sides, peaks, begun["ours"]["reference"]) | losses | compared


def _figures(case: Case, sides: dict[str, Side], peaks: dict[str, int], passed: dict[str, float]) -> dict[str, Any]:
    """Per side medians over the steps after warm-up, and their ratios; `passed` is what the reference's pass took."""
    found: dict[str, Any] = {}
    for name, side in sides.items():
        found[name] = step_seconds(side) | {
            "pairs_per_second": round(case.batch / median(side.seconds[WARMUP:]), 2),
            "peak_mib": round(peaks[name] / 2**20),
        }
    mine, others = (median(sides[name].seconds[WARMUP:]) for name in ("ours", "theirs"))
    cpu, their_cpu = (median(sides[name].cpu[WARMUP:]) for name in ("ours", "theirs"))
    # A step's share of the pass, were every pair learnt from once.
    share = {unit: spent / case.steps for unit, spent in passed.items()} or {"seconds": 0.0, "cpu": 0.0}
    return found | {
        "reference_seconds_per_step": round(share["seconds"], 4),
        "ratio": round(others / mine, 2),
        "ratio_with_reference": round(others / (mine + share["seconds"]), 2),
        "ratio_of_best": round(found["theirs"]["best_step_seconds"] / found["ours"]["best_step_seconds"], 2),
        "ratio_of_cpu": round(their_cpu / cpu, 2),
        "ratio_of_cpu_with_reference": round(their_cpu / (cpu + share["cpu"]), 2),
        "memory_ratio": round(peaks["ours"] / peaks["theirs"], 2),
    }


def lines(found: dict[str, Any]) -> str:
    """The figures for people."""
    made = [
        f"{found['tokens']:6} {found['train']:5} {found['precision']:5} {name:7} "
        f"{found[name]['step_seconds'] * 1e3:6.0f} ms {found[name]['pairs_per_second']:8.2f} "
        f"{found[name]['peak_mib']:5} MiB"
        for name in ("theirs", "ours")
    ]
    spread = f" ({found['ratio_with_reference']:.2f} with the reference's pass)" if found["train"] == "full" else ""
    made.append(
        f"{'':12} ratio {found['ratio']:.2f}{spread}, first losses differ by {found['first_loss_gap']:.1g}, gradients "
        f"by {found['gradient_gap']:.1g} of the largest"
    )
    return "\n".join(made)


def main() -> None:
    """Measures and prints."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Case(**json.loads(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", choices=("64", "576", "both"), default="both", help="tokens of a picture")
    parser.add_argument("--train", choices=("full", "lora", "both"), default="both")
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="fp32")
    parser.add_argument("--steps", type=int, default=21, help="steps of each side, the first three not counted")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step; 8 is TRL's default")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--row", type=int, default=2048, help="columns of a row of ours")
    parser.add_argument("--micro", type=int, default=8192, help="columns of a micro-batch of ours")
    asked = vars(parser.parse_args())
    tokens = (64, 576) if (t := asked.pop("tokens")) == "both" else (int(t),)
    trains = ("full", "lora") if (t := asked.pop("train")) == "both" else (t,)
    results = []
    print(f"{'tokens':>6} {'train':5} {'':5} {'side':7} {'step':>9} {'pairs/s':>8} {'memory':>9}", flush=True)
    for columns, train, precision in (
        (c, t, p) for p in precisions(asked.pop("precision")) for c in tokens for t in trains
    ):
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(Case(folder=folder, tokens=columns, train=train, precision=precision, **asked)))
            print(lines(results[-1]), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "dpo",
                "ratio": results[0]["ratio"],
                "of": "pairs/s in training, ours / TRL's DPOTrainer, of the first of the results",
                "unit": "pairs of answers, per second",
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
