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
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tiny_llava import PATCH
from tiny_pairs import ALPHA, BETA, LINEAR, RANK, RATE, Pairs, TrainName, make_pairs, make_stage, write_reference
from turns import WARMUP, Side, Turns, ask, first_losses, precisions, step_seconds, take_turns

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Of the first step's loss, in nats a pair."""
GRADIENT_TOLERANCE = 1e-4
"""The largest difference of two gradients as a share of the largest gradient, in float32: the sides sum in different
orders, over a thousand and more tokens a step."""


@dataclass(frozen=True)
class Case:
    """What is compared."""

    folder: str
    tokens: int
    train: TrainName
    precision: str
    steps: int
    batch: int
    threads: int
    row: int
    micro: int
    packing: bool

    @property
    def pairs(self) -> Pairs:
        return Pairs(Path(self.folder), side=round(self.tokens**0.5) * PATCH)

    @property
    def stage(self) -> Any:
        return make_stage(
            self.train, batch=self.batch, steps=self.steps, row=self.row, micro=self.micro, packing=self.packing
        )


# ---- ours --------------------------------------------------------------------------------------------------------
def kept(case: Case, model: Any, source: Any, reader: Any) -> Any:
    """The reference's log-probabilities, computed where they are not there."""
    from quintet.lab.references import keep_references
    from quintet.training.loop import Settings

    return keep_references(
        model,
        case.stage,
        source,
        reader,
        settings=Settings(precision=case.precision),  # type: ignore[arg-type]
        folder=Path(case.folder) / "references",
        note=lambda text: None,
    )


def ours(case: Case, turns: Turns) -> None:
    """Our loop, as `quintet align dpo` runs it."""
    import time

    from tiny_llava import tokenizer

    from quintet.data.sources import open_source
    from quintet.model.convert import import_model
    from quintet.training.folder import RunFolder
    from quintet.training.hardware import prepare_cpu
    from quintet.training.loop import Settings, train_stage

    prepare_cpu()
    model, _ = import_model(case.pairs.model)
    source, reader = open_source(case.pairs.rows), tokenizer()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    references = kept(case, model, source, reader)
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
            references=references,
            progress=lambda row: turns.step(row["loss"]),
        )


def our_gradients(case: Case, place: Path) -> float:
    """One step's loss; the policy and its gradients go to `place`, as transformers or peft save them."""
    import torch
    from tiny_llava import tokenizer

    from quintet.components import lora
    from quintet.components.llms.weights import hf_name
    from quintet.data.pipeline import MediaLoader, batches
    from quintet.data.sources import open_source
    from quintet.model.convert import export_model, import_model
    from quintet.training.objectives import COUNTS, OBJECTIVES
    from quintet.training.optim import set_trainable, trainable
    from quintet.training.planning import planner

    model, facts = import_model(case.pairs.model)
    source, reader, stage = open_source(case.pairs.rows), tokenizer(), case.stage
    references = kept(case, model, source, reader)
    torch.manual_seed(1)
    set_trainable(model, stage.train)
    learnt = [parameter for _, parameter in trainable(model)]
    # Adapters that add nothing yet have no gradient behind them; and equal models have the same loss on any pair.
    with torch.no_grad():
        for parameter in learnt:
            parameter.add_(torch.randn_like(parameter) * 0.02)

    def save(name: str) -> None:
        if case.train == "lora":
            lora.save(
                model.llm, place / name, rename=lambda n: hf_name(n).replace("model.", "model.language_model.", 1)
            )
        else:
            export_model(model, place / name, facts)

    save("policy")
    plans = planner(model, stage, source, reader, seed=0, references=references)
    load = MediaLoader({kind: model.config.spec(kind) for kind in model.config.encoders})
    ((_, micro),) = batches(iter([plans.step(0)]), load, pad=reader.pad_id)
    count = sum(COUNTS[stage.objective](m.batch) for m in micro if m.batch)
    loss = sum(OBJECTIVES[stage.objective](model, m.batch, stage.settings)[0] for m in micro if m.batch) / count
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            # In the weights' place, so that they are written under the weights' published names.
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    save("gradients")
    return float(loss)


# ---- TRL ---------------------------------------------------------------------------------------------------------
def trainer(case: Case, policy: Path, callbacks: list[Any]) -> Any:
    """The trainer on the weights in `policy`, with the model that transformers saved first as its reference."""
    from datasets import Dataset, Image, Sequence
    from peft import LoraConfig
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from trl import DPOConfig, DPOTrainer

    rows = json.loads(case.pairs.reference.read_text(encoding="utf-8"))
    table = {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}
    data = Dataset.from_dict(table | {"images": [[row["image"]] for row in rows]})
    lora = case.train == "lora"
    model = LlavaForConditionalGeneration.from_pretrained(case.pairs.model if lora else policy)
    model.requires_grad_(False)
    if not lora:
        for part in (model.model.multi_modal_projector, model.model.language_model, model.lm_head):
            part.requires_grad_(True)
    # By itself the trainer loads the folder that the model came from.
    beside = None if lora or policy == case.pairs.model else case.pairs.model
    arguments = DPOConfig(
        output_dir=str(Path(case.folder) / "trainer"),
        beta=BETA,
        max_length=None,
        gradient_checkpointing=False,
        per_device_train_batch_size=case.batch,
        max_steps=case.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=case.precision == "bf16",
        use_cpu=True,
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    made = DPOTrainer(
        model=model,
        ref_model=LlavaForConditionalGeneration.from_pretrained(beside) if beside else None,
        args=arguments,
        train_dataset=data.cast_column("images", Sequence(Image())),
        processing_class=AutoProcessor.from_pretrained(case.pairs.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR) if lora else None,
        callbacks=callbacks,
    )
    if lora:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        adapter = case.pairs.adapter if policy == case.pairs.model else policy
        told = set_peft_model_state_dict(made.model, load_file(adapter / "adapter_model.safetensors"))
        assert not told.unexpected_keys, told
    return made


def theirs(case: Case, turns: Turns) -> None:
    """TRL's trainer."""
    from transformers import TrainerCallback

    class Telling(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                turns.step(logs["loss"])

    made = trainer(case, case.pairs.model, [Telling()])
    turns.ready()
    made.train()


def their_gradients(case: Case, place: Path) -> float:
    """As `our_gradients`, with the policy that lies there."""
    import torch

    made = trainer(case, place / "policy", [])
    model = made.model.train()
    loss = made.compute_loss(model, made._prepare_inputs(next(iter(made.get_train_dataloader()))))
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    model.save_pretrained(place / "their gradients")
    return float(loss)


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
    from quintet.components.llms.weights import hf_name
    from quintet.model.convert import import_model
    from quintet.training.optim import set_trainable

    if not case.pairs.model.exists():
        make_pairs(case.pairs, rows=case.steps * case.batch)
    if case.train == "lora":
        model, _ = import_model(case.pairs.model)
        torch.manual_seed(0)  # as the loop does before it makes adapters
        set_trainable(model, case.stage.train)
        lora.save(
            model.llm,
            case.pairs.adapter,
            rename=lambda name: hf_name(name).replace("model.", "model.language_model.", 1),
        )
    return write_reference(case.pairs, case.stage, seed=0)


def gradients(case: Case) -> dict[str, Any]:
    """Both sides' loss and gradients of one step, compared."""
    from safetensors.torch import load_file

    case = replace(case, precision="fp32", steps=1)
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        losses = our_gradients(case, Path(folder)), their_gradients(case, Path(folder))
        name = "adapter_model.safetensors" if case.train == "lora" else "model.safetensors"
        mine, others = (load_file(Path(folder) / side / name) for side in ("gradients", "their gradients"))
    assert mine.keys() == others.keys(), sorted(mine.keys() ^ others.keys())
    learnt = {name: value for name, value in others.items() if not name.startswith("vision_tower.")}
    largest = max(float(value.abs().max()) for value in learnt.values())
    gaps = {name: float((mine[name] - value).abs().max()) / largest for name, value in learnt.items()}
    return {
        "losses": losses,
        "compared": sum(value.numel() for value in learnt.values()),
        "largest": largest,
        "gap": max(gaps.values()),
        "where": max(gaps, key=lambda name: gaps[name]),
    }


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


def table(results: list[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [f"{'tokens':>6} {'train':5} {'':5} {'side':7} {'step':>9} {'pairs/s':>8} {'memory':>9}"]
    for r in results:
        for name in ("theirs", "ours"):
            side = r[name]
            lines.append(
                f"{r['tokens']:6} {r['train']:5} {r['precision']:5} {name:7} {side['step_seconds'] * 1e3:6.0f} ms "
                f"{side['pairs_per_second']:8.2f} {side['peak_mib']:5} MiB"
            )
        lines.append(
            f"{'':12} ratio {r['ratio']:.2f} ({r['ratio_with_reference']:.2f} with the reference's pass), first losses "
            f"differ by {r['first_loss_gap']:.1g}, gradients by {r['gradient_gap']:.1g} of the largest"
        )
    return "\n".join(lines)


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
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=True, help="several pairs in a row")
    asked = vars(parser.parse_args())
    tokens = (64, 576) if (t := asked.pop("tokens")) == "both" else (int(t),)
    trains = ("full", "lora") if (t := asked.pop("train")) == "both" else (t,)
    results = []
    for columns, train, precision in (
        (c, t, p) for p in precisions(asked.pop("precision")) for c in tokens for t in trains
    ):
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(Case(folder=folder, tokens=columns, train=train, precision=precision, **asked)))
    print(table(results))
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
