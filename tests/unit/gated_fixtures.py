"""A small model with gated cross-attention, rows of letters and pictures for it, and who looks at what in it."""

from dataclasses import replace
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from quintet.components.connectors.linear import Linear
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.llms.decoder import Decoder
from quintet.lab.recipe import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.values import Batch, Features, Layout, MediaBatch, Targets

NAMES = ("flamingo", "open_flamingo", "multimodal_gpt", "idefics")
FUSION = GatedCrossAttention.Config(every=2, heads=2, head_dim=8, act="squared_relu")
LLM = Decoder.Config(vocab=300, dim=16, depth=3, heads=2, kv_heads=1, ffn=16)
CONFIG = MLLM.Config(
    encoders={"image": replace(CLIP_L_336.tiny(), image=replace(CLIP_L_336.tiny().spec, fit="native", multiple=8))},
    connectors={"image": Linear.Config()},
    fusion=FUSION,
    llm=LLM,
)


Made = TypeVar("Made", bound=nn.Module)


@cache
def tiny(name: str) -> Recipe:
    return at_scale(load_recipe(name)[1], "tiny")


def opened(model: Made) -> Made:
    """The same with its gates open."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.7)
    return model.eval()


def built(config: MLLM.Config = CONFIG) -> MLLM:
    torch.manual_seed(0)
    return config.build()


def batch(
    *rows: str, sizes: tuple[tuple[int, int], ...] = ((16, 16), (8, 24), (32, 8), (24, 24)), seed: int = 0
) -> Batch:
    """A conversation a row: letters are words, `*` is a picture's marker. Pictures take sizes in turn."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, rows))
    place = [(r, c) for r, row in enumerate(rows) for c, letter in enumerate(row) if letter == "*"]
    tokens = torch.tensor([[ord(letter) for letter in row.ljust(width)] for row in rows])
    columns = torch.arange(width).expand(len(rows), -1).contiguous()
    padding = torch.stack([torch.arange(width) >= len(row) for row in rows]).long()
    none = torch.zeros(0, dtype=torch.int64)
    media = MediaBatch(
        values=tuple(
            torch.randint(0, 256, (3, *sizes[n % len(sizes)]), dtype=torch.uint8, generator=generator)
            for n in range(len(place))
        ),
        slots=torch.tensor([r * width + c for r, c in place]),
        counts=(1,) * len(place),
        row=torch.tensor([r for r, _ in place]),
        enter=torch.zeros(len(place), dtype=torch.int64),
        exit=torch.ones(len(place), dtype=torch.int64),
        order=torch.tensor([c for _, c in place]),
    )
    return Batch(
        tokens=tokens,
        enter=padding,
        exit=padding + 1,
        order=columns,
        positions=columns,
        targets=Targets(none, none, none.float(), none),
        media={"image": media} if place else {},
        lengths=tuple(map(len, rows)),
    )


def looked(config: GatedCrossAttention.Config, made: Batch) -> Tensor:
    """bool[B, T, N]: does the gated block's output at a column depend on the features of item n? By its gradient."""
    torch.manual_seed(0)
    fusion = opened(config.build(dim=16, depth=2))
    media = made.media["image"]
    layouts = tuple(Layout((n + 1,)) for n in range(len(media.counts)))
    values = torch.randn(sum(la.count for la in layouts), 16, requires_grad=True)
    view = fusion.view(fusion.memory({"image": Features(values, layouts)}, made), made)
    out = fusion.blocks[0](torch.randn(*made.tokens.shape, 16), view)
    seen = torch.zeros(*made.tokens.shape, len(layouts), dtype=torch.bool)
    for r, row in enumerate(out):
        for c, column in enumerate(row):
            (gradient,) = torch.autograd.grad(column.sum(), values, retain_graph=True)
            seen[r, c] = torch.stack([(g != 0).any() for g in gradient.split([la.count for la in layouts])])
    return seen


def drawn(seen: Tensor) -> list[str]:
    """A row's columns: the numbers of the items that each sees."""
    return ["".join(str(n) for n in range(seen.shape[1]) if column[n]) for column in seen]


def features(model: MLLM, made: Batch) -> dict[str, Features]:
    return {"image": model.connectors["image"](model.encode("image", made))}
