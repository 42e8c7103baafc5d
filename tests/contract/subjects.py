"""What the contract is tried on: every recipe, tiny; and conversations, and a tree of answers, with media of all kinds.

Recipes are discovered, so a new one is under test as soon as its file is there. Each is built at the tiny scale, as it
is and with pictures of their own sizes (`native`), and once more with the dense mask where a cheaper strategy would do.
Weights are drawn larger than they are initialised, so that a leak shows: logits reach 6.7, and one picture for another
moves them by up to 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from quintet.components.llms import attention
from quintet.components.llms.attention import Strategy
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.values import Batch, Media, Node, Origin, Region, Sample, Text, Tokens, Turn
from systems import begun, enlarge, shown

SIZES = ((32, 32), (16, 48), (48, 32), (32, 16), (48, 48))
"""Height and width, pixels: whole patches of 8, and grids that merge 2 × 2."""


# ---- what is tried -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """A tiny model of a recipe with its processor."""

    recipe: Recipe
    model: MLLM
    processor: Processor

    @property
    def kinds(self) -> list[str]:
        return list(self.processor.model.kinds)

    def batch(self, rows: Sequence[Sequence[Tokens]], *, width: int | None = None) -> Batch:
        """Rows of packed samples with their media loaded."""
        items = [item for row in rows for tokens in row for item in tokens.items]
        media = {n: Loaded(load_image(item.ref, self.processor.spec(item.kind))) for n, item in enumerate(items)}
        return collate(rows, media, pad=self.processor.tokenizer.pad_id, width=width)

    def logits(self, batch: Batch) -> Tensor:
        """float[B, T, V]."""
        with self.model.inference():
            return self.model.logits(self.model(batch).hidden)

    def gradients(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Of the loss over all batches, one backward pass each."""
        self.model.zero_grad()
        self.model.requires_grad_(True)
        self.model.frozen_encoders = frozenset()
        count = sum(batch.targets.count for batch in batches)
        for batch in batches:
            (OBJECTIVES[self.recipe.stages[-1].objective](self.model, batch)[0] / count).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


@cache
def subject(name: str, native: bool) -> Subject:
    recipe = at_scale(load_recipe(name)[1], "tiny")
    if native:
        # An encoder that divides pictures takes any size as it is, and prepares its views itself.
        encoders = {
            kind: replace(e, image=replace(e.spec, fit="native", multiple=16)) if hasattr(e, "image") else e
            for kind, e in recipe.model.encoders.items()
        }
        recipe = replace(recipe, model=replace(recipe.model, encoders=encoders))
    model, processor = begun(recipe)
    enlarge(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                parameter /= 8**0.5  # T5's attention divides by nothing, its initialisation by a head's width
        for parameter in model.fusion.parameters():
            if not parameter.any():
                parameter.fill_(0.5)  # a gate that begins closed would hide what is behind it
    return Subject(recipe, model, processor)


CASES = [
    pytest.param((name, native, dense), id="-".join([name, *["native"] * native, *["dense"] * dense]))
    for name in recipe_names()
    for native, dense in ((False, False), (True, False), (False, True))
]


@pytest.fixture(params=CASES)
def tried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    name, native, dense = request.param
    if dense:
        monkeypatch.setattr(attention, "choose", lambda ctx, *, window=None: Strategy.DENSE)
    return subject(name, native)


@pytest.fixture(params=recipe_names())
def plain(request: pytest.FixtureRequest) -> Subject:
    return subject(request.param, False)


# ---- samples -----------------------------------------------------------------------------------------------------
def medium(number: int, kind: str = "image", *, content: int = 0) -> Media:
    """Item `number`: a size of its own; `content` makes it another picture of the same size."""
    height, width = SIZES[number % len(SIZES)]
    return replace(shown(number + 100 * content, height=height, width=width), kind=kind)


def user(text: str, *media: Media, points: int | None = None) -> Turn:
    """With `points` the turn ends in a box of the picture of that number, counted along the path."""
    pictured = any(m.kind == "image" for m in media)
    place = Region("box", (0.125, 0.25, 0.625, 0.875), of=points) if points is not None and pictured else None
    return Turn("user", (*media, Text(text), *([place] if place else [])))


def says(text: str, *, weight: float = 1.0) -> Turn:
    return Turn("assistant", (Text(text),), weight)


def sample(row: int, *turns: Turn, children: tuple[Node, ...] = ()) -> Sample:
    return Sample(Node(turns, children), Origin("memory", row))


def tree(kinds: Sequence[str], *, content: int = 0) -> Sample:
    """A question on a picture with three answers; the second goes on over another picture, and then branches again.

    `content` changes the second picture.
    """
    later = [medium(n, kind, content=content) for n, kind in enumerate(kinds, start=1)]
    deep = (Node((says("Yes."),)), Node((says("No, it is not.", weight=0.5),)))
    return sample(
        7,
        user("What is to be seen here?", *[medium(n, kind) for n, kind in enumerate(kinds)], points=0),
        children=(
            Node((says("A circle."),)),
            Node((says("A small square, and a word."), user("And is this the same?", *later, points=len(kinds))), deep),
            Node((says("Two of them are red.", weight=2.0),)),
        ),
    )


def branches(whole: Sample) -> list[Sample]:
    """Every path of a tree by itself: the same nodes without their siblings."""

    def paths(node: Node) -> list[Node]:
        if not node.children:
            return [node]
        return [Node(node.turns, (below,)) for child in node.children for below in paths(child)]

    return [Sample(path, whole.origin) for path in paths(whole.root)]


def conversations(kinds: Sequence[str]) -> list[Sample]:
    """Four samples that differ in length, in pictures and in their sizes; the third has none."""
    made = [
        sample(1, user("What is this?", *[medium(2, kind) for kind in kinds]), says("A red circle.")),
        sample(
            2,
            user("Two pictures. Compare.", *[medium(n, kind) for kind in kinds for n in (3, 0)], points=1),
            says("One is larger."),
            user("Which?"),
            says("The first one is.", weight=0.5),
        ),
        sample(3, user("How much is two and two?"), says("Four.")),
        sample(4, user("Read.", *[medium(4, kind) for kind in kinds]), says("stop", weight=3.0)),
    ]
    return made
