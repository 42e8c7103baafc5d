"""One step's loss and gradients from both sides of `dpo.py`, compared by the weights' published names.

The policy is not the reference here: weights are moved at random, and adapters that add nothing yet are drawn, or the
loss would be ln 2 on any pair and half of an adapter's gradients 0.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_sides import Case, kept, peft_name, trainer

__all__ = ["gradients"]

MOVED = 0.02
"""Standard deviation of what is added to each weight that learns: as large as the weights themselves."""


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


def our_gradients(case: Case, place: Path) -> float:
    """One step's loss; the policy and its gradients go to `place`, as transformers or peft save them."""
    import torch
    from tiny_llava import tokenizer

    from quintet.components import lora
    from quintet.data.pipeline import MediaLoader, batches
    from quintet.data.sources import open_source
    from quintet.model.convert import export_model, import_model
    from quintet.training.objectives import COUNTS, OBJECTIVES
    from quintet.training.optim import set_trainable, trainable
    from quintet.training.planning import planner

    model, facts = import_model(case.pairs.model)
    source, reader, stage = open_source(case.pairs.rows), tokenizer(), case.stage
    references = kept(case, model, source, reader, place=place)
    torch.manual_seed(1)
    set_trainable(model, stage.train)
    learnt = [parameter for _, parameter in trainable(model)]
    with torch.no_grad():
        for parameter in learnt:
            parameter.add_(torch.randn_like(parameter) * MOVED)

    def save(name: str) -> None:
        if case.train == "lora":
            lora.save(model.llm, place / name, rename=peft_name)
        else:
            export_model(model, place / name, facts)

    save("policy")
    plans = planner(model, stage, source, reader, seed=0, references=references)
    load = MediaLoader({kind: model.config.spec(kind) for kind in model.config.encoders})
    ((_, micro),) = batches(iter([plans.step(0)]), load, pad=reader.pad_id)
    count = sum(COUNTS[stage.objective](m.batch) for m in micro if m.batch)
    loss = sum(OBJECTIVES[stage.objective](model, m.batch, stage.settings)[0] for m in micro if m.batch) / count
    loss.backward()
    show_gradients(model)
    save("gradients")
    return float(loss)


def show_gradients(model: Any) -> None:
    """Puts gradients in the weights' place, so that they are written under the weights' published names."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def their_gradients(case: Case, place: Path) -> float:
    """As `our_gradients`, with the policy that lies there."""
    made = trainer(case, place / "policy", [])
    model = made.model.train()
    loss = made.compute_loss(model, made._prepare_inputs(next(iter(made.get_train_dataloader()))))
    loss.backward()
    show_gradients(model)
    model.save_pretrained(place / "their gradients")
    return float(loss)
