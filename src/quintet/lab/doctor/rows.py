"""The contracts of a row: labels shifted once, samples isolated, media acting from their place on.

Each is proved by computing twice: something that must not matter is changed, and nothing may move. On a CPU the shapes
of both runs are equal, and masked columns enter the sums as exact zeros, so the tolerance is 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from quintet.data.collate import Loaded
from quintet.lab.doctor.bench import hidden, parents, row, seeded
from quintet.lab.doctor.findings import Finding
from quintet.lab.doctor.patient import Case
from quintet.model.mllm import MLLM
from quintet.training.objectives import OBJECTIVES
from quintet.training.stage import Stage
from quintet.values import Batch

__all__ = ["media", "packing", "shift"]

ALONE = 1e-4
"""A sample alone and packed runs through products of other shapes: hidden states of size one may differ so much in
float32. Measured on the tiny scale: 0 for our decoder's four families, at most 8.4e-7 for OPT and T5."""
LOSS = 1e-4
"""Relative difference of two float32 sums over the same targets, in another order where the loss is made in chunks.
Measured on the tiny scale: 0."""
CHUNK = 256
"""Targets whose logits are made at once."""
ITEMS = 4
"""Media of one sample that are changed one by one."""


# ---- shift -------------------------------------------------------------------------------------------------------
def shift(model: MLLM, stage: Stage, cases: list[Case], *, pad: int) -> Iterator[Finding]:
    """Targets against the attention rule, then the stage's loss against the loss that the rule gives."""
    batch = row(cases, pad=pad)
    wanted = _targets(cases)
    targets = batch.targets
    made = list(zip(targets.slots.tolist(), targets.ids.tolist(), targets.weights.tolist(), strict=True))
    if sorted(made) != sorted(wanted):
        yield _shifted(made, wanted, cases)
        return
    if stage.objective != "lm":
        return
    with model.inference():
        loss = float(-OBJECTIVES[stage.objective](model, batch)[0])
        states = model(batch).hidden[0]
        right, twice = (_sum(model, states, wanted, back=back) for back in (0, 1))
    if abs(loss - right) > LOSS * abs(right):
        hint = ", which is that of labels shifted twice" if abs(loss - twice) <= LOSS * abs(twice) else ""
        yield _finding(
            "shift",
            "loss-differs",
            f"a sum of log-probabilities of {loss:.4f}{hint}",
            f"{right:.4f}, every learnt token predicted from the column before it",
            "shift labels in `collate` and nowhere else",
            cases[0],
        )


def _targets(cases: list[Case]) -> list[tuple[int, int, float]]:
    """(column that predicts, id, weight) of every learnt token of a row, from the rule alone."""
    wanted: list[tuple[int, int, float]] = []
    base = 0
    for case in cases:
        t = case.tokens
        wanted += [
            (base + parent, token, weight)
            for parent, token, weight in zip(parents(t).tolist(), t.ids.tolist(), t.weight.tolist(), strict=True)
            if weight != 0 and parent >= 0
        ]
        base += len(t)
    return wanted


def _shifted(made: list[tuple[int, int, float]], wanted: list[tuple[int, int, float]], cases: list[Case]) -> Finding:
    by = {a[0] - b[0] for a, b in zip(made, wanted, strict=False)} if len(made) == len(wanted) else set()
    if len(made) != len(wanted):
        fault, found = "target-count", f"{len(made)} targets"
        expected = f"{len(wanted)}, one for each learnt token that has a token before it"
    elif len(by) == 1 and by != {0}:
        fault, found = "label-shift", f"targets {abs(by.pop())} column away from their place"
        expected = "every target at the one column before it: labels are shifted once"
    else:
        wrong = sum(a != b for a, b in zip(made, wanted, strict=True))
        fault, found = "label-shift", f"{wrong} of {len(wanted)} targets that are not predicted from the column before"
        expected = "none: the shift is by one along the path"
    return _finding("shift", fault, found, expected, "shift labels in `collate` and nowhere else", cases[0])


def _sum(model: MLLM, states: Tensor, wanted: list[tuple[int, int, float]], *, back: int) -> float:
    """Weighted log-probabilities, `back` columns before the right ones; few at a time, for large vocabularies."""
    total = 0.0
    for start in range(0, len(wanted), CHUNK):
        slots, ids, weights = zip(*wanted[start : start + CHUNK], strict=True)
        columns = (torch.tensor(slots) - back).clamp(min=0)
        logps = model.logits(states[columns]).log_softmax(-1)
        total += float(torch.dot(logps[torch.arange(len(ids)), torch.tensor(ids)], torch.tensor(weights)))
    return total


# ---- packing -----------------------------------------------------------------------------------------------------
def packing(model: MLLM, cases: list[Case], *, pad: int) -> Iterator[Finding]:
    """Three samples in a row: each one's words, then its media are changed, and the others must not move.

    A single sample is packed with itself. At last each sample alone must equal itself in the row.
    """
    cases = (cases * 3)[:3] if len(cases) < 3 else cases[:3]
    before = hidden(model, row(cases, pad=pad))
    starts = [sum(len(c.tokens) for c in cases[:i]) for i in range(len(cases))]
    for i, case in enumerate(cases):
        own = torch.zeros(len(before), dtype=torch.bool)
        own[starts[i] : starts[i] + len(case.tokens)] = True
        for what, batch in _changed(cases, i, vocab=model.llm.vocab, pad=pad):
            moved = _most(before, hidden(model, batch), ~own)
            if moved > 0:
                yield _finding(
                    "packing",
                    "packing-leak",
                    f"{what} of this sample moves its neighbours in the row by up to {moved:.2g}",
                    "0: samples are disjoint intervals of the attention rule",
                    "the LLM or the fusion ignores enter and exit; positions alone do not isolate",
                    case,
                )
                return
    for i, case in enumerate(cases):
        alone = hidden(model, row([case], pad=pad))
        moved = float((alone - before[starts[i] : starts[i] + len(case.tokens)]).abs().max())
        if moved > ALONE:
            yield _finding(
                "packing",
                "place-matters",
                f"a sample alone and in a row differ by {moved:.2g}",
                f"at most {ALONE:g}",
                "positions must count from the sample's beginning, not the row's",
                case,
            )
            return


def _changed(cases: list[Case], which: int, *, vocab: int, pad: int) -> Iterator[tuple[str, Batch]]:
    """The row with other words in one sample, then with other media."""
    ids = [case.tokens.ids for case in cases]
    chosen = cases[which].tokens
    words = torch.ones(len(chosen), dtype=torch.bool)
    for item in chosen.items:
        words[item.start : item.start + item.columns] = False
    with seeded(which):
        other = (chosen.ids + torch.randint(1, vocab, chosen.ids.shape)) % vocab
    ids[which] = torch.where(words, other, chosen.ids)
    yield "the text", row(cases, pad=pad, ids=ids)
    if cases[which].media:
        media = [_inverted(v) if i == which else v for i, case in enumerate(cases) for v in case.media]
        yield "the media", row(cases, pad=pad, media=media)


# ---- media -------------------------------------------------------------------------------------------------------
def media(model: MLLM, cases: list[Case], *, pad: int) -> Iterator[Finding]:
    """Each medium alone is changed: nothing before it may move, and something behind it must."""
    for case in cases:
        before = hidden(model, row([case], pad=pad))
        order = case.tokens.order
        for k, item in enumerate(case.tokens.items[:ITEMS]):
            changed = [_inverted(v) if i == k else v for i, v in enumerate(case.media)]
            after = hidden(model, row([case], pad=pad, media=changed))
            # Order is constant in a span that looks both ways; there "before" is a matter of the span, not the column.
            moved = _most(before, after, order < order[item.start])
            if moved > 0:
                yield _finding(
                    "media",
                    "media-early",
                    f"{item.ref.name} moves columns before its place by up to {moved:.2g}",
                    "0: what stands before a medium was said without it",
                    "the fusion must ask for the order of text and media",
                    case,
                )
                return
            behind = torch.arange(len(before)) >= item.start + item.columns
            if bool(behind.any()) and _most(before, after, behind) == 0:
                yield _finding(
                    "media",
                    "media-ignored",
                    f"{item.ref.name} has no effect on what follows it",
                    "some",
                    "its features do not reach the text: look at the fusion and at the item's interval",
                    case,
                )
                return


def _inverted(loaded: Loaded) -> Loaded:
    """Other media of the same shape: no value of a picture is its own inverse."""
    value = loaded.value
    return Loaded(255 - value if value.dtype == torch.uint8 else -value + 1, loaded.layout)


def _most(before: Tensor, after: Tensor, where: Tensor) -> float:
    return float((after[where] - before[where]).abs().max()) if bool(where.any()) else 0.0


def _finding(contract: str, fault: str, found: str, expected: str, do: str, case: Case) -> Finding:
    here = case.origin
    return Finding(contract=contract, fault=fault, found=found, expected=expected, do=do, file=here.file, row=here.row)
