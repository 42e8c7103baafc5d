"""How a stage that compares with the model before it gets that model's log-probabilities, and the pass that makes them.

| what learns | the reference |
|---|---|
| adapters alone | the same weights with adapters off: a second forward a step, no memory, nothing on disk |
| anything else | computed once before the stage, kept in the cache folder by content (`quintet.data.references`) |
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from quintet import dist
from quintet.data.collate import Loaded, collate
from quintet.data.features import fingerprint
from quintet.data.pipeline import MediaLoader, Planner, Source
from quintet.data.references import References
from quintet.data.tokenizer import Tokenizer
from quintet.errors import DataError
from quintet.lab.features import Note
from quintet.model.mllm import MLLM
from quintet.pace import Pace
from quintet.training.hardware import autocast, pick_precision
from quintet.training.loop import Settings
from quintet.training.objectives.preference import reference_logps
from quintet.training.planning import planner
from quintet.training.stage import Stage
from quintet.values import Tokens

__all__ = ["keep_references"]

TOGETHER = 8
"""Samples in a batch of the pass."""


def keep_references(
    model: MLLM, stage: Stage, source: Source, tokenizer: Tokenizer, *, settings: Settings, folder: Path, note: Note
) -> References | None:
    """The filled store, or None where the stage needs none; `note` is told why."""
    how = stage.preference
    if how is None or not how.needs_reference:
        return None
    if stage.adapts:
        note("the reference model is this one with its adapters off: a second forward a step")
        return None
    device = dist.device()
    precision = pick_precision(settings.precision, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    store = References(folder, model=fingerprint(model, repr(model.config), dtype))
    plans = planner(model, stage, source, tokenizer, seed=settings.seed)
    missing = list(_missing(store, plans, stage.num_steps(len(source)) * stage.batch))
    # Nobody writes before everybody has looked.
    dist.barrier()
    if missing:
        note(f"weights learn that the reference needs as they are: its log-probabilities of {len(missing):,} samples")
        model.to(device)
        mine = missing[dist.rank() :: dist.world()]
        store.keep(_made(model, mine, tokenizer, precision, Pace(note, "samples")))
    else:
        note("the reference model's log-probabilities are there already")
    dist.barrier()
    if dist.world() > 1:
        store.reload()
    return store


def _missing(store: References, plans: Planner, samples: int) -> Iterator[Tokens]:
    """What the stage will ask for and the store has not, each once; what is faulty is left for the loop to count."""
    seen: set[str] = set()
    for n in range(samples):
        try:
            tokens = plans.tokens(n)
            digest = store.digest(tokens)
        except DataError:
            continue
        if digest not in store.places and digest not in seen:
            seen.add(digest)
            yield tokens


def _made(
    model: MLLM, samples: Sequence[Tokens], tokenizer: Tokenizer, precision: str, pace: Pace
) -> Iterator[tuple[Tokens, Tensor]]:
    """Samples with the log-probabilities of their learnt tokens, those of a like length together."""
    load = MediaLoader({kind: model.config.spec(kind) for kind in model.config.encoders})
    device, ordered = dist.device(), sorted(samples, key=len)
    for start in range(0, len(ordered), TOGETHER):
        pace(start, len(ordered))
        chosen: list[Tokens] = []
        media: list[Loaded] = []
        for tokens in ordered[start : start + TOGETHER]:
            try:
                media += [load(item) for item in tokens.items]
            except DataError:
                continue  # the loop meets it again, drops and counts it
            chosen.append(tokens)
        if not chosen:
            continue
        batch = collate([[tokens] for tokens in chosen], dict(enumerate(media)), pad=tokenizer.pad_id).to(device)
        with model.inference(), autocast(precision, device):  # type: ignore[arg-type]
            logps = reference_logps(model, batch)
        yield from zip(chosen, logps.split([len(tokens.learnt) for tokens in chosen]), strict=True)
