"""Pictures and captions brought together: the three losses of BLIP-2's first stage (Li et al. 2023, section 3.2).

    ITC  a picture is told from other captions, a caption from other pictures: the nearest of the queries counts
    ITM  does this caption fit this picture? once yes, and twice no, with the hard negatives that ITC confuses
    ITG  the caption is written from the queries alone

The pairs are those of a micro-batch. Under several processes ITC compares with the pairs of all of them, at the same
micro-batch; ITM draws its negatives from this one's own (LAVIS: from all). Accumulating gradients gives more pairs to a
step and none to compare with: for harder negatives raise `Stage.micro`. As everywhere, the loop divides by the targets
of the step: a micro-batch weighs by its words.

A caption that stands twice, and a picture that stands twice, are right for each other's partners too: ITC shares its
target among them, ITM never takes them as negatives. Where nothing repeats, this is the paper's.

Letters: N pairs, M pairs of all processes, L tokens of the longest caption, Q queries, P width of ITC's space.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quintet import dist
from quintet.errors import ConfigError
from quintet.model.mllm import MLLM
from quintet.training.objectives.lm import Notes
from quintet.values import Batch

__all__ = ["Pairs", "align", "hard", "pairs", "similarities"]

LOSSES = ("itc", "itm", "itg")
SMOOTHING = 0.1
"""Of ITC's targets (LAVIS)."""
FLOOR = 1e-4
"""What every negative has at least of being drawn (LAVIS)."""
COLDEST = 0.01
"""The smallest temperature, CLIP's."""


@dataclass(frozen=True)
class Pairs:
    """Captions of a batch and their pictures. `ids` begin with the token before a caption's first (<s>, [CLS])."""

    items: Tensor
    """int64[N]: the picture of each, in the batch's order."""
    ids: Tensor
    """int64[N, L], padded at the end."""
    there: Tensor
    """bool[N, L]: which are no padding."""
    weights: Tensor
    """float32[N, L - 1]: how much a token is learnt, the first left out."""

    def __len__(self) -> int:
        return len(self.items)


def align(model: MLLM, batch: Batch, extra: Mapping[str, float] | None = None) -> tuple[Tensor, float, Notes]:
    """The three losses, each a mean over pairs (ITG: over words), as sums: the mean times the batch's weights.

    `extra` says how much each counts, and of what the fusion tells of the connector's features how much is added (DLP's
    distance from a prompt). What has no picture before it is not a caption, and is left out.

    Raises:
        ConfigError: no connector of the model reads captions, pictures of several sizes, or an unknown loss.
    """
    times = dict.fromkeys(LOSSES, 1.0) | dict(extra or {})
    beside = times.keys() - set(LOSSES)
    kind = model.config.matcher
    if not kind:
        raise ConfigError("no connector of this model reads captions; the objective 'align' needs a QFormer's")
    count = batch.targets.count
    found = pairs(batch, kind) if kind in batch.media else None
    empty = found is None or not len(found)
    nothing = torch.zeros((), device=batch.tokens.device)
    if empty and not model.run_all_parts:
        return nothing, count, dict.fromkeys(LOSSES, nothing)
    connector: Any = model.connectors[kind]
    if found is None or empty:
        # A rank without a pair runs what the others run, for nothing.
        ids = torch.zeros(1, 2, dtype=torch.int64, device=batch.tokens.device)
        found = Pairs(ids[:, 0], ids, ids == 0, ids[:, 1:].float())
        features = model.blank(kind, batch.tokens.device)
        prints = torch.zeros(1, 2, dtype=torch.float64, device=batch.tokens.device)
    else:
        features = model.encode(kind, batch)
        prints = torch.stack([_print(value) for value in batch.media[kind].values])
    if len(set(features.layouts)) > 1:
        raise ConfigError("pictures of several sizes; the objective 'align' compares those of one (`ImageSpec.fit`)")
    pictures = torch.stack(features.split())[found.items]
    everybody, counts = dist.total(0.0 if empty else len(found), count)
    # So that the mean is over the pairs of all processes, whoever holds them.
    share = counts / max(1.0, everybody)
    itc, near = _itc(connector, pictures, found, prints[found.items], empty=empty)
    itm = _itm(connector, pictures, found, *near)
    itg = _itg(connector, pictures, found)
    made = {kind: connector(features)} if beside else {}
    told = model.fusion.extra({} if empty else made, batch) if beside else {}
    if unknown := beside - told.keys():
        raise ConfigError(f"the objective 'align' has no loss {min(unknown)!r}; it has {', '.join((*LOSSES, *told))}")
    if empty:
        unused = sum(value.values.sum() for value in made.values()) + sum(told.values())
        return (itc + itm + itg + unused) * 0.0, count, dict.fromkeys((*LOSSES, *beside), nothing)
    losses = {"itc": itc * share, "itm": itm * share * len(found), "itg": itg * share * len(found)}
    losses |= {name: told[name] * count for name in beside}
    loss = torch.stack([times[name] * value for name, value in losses.items()]).sum()
    return loss, count, {name: value.detach() for name, value in losses.items()}


# ---- who belongs to whom -----------------------------------------------------------------------------------------
def pairs(batch: Batch, kind: str = "image") -> Pairs:
    """Every answer that has a picture before it, with the nearest: a run of columns that predict something."""
    targets, media, columns = batch.targets, batch.media[kind], batch.tokens.shape[1]
    slots = targets.slots
    begins = torch.ones_like(slots, dtype=torch.bool)
    begins[1:] = (slots[1:] != slots[:-1] + 1) | (targets.node[1:] != targets.node[:-1])
    starts = begins.nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(slots)]
    last = slots[[end - 1 for end in ends]]
    row, enter, order = last // columns, batch.enter.flatten()[last], batch.order.flatten()[last]
    seen = (media.row == row[:, None]) & (media.enter <= enter[:, None]) & (enter[:, None] < media.exit)
    seen &= media.order <= order[:, None]
    nearest = torch.where(seen, media.order, -1).argmax(1)
    kept = [n for n, has in enumerate(seen.any(1).tolist()) if has]
    words, weights = batch.tokens.flatten()[slots], targets.weights
    spelt = [torch.cat([words[starts[n] : ends[n]], targets.ids[ends[n] - 1 : ends[n]]]) for n in kept]
    if not spelt:
        none = slots.new_zeros(0, 2)
        return Pairs(none[:, 0], none, none == 0, none[:, 1:].float())
    pad = torch.nn.utils.rnn.pad_sequence
    return Pairs(
        items=nearest[kept],
        ids=pad(spelt, batch_first=True),
        there=pad([torch.ones_like(s, dtype=torch.bool) for s in spelt], batch_first=True),
        weights=pad([weights[starts[n] : ends[n]] for n in kept], batch_first=True),
    )


def _print(value: Tensor) -> Tensor:
    """Two numbers that differ between pictures: float64[2]."""
    flat = value.detach().flatten().double()
    ramp = torch.arange(len(flat), device=flat.device, dtype=torch.float64) % 8191
    return torch.stack([flat.sum(), torch.dot(flat, ramp)])


def _same(left: Tensor, right: Tensor) -> Tensor:
    """Which rows [N, …] are equal to which [M, …]: bool[N, M]."""
    return (left[:, None] == right).all(-1)


# ---- the losses --------------------------------------------------------------------------------------------------
def similarities(pictures: Tensor, captions: Tensor) -> Tensor:
    """Cosines of each picture's nearest query with each caption: float[N, Q, P], float[M, P] → float[N, M]."""
    return torch.einsum("nqp,mp->nmq", pictures, captions).amax(-1)


def _itc(
    connector: Any, pictures: Tensor, found: Pairs, prints: Tensor, *, empty: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The sum over own pairs; and of those, how near all are to each other and which are the same: [N, N] each."""
    seen, said = connector.compared(*connector.read(pictures, found.ids, found.there, "apart"))
    mine, own_words, own_prints, ids = seen, said, prints, found.ids.masked_fill(~found.there, -1)
    if empty:
        # Nothing of this rank is among the others' pairs. The sum at the end keeps it in everybody's graph.
        mine, own_words, own_prints, ids = (x[:0] for x in (mine, own_words, own_prints, ids))
    longest = int(max(dist.gather(torch.tensor([[ids.shape[1]]], device=ids.device))[0]))
    ids = F.pad(ids, (0, longest - ids.shape[1]), value=-1)
    all_seen, start = dist.gather(mine)
    all_said, all_prints, all_ids = (dist.gather(x)[0] for x in (own_words, own_prints, ids))
    heat = connector.captions.log_temperature.exp().clamp(min=COLDEST)
    of_pictures = similarities(mine, all_said).float() / heat
    of_captions = similarities(all_seen, own_words).float().T / heat
    same = _same(own_prints, all_prints) | _same(ids, all_ids)
    target = same / same.sum(1, keepdim=True)
    target = target * (1 - SMOOTHING) + SMOOTHING / max(1, len(all_seen))
    losses = [-(target * logits.log_softmax(1)).sum() for logits in (of_pictures, of_captions)]
    loss = (losses[0] + losses[1]) / 2 + (seen.sum() + said.sum()) * 0.0
    if not len(mine):
        one = torch.ones(1, 1, device=ids.device)
        return loss, (one, one > 0)
    here = slice(start, start + len(mine))
    return loss, (of_pictures[:, here].detach(), same[:, here])


def hard(near: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of similarities float[N, M] a column drawn by its softmax, none of `same`: int64[N], bool[N].

    The second says whether there was one to draw.
    """
    chance = (near.softmax(1) + FLOOR).masked_fill(same, 0.0)
    there = chance.sum(1) > 0
    return torch.where(there[:, None], chance, torch.ones_like(chance)).multinomial(1)[:, 0], there


def _itm(connector: Any, pictures: Tensor, found: Pairs, near: Tensor, same: Tensor) -> Tensor:
    """The mean over the questions: each pair itself, its caption with another picture, its picture with another's."""
    wrong_caption, has_caption = hard(near, same)
    wrong_picture, has_picture = hard(near.T, same.T)
    own = torch.arange(len(found), device=near.device)
    seen = torch.cat([own, wrong_picture[has_picture], own[has_caption]])
    said = torch.cat([own, own[has_picture], wrong_caption[has_caption]])
    logits = connector.match(pictures[seen], found.ids[said], found.there[said])
    return F.cross_entropy(logits.float(), (torch.arange(len(seen), device=near.device) < len(own)).long())


def _itg(connector: Any, pictures: Tensor, found: Pairs) -> Tensor:
    """The mean over the words."""
    logits = connector.write(pictures, found.ids, found.there)[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), found.ids[:, 1:].flatten(), reduction="none")
    return torch.dot(losses, found.weights.flatten()) / found.weights.sum().clamp(min=1e-9)
