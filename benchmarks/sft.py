"""Training steps of one tiny LLaVA: transformers' Trainer against our loop, on the same rows, in one run.

    python benchmarks/sft.py [--stage sft|align|both] [--precision fp32|bf16|both] [--steps 30] [--batch 32]

Two stages, as LLaVA-1.5 trains. `sft`: connector and LLM learn conversations of mixed lengths, the tower is frozen;
ours packs, and encodes every picture at every step like the reference. `align`: the connector alone learns captions;
ours reads the frozen tower's features from its cache (the pass that fills it is timed apart).

Both sides start from one folder that transformers saved, take the same rows in the same order with the same ids,
labels and pixels, and use the same optimizer, rate, clipping and number of threads. Each has a process of its own, so
memory is its own; the two take turns of a few steps, so whatever else runs on the machine hits both. The reference is
the Trainer as its users run it: a collator that opens the pictures with CLIP's image processor and pads to the longest
row, no workers, no reporting. The losses of all steps are compared before a ratio is printed. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tiny_llava import PICTURE, SHAPE, VOCAB, Material, StageName
from turns import WARMUP, Conditions, Side, Turns, ask, first_losses, precisions, step_seconds, take_turns

ROWS = 768
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Of the first step's loss, in nats per token. bf16 keeps 8 bits, and the sides round in different places."""


@dataclass(frozen=True, kw_only=True)
class Case(Conditions):
    """What is compared."""

    stage: StageName

    @property
    def material(self) -> Material:
        return Material(Path(self.folder))


# ---- the two sides, each in a process of its own -------------------------------------------------------------------
def ours(case: Case, turns: Turns) -> None:
    """Our loop, as `quintet train` runs it."""
    import time

    from tiny_llava import make_stage, tokenizer

    from quintet.data.sources import open_source
    from quintet.lab.features import keep_features
    from quintet.model.convert import import_model
    from quintet.training.folder import RunFolder
    from quintet.training.hardware import prepare_cpu
    from quintet.training.loop import Given, Settings, train_stage

    prepare_cpu()
    model, _ = import_model(case.material.model)
    stage = make_stage(case.stage, batch=case.batch, steps=case.steps, row=case.row, micro=case.micro)
    source = open_source(case.material.rows(case.stage))
    precision: Any = case.precision
    settings = Settings(precision=precision, features="on" if case.stage == "align" else "off")
    begun = time.perf_counter()
    cache = keep_features(
        model,
        stage,
        (stage,),
        source,
        settings=settings,
        folder=Path(case.folder) / "features",
        note=lambda text: None,
    )
    filled = time.perf_counter() - begun
    with tempfile.TemporaryDirectory(dir=case.folder) as folder:
        turns.ready(fill_seconds=filled if cache else 0.0, pictures=len(source))
        train_stage(
            model,
            stage,
            source,
            tokenizer(),
            run=RunFolder(Path(folder)),
            settings=settings,
            given=Given(cache=cache),
            progress=lambda row: turns.step(row["loss"]),
        )


def theirs(case: Case, turns: Turns) -> None:
    """The Trainer."""
    import torch
    from PIL import Image
    from tiny_llava import PAD
    from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = LlavaForConditionalGeneration.from_pretrained(case.material.model)
    processor = CLIPImageProcessorPil.from_pretrained(case.material.model)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if case.stage == "sft":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    rows = json.loads(case.material.reference(case.stage).read_text(encoding="utf-8"))

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        most = max(len(row["ids"]) for row in rows)

        def padded(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[name] + [fill] * (most - len(row[name])) for row in rows])

        pictures = [Image.open(row["image"]) for row in rows]
        return {
            "input_ids": padded("ids", PAD),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor([[1] * len(r["ids"]) + [0] * (most - len(r["ids"])) for r in rows]),
            "pixel_values": processor(pictures, return_tensors="pt")["pixel_values"],
        }

    class Telling(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                turns.step(logs["loss"])

    arguments = TrainingArguments(
        output_dir=str(Path(case.folder) / "trainer"),
        per_device_train_batch_size=case.batch,
        max_steps=case.steps,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=case.precision == "bf16",
        use_cpu=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Telling()])
    turns.ready()
    trainer.train()


def child(role: str, case: Case) -> None:
    """What a process does."""
    import torch

    torch.set_num_threads(case.threads)
    turns = Turns(case.steps)
    if role == "material":
        from tiny_llava import make_material, make_stage, write_reference

        made = Path(case.folder) / "made"
        if not made.exists():
            make_material(case.material, rows=ROWS)
            made.touch()
        stage = make_stage(case.stage, batch=case.batch, steps=case.steps, row=case.row, micro=case.micro)
        turns.say({"steps": write_reference(case.material, stage, seed=0)})
        return
    from quintet.training.hardware import matmul_peak, peak_memory

    device = torch.device("cpu")
    if role == "peak":
        precision: Any = case.precision
        turns.say({"flops": matmul_peak(device, precision)})
        return
    (ours if role == "ours" else theirs)(case, turns)
    turns.say({"peak_bytes": peak_memory(device)})


# ---- the comparison ------------------------------------------------------------------------------------------------
def needed_flops(facts: dict[str, int], case: Case) -> float:
    """Floating-point operations that a step needs, however it is done: real tokens, causal pairs, logits of targets.

    Two a multiplication, forward; as many again for each gradient: with respect to the input, and to the weight
    where it learns. The tower counts in `sft` only, its layers up to the feature layer.
    """
    text, vision = SHAPE["text"], SHAPE["vision"]
    dim, depth = text["hidden_size"], text["num_hidden_layers"]
    layer = 4 * dim * dim + 3 * dim * text["intermediate_size"]
    weights = facts["tokens"] * depth * layer + facts["targets"] * dim * VOCAB
    weights += case.batch * PICTURE * (vision["hidden_size"] * dim + dim * dim)
    pairs = 2 * facts["pairs"] * depth * dim
    passes = 3 if case.stage == "sft" else 2
    total = 2.0 * weights * passes + 2.0 * pairs * 3
    if case.stage == "sft":
        wide, columns = vision["hidden_size"], PICTURE + 1
        block = 4 * wide * wide + 2 * wide * vision["intermediate_size"]
        total += 2.0 * case.batch * (vision["num_hidden_layers"] - 1) * columns * (block + 2 * columns * wide)
    return total


def compare(case: Case) -> dict[str, Any]:
    """Runs both sides in turns; returns the figures."""
    facts = ask(__file__, "material", case)["steps"]
    peak = ask(__file__, "peak", case)["flops"]
    sides = {name: Side(__file__, name, case) for name in ("ours", "theirs")}
    begun = {name: side.hear() for name, side in sides.items()}
    take_turns(sides, case.steps)
    peaks = {name: side.last()["peak_bytes"] for name, side in sides.items()}
    losses = first_losses(sides, tolerance=LOSS_TOLERANCE[case.precision], what=f"{case.stage} {case.precision}")
    return (
        _figures(case, facts[WARMUP:], sides, peaks, peak)
        | losses
        | {
            "fill_seconds": round(begun["ours"]["fill_seconds"], 2),
            "fill_pictures": begun["ours"]["pictures"],
        }
    )


def _figures(
    case: Case, facts: list[dict[str, int]], sides: dict[str, Side], peaks: dict[str, int], peak: float
) -> dict[str, Any]:
    """Per side medians over the steps after warm-up, and their ratios."""
    tokens, flops = median(f["tokens"] for f in facts), median(needed_flops(f, case) for f in facts)
    found: dict[str, Any] = {"stage": case.stage, "precision": case.precision, "matmul_peak_gflops": round(peak / 1e9)}
    found["tokens"] = {"step": tokens, "padding": round(1 - tokens / median(f["padded"] for f in facts), 3)}
    for name, side in sides.items():
        # Per token, since steps differ in length; the median forgives what else the machine did.
        per_token = median(s / f["tokens"] for s, f in zip(side.seconds[WARMUP:], facts, strict=True))
        found[name] = step_seconds(side) | {
            "tokens_per_second": round(1 / per_token),
            "peak_mib": round(peaks[name] / 2**20),
            "share_of_peak": round(flops / (per_token * tokens) / peak, 3),
        }
    ratio = found["ours"]["tokens_per_second"] / found["theirs"]["tokens_per_second"]
    best = found["theirs"]["best_step_seconds"] / found["ours"]["best_step_seconds"]
    memory = found["ours"]["peak_mib"] / found["theirs"]["peak_mib"]
    return found | {"ratio": round(ratio, 2), "ratio_of_best": round(best, 2), "memory_ratio": round(memory, 2)}


def table(results: list[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [f"{'stage':6} {'':5} {'side':7} {'step':>8} {'tokens/s':>9} {'of peak':>8} {'memory':>9}"]
    for r in results:
        for name in ("theirs", "ours"):
            side = r[name]
            lines.append(
                f"{r['stage']:6} {r['precision']:5} {name:7} {side['step_seconds'] * 1e3:5.0f} ms "
                f"{side['tokens_per_second']:9,} {side['share_of_peak']:8.1%} {side['peak_mib']:5} MiB"
            )
        lines.append(f"{'':12} ratio {r['ratio']:.2f}, first losses differ by {r['first_loss_gap']:.1g}")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Case(**json.loads(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("sft", "align", "both"), default="both")
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    parser.add_argument("--steps", type=int, default=30, help="steps of each side, the first three not counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--row", type=int, default=8192, help="columns of a packed row, at most those of a micro-batch")
    parser.add_argument("--micro", type=int, default=8192, help="columns of a micro-batch of ours")
    asked = vars(parser.parse_args())
    stages = ("sft", "align") if (s := asked.pop("stage")) == "both" else (s,)
    chosen = precisions(asked.pop("precision"))
    with tempfile.TemporaryDirectory() as folder:
        results = [
            compare(Case(folder=folder, stage=stage, precision=precision, **asked))
            for stage in stages
            for precision in chosen
        ]
    print(table(results))
    first = {r["stage"]: r["ratio"] for r in reversed(results)}
    print(
        json.dumps(
            {
                "benchmark": "sft",
                "ratio": first[stages[0]],
                "of": f"tokens/s in training, ours / transformers' Trainer, stage {stages[0]}, {chosen[0]}",
                "alignment_ratio": first.get("align"),
                "unit": "tokens that are not padding, per second",
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
