"""Soft prompts for sentences, from text alone: how a P-Former learns (DLP; Jian et al. 2023, arXiv:2307.07063).

    lm          the frozen LLM says the sentence again from its prompt
    contrast    a sentence's code is told from those of the others in the micro-batch
    commitment  a prompt is near to a row of the LLM's embedding

Whatever stands before a sentence in its sample, a picture too, is left out, but for the one token that predicts its
first: the start token that stands behind a picture. Sources: section 3.2 and the code (yiren-jian/BLIText).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.components.fusion.pformer import PFormer
from quintet.data.collate import Loaded, collate
from quintet.errors import ConfigError
from quintet.model.mllm import MLLM
from quintet.training.objectives.lm import Notes
from quintet.values import Batch, Features, Item, Layout, Ref, Tokens

__all__ = ["prompts"]

HIDDEN = 0.25
"""Share of the words that the P-Former does not see."""
SMOOTHING = 0.1
"""Of the contrastive loss' targets."""


def prompts(model: MLLM, batch: Batch, extra: Mapping[str, float] | None = None) -> tuple[Tensor, float, Notes]:
    """The sum of the three losses over sentences, the batch's weights, and sums to report.

    `extra` says how much `contrast` and `commitment` count; by default once each, as in the code. Both are means and
    weigh as the batch does, which is what the loop divides by.

    Raises:
        ConfigError: a model without a P-Former, or an unknown loss.
    """
    pformer = model.fusion
    if not isinstance(pformer, PFormer):
        raise ConfigError("the objective 'prompts' teaches a P-Former; this model's fusion is none")
    times = {"contrast": 1.0, "commitment": 1.0} | dict(extra or {})
    if unknown := times.keys() - {"contrast", "commitment"}:
        raise ConfigError(f"the objective 'prompts' has no loss {min(unknown)!r}; it has contrast, commitment")
    rows, sentences = _sentences(batch, pformer.config)
    cls = pformer.read(sentences, hidden=HIDDEN if pformer.training else 0.0)
    made = pformer.prompts(cls)
    features = Features(made.flatten(0, 1), (Layout((pformer.config.prompts,)),) * len(sentences))
    output = model(rows, only_targets=True, given={pformer.config.kind: features})
    loss = -torch.dot(model.target_logps(output, rows.targets), rows.targets.weights)
    same = torch.arange(len(sentences), device=cls.device)
    losses = {
        "contrast": F.cross_entropy(pformer.similarities(cls), same, label_smoothing=SMOOTHING),
        "commitment": F.mse_loss(made.float(), _nearest(made.detach(), model.llm.tables()[0].detach())),
    }
    count = batch.targets.count
    for name, value in losses.items():
        loss = loss + times[name] * count * value
    return loss, count, {name: value.detach() * count for name, value in losses.items()}


def _nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """For each of float[N, Q, D] the nearest row of float[V, D], in float32."""
    rows = table.float()
    # Sentence by sentence: all distances at once would be gigabytes.
    return torch.stack([rows[torch.cdist(of_one.float(), rows).argmin(-1)] for of_one in vectors])


def _sentences(batch: Batch, config: PFormer.Config) -> tuple[Batch, list[Tensor]]:
    """A batch with a sentence a row, columns for its prompt before it, and the words of each, int64[L].

    A sentence is what is learnt of a node. Where nothing is, there is one of one word, without weight.
    """
    targets, device = batch.targets, batch.tokens.device
    order = targets.node.argsort(stable=True)
    _, counts = targets.node[order].unique_consecutive(return_counts=True)
    slots, ids, weights = (v[order].split(counts.tolist()) for v in (targets.slots, targets.ids, targets.weights))
    if not len(order):
        # Other ranks run all of this, and wait for each other.
        one = torch.zeros(1, dtype=torch.int64, device=device)
        slots, ids, weights = (one,), (one,), (one.float(),)
    before = [batch.tokens.flatten()[s[:1]] for s in slots]
    made = [
        _row(torch.cat(words).cpu(), weight.cpu(), config)
        for words, weight in zip(zip(before, ids, strict=True), weights, strict=True)
    ]
    blank = Loaded(torch.empty(0), Layout((config.prompts,)))
    rows = collate([[row] for row in made], dict.fromkeys(range(len(made)), blank), pad=0)
    return rows.to(device), list(ids)


def _row(words: Tensor, weight: Tensor, config: PFormer.Config) -> Tokens:
    """Columns for a prompt, the start token, the sentence."""
    columns = config.prompts
    length = columns + len(words)
    node, order = torch.zeros(length, dtype=torch.int64), torch.arange(length)
    return Tokens(
        ids=torch.cat([node[:columns], words]),
        weight=torch.cat([torch.zeros(columns + 1), weight]),
        enter=node,
        exit=node + 1,
        order=order,
        position=order,
        parent=order - 1,
        items=(Item(config.kind, Ref("sentence"), (1, 1), 0, columns),),
    )
