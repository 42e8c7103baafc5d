"""What training a stage costs, by arithmetic before anything runs: FLOPs and memory for a sample.

A sample is one item of each modality, of the size that it is planned with, and `TEXT_TOKENS` tokens of text. Encoder
and connector run on it on the meta device, forward and backward, and torch counts their products: every view of a
divided picture by itself, latents with the features that they look at. An LLM that is run so would not tell how much
experts compute, so its FLOPs and the fusion's are arithmetic; L are linear layers, and their rows are all columns
unless the fusion says otherwise (`Fusion.rows`):

    forward        2 × Σ_L weights per row, and 2 × columns × width per column and attention, which is causal; a
                   cross-attention of the fusion has 4 × features × width per column
    backward       as much again where a gradient passes, and 2 × Σ_L weights per row for weights that train
    weights        4 bytes a parameter, and 2 more for the bf16 copy that a forward under autocast holds
    gradients      4 bytes a parameter that trains
    moments        8 bytes a parameter that trains (AdamW)
    activations    tokens of a micro-batch × (Σ_L (in + out) + widths of norms) × 2 bytes in the parts that a gradient
                   passes, and logits

In the stage `align` the LLM does not run; a Q-Former takes a picture and a caption of half the text: ITC one pass of
each, ITM three of both, ITG one. In the stage `prompts` there are no pictures. What experts compute before the text is
made, and the words they write, are not counted.

Activations are an estimate: what a block keeps besides (the products of the gate) and what it shares (one input for
queries, keys and values) about cancel; tests/unit/test_show.py measures by how much. A part passes a gradient when it
trains or something before it does: encoder → connector → fusion and LLM.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quintet.components.cross import CrossAttention
from quintet.model.mllm import LOGIT_BYTES, MLLM
from quintet.training.stage import Stage

__all__ = [
    "TEXT_TOKENS",
    "Cost",
    "Memory",
    "head_flops",
    "kept_numbers",
    "reading_flops",
    "sight_flops",
    "token_flops",
    "unread",
]

TEXT_TOKENS = 128
"""Tokens of text in the sample that costs are computed for, half of them learnt."""

_ITM_PASSES = 3
"""Of a pair in the first stage of a Q-Former: as it is, with another caption, with another picture."""

_ALIGN_PASSES = 2 + _ITM_PASSES
"""All passes of a pair there: ITC and ITG have one each."""

_QUERIES = ("q_proj", "query", "q")
"""Names of the projection to queries in our decoder and in transformers' layers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process without sharding or activation checkpointing."""

    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations

    def to_json(self) -> dict[str, int]:
        """The four and their sum."""
        return asdict(self) | {"total": self.total}


class Cost:
    """A stage's arithmetic on a model whose `requires_grad` flags are set."""

    def __init__(self, model: MLLM, stage: Stage) -> None:
        config, vocab = model.config, model.llm.vocab
        self.flops = 0.0
        """One sample, forward and backward."""
        parts: list[tuple[int, _Part]] = []
        """(tokens that one sample takes through the part, the part)."""
        kinds = () if stage.objective == "prompts" else tuple(model.encoders)
        for kind in kinds:
            encoder = model.encoders[kind]
            size = config.spec(kind).size
            seen, reach = config.encoders[kind].layout(size), config.layout(kind, size)
            learns = any(p.requires_grad for p in encoder.parameters())
            parts.append((seen.count, _Part.of(encoder, passes=learns)))
            after = learns or any(p.requires_grad for p in model.connectors[kind].parameters())
            # Read at the width that reaches it, written at its own: the larger count bounds both.
            taken = reach.count if stage.reads else _ALIGN_PASSES * (reach.count + TEXT_TOKENS // 2)
            parts.append((max(seen.count, taken), _Part.of(model.connectors[kind], passes=after)))
            self.flops += sight_flops(model, kind, stage)
        media, features = _sizes(model, kinds)
        columns, predicted = TEXT_TOKENS + media, 0
        if stage.objective != "align":
            readers = [_Part.of(m, passes=True, vocab=vocab) for m in (model.llm, model.fusion)]
            parts += [(columns, part) for part in readers]
            predicted = TEXT_TOKENS // 2
            self.flops += predicted * head_flops(model.llm)
            self.flops += reading_flops(model, columns=columns, media=media, features=features, fused=stage.fused)
        samples = max(1, stage.micro // columns)
        kept = sum(tokens * part.kept for tokens, part in parts if part.passes)
        # Logits and their gradient are there at the same time.
        logits = min(LOGIT_BYTES, 4 * vocab * samples * predicted)
        learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = 4 * sum(p.numel() for p in model.parameters()) + 2 * sum(part.matrices for _, part in parts)
        self.memory = Memory(weights, 4 * learnt, 8 * learnt, 2 * kept * samples + 2 * logits)


def sight_flops(model: MLLM, kind: str, stage: Stage) -> int:
    """FLOPs of an encoder and its connector for one item, forward and backward, as torch counts their products."""
    meta = torch.device("meta")
    connector: Any = model.connectors[kind]
    ids = torch.zeros(1, TEXT_TOKENS // 2, dtype=torch.int64, device=meta)
    with FlopCounterMode(display=False) as counter, meta:
        encoded = model.blank(kind, meta)
        if stage.objective == "align":
            pictures, there = encoded.values[None], torch.ones_like(ids, dtype=torch.bool)
            made = [connector.pictures(pictures), connector.sentences(ids, there)]
            made += [connector.match(pictures, ids, there) for _ in range(_ITM_PASSES)]
            made += [connector.write(pictures, ids, there)]
        else:
            made = [(connector(encoded, (ids[0],)) if connector.sees_prompt else connector(encoded)).values]
        learnt = [values.sum() for values in made if values.requires_grad]
        if learnt:
            torch.stack(learnt).sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def token_flops(llm: Any) -> float:
    """FLOPs of the LLM per token read, forward and backward, without attention's own products and the head."""
    return float(sum(_products(weight, rows) for weight, rows in _weights(llm, 1, {}, vocab=llm.vocab)))


def head_flops(llm: Any) -> float:
    """FLOPs of the LLM's head per token predicted, forward and backward."""
    trains = any(p.requires_grad for p in llm.parameters() if p.shape[0] == llm.vocab)
    return 2.0 * llm.dim * llm.vocab * (3 if trains else 2)


def kept_numbers(module: nn.Module, *, vocab: int = -1) -> int:
    """Numbers that one token leaves in a module for the backward pass, by the arithmetic at the top."""
    return _Part.of(module, passes=True, vocab=vocab).kept


def unread(model: MLLM) -> int:
    """Parameters through which nothing goes any more once the fusion stands around the blocks."""
    media, features = _sizes(model, tuple(model.encoders))
    rows = model.fusion.rows(model.llm, columns=TEXT_TOKENS + media, media=media, features=features)
    idle = (part for part, count in rows.items() if not count and isinstance(part, nn.Module))
    return sum(p.numel() for part in idle for p in part.parameters())


def _sizes(model: MLLM, kinds: tuple[str, ...]) -> tuple[int, int]:
    """Of an item of each kind: the columns of text that they take together, and the features that they become."""
    config, sizes = model.config, {kind: model.config.spec(kind).size for kind in kinds}
    columns = sum(config.columns(kind, size) for kind, size in sizes.items())
    return columns, sum(config.layout(kind, size).count for kind, size in sizes.items())


def reading_flops(model: MLLM, *, columns: int, media: int, features: int, fused: bool = True) -> float:
    """FLOPs of the LLM and the fusion for one sample, forward and backward, without the head."""
    llm, fusion = model.llm, model.fusion
    declared = fusion.rows(llm, columns=columns, media=media, features=features) if fused else {}
    found = sum(_products(weight, rows) for weight, rows in _weights(llm, columns, declared, vocab=llm.vocab))
    if fused:
        found += sum(_products(weight, rows) for weight, rows in _weights(fusion, columns, declared))
    # Forward one, backward two: the gradients of both sides of both products.
    attention = 3 * 2 * columns * columns * sum(_queries(each) for each in llm.modules())
    for each in fusion.modules() if fused else ():
        keys = declared.get(each.k_proj) if isinstance(each, CrossAttention) else None
        attention += 3 * 4 * columns * keys * _queries(each) if keys is not None else 0
    return float(found + attention)


def _products(weight: Tensor, rows: float) -> float:
    """FLOPs of a matrix or a stack of them: forward, the gradient of what comes in, that of a weight that trains."""
    return 2 * rows * weight.numel() * (3 if weight.requires_grad else 2)


def _weights(
    module: nn.Module, rows: float, declared: Mapping[nn.Module | Tensor, float], *, vocab: int = -1
) -> Iterator[tuple[Tensor, float]]:
    """The weights of all linear and convolution layers below a module and of declared stacks, and the rows of each."""
    rows = declared.get(module, rows)
    if isinstance(module, nn.Linear | nn.Conv2d):
        if module.weight.shape[0] != vocab:
            adapters = (own for own in module.parameters(recurse=False) if own.ndim == 2 and own is not module.weight)
            yield from ((own, rows) for own in (module.weight, *adapters))
        return
    for own in module.parameters(recurse=False):
        if own in declared:
            yield own, declared[own]
    for child in module.children():
        yield from _weights(child, rows, declared, vocab=vocab)


@dataclass(frozen=True)
class _Part:
    """Sums over the linear and convolution layers of a part, the LLM's head left out."""

    matrices: int
    kept: int
    """Numbers a token leaves for the backward pass."""
    passes: bool

    @staticmethod
    def of(module: nn.Module, *, passes: bool, vocab: int = -1) -> "_Part":
        layers = [layer for layer in _layers(module) if layer.weight.shape[0] != vocab]
        return _Part(
            matrices=sum(layer.weight.numel() for layer in layers),
            kept=sum(layer.weight[0].numel() + layer.weight.shape[0] for layer in layers) + _norms(module),
            passes=passes,
        )


def _layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    for each in module.modules():
        if isinstance(each, nn.Linear | nn.Conv2d):
            yield each


def _norms(module: nn.Module) -> int:
    """The widths of all norms: modules whose weight is a vector."""
    weights = (p for name, p in module.named_parameters() if name.rsplit(".", 1)[-1] == "weight")
    return sum(p.numel() for p in weights if p.ndim == 1)


def _queries(module: nn.Module) -> int:
    """The width of an attention's queries; 0 for a module that is none."""
    for name, child in module.named_children():
        if name in _QUERIES and isinstance(child, nn.Linear):
            return child.out_features
    return 0
