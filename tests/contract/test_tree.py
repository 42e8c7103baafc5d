"""The contract of every recipe: what a sample is computed to does not depend on what stands around it.

Recipes are discovered, so a new one is under test as soon as its file is there. Each is built at the tiny scale, as it
is and with pictures of their own sizes (`native`), and once more with the dense mask where a cheaper strategy would do.
Weights are drawn larger than they are initialised, so that a leak shows: logits reach 6.7, and one picture for another
moves them by up to 5. About 10 s.
"""

import copy
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import picture
from quintet.components import lora
from quintet.components.llms import attention
from quintet.components.llms.attention import Strategy
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.errors import AlignmentError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.run import load_recipe, recipe_names
from quintet.model.checkpoint import load_model, save_model
from quintet.model.generate import Sampling, generate
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate
from quintet.values import Batch, Media, Node, Origin, Ref, Region, Sample, Text, Tokens, Turn

LOGITS = 2e-5
"""float32; the same sums, in another order and in kernels of other shapes. Logits reach 6.7; worst measured: 5.5e-6."""
GRADIENTS = 2e-5
"""As a share of a parameter's largest gradient. Sums over some 400 columns in another order; worst measured: 1.2e-5."""

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
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=added).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            if name.endswith("Attention.q.weight"):
                parameter /= 8**0.5  # T5's attention divides by nothing, its initialisation by a head's width
        for parameter in model.fusion.parameters():
            if not parameter.any():
                parameter.fill_(0.5)  # a gate that begins closed would hide what is behind it
    return Subject(recipe, model, Processor(tokenizer, recipe.template, recipe.model))


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
    file = io.BytesIO()
    height, width = SIZES[number % len(SIZES)]
    picture(number + 100 * content, height=height, width=width).save(file, "PNG")
    return Media(kind, Ref(f"{number}.png", data=file.getvalue()))


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


def columns_of(tokens: Tokens, path: Tokens) -> Tensor:
    """Where the columns of `path` stand in the tree that it is a path of, found by walking back from its last token."""
    for last in range(len(tokens)):
        walk = [last]
        while tokens.parent[walk[-1]] >= 0:
            walk.append(int(tokens.parent[walk[-1]]))
        columns = torch.tensor(walk[::-1])
        if len(columns) == len(path) and torch.equal(tokens.ids[columns], path.ids):
            return columns
    raise AssertionError("the path's tokens are not in the tree")


def assert_same_logits(mine: Tensor, alone: Tensor) -> None:
    torch.testing.assert_close(mine, alone, atol=LOGITS, rtol=0)


def assert_same_gradients(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    largest = max(float(g.abs().max()) for g in other.values())
    for name, gradient in other.items():
        # A key's bias moves nothing, so its gradient is rounding noise of a size that has nothing to do with it; a
        # gate's is one sum over all columns and channels, most of which cancels, and so is what reaches the routers of
        # LaVIN's adapters and the tokens that they read (worst measured: 2.1e-7 of the largest).
        gate = gradient.numel() == 1 or ("adapters" in name and ".router." in name) or name == "fusion.tokens"
        share = 1e-1 if gate else 2e-2 if name.endswith("k_proj.bias") else 1e-2
        bound = GRADIENTS * max(float(gradient.abs().max()), share * largest)
        torch.testing.assert_close(mine[name], gradient, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# ---- alone = packed = in a tree = padded = in any order = accumulated ---------------------------------------------
def test_packed_padded_and_in_any_order_a_sample_has_the_logits_it_has_alone(tried: Subject) -> None:
    made = [tried.processor.tokens(s) for s in conversations(tried.kinds)]
    alone = [tried.logits(tried.batch([[t]]))[0] for t in made]
    widest = sum(map(len, made))
    arrangements = [[[0, 1, 2, 3]], [[3, 1], [2, 0]], [[2], [0, 3], [1]], [[1], [2], [3], [0]]]
    for arrangement in arrangements:
        rows = [[made[i] for i in row] for row in arrangement]
        for width in (None, widest + 13):
            found = tried.logits(tried.batch(rows, width=width))
            for r, row in enumerate(arrangement):
                column = 0
                for i in row:
                    assert_same_logits(found[r, column : column + len(made[i])], alone[i])
                    column += len(made[i])


def test_in_a_tree_with_siblings_a_path_has_the_logits_it_has_alone(tried: Subject) -> None:
    whole = tree(tried.kinds)
    tokens, other = tried.processor.tokens(whole), tried.processor.tokens(conversations(tried.kinds)[1])
    paths = [tried.processor.tokens(path) for path in branches(whole)]
    assert len(paths) == 4
    for rows, start in (([[tokens]], 0), ([[other, tokens], [other]], len(other))):
        found = tried.logits(tried.batch(rows))[0, start:]
        for path in paths:
            assert_same_logits(found[columns_of(tokens, path)], tried.logits(tried.batch([[path]]))[0])


def test_packed_padded_in_any_order_and_accumulated_the_gradients_are_equal(tried: Subject) -> None:
    made = [tried.processor.tokens(s) for s in conversations(tried.kinds)]
    one_by_one = tried.gradients([tried.batch([[t]]) for t in made])
    whole = [
        [tried.batch([made])],
        [tried.batch([made[::-1]], width=sum(map(len, made)) + 13)],
        [tried.batch([[t] for t in made])],
        [tried.batch([[made[3]], [made[0]]]), tried.batch([[made[2], made[1]]])],
    ]
    for batches in whole:
        assert_same_gradients(tried.gradients(batches), one_by_one)


def test_a_tree_has_the_gradients_of_its_paths(tried: Subject) -> None:
    """The node that two answers share is learnt once in the tree, so its weight is halved where each has its own."""
    whole = tree(tried.kinds)
    shared = whole.root.children[1]
    halved = replace(shared, turns=(replace(shared.turns[0], weight=0.5), *shared.turns[1:]))
    children = (whole.root.children[0], halved, whole.root.children[2])
    paths = branches(replace(whole, root=replace(whole.root, children=children)))
    in_tree = tried.batch([[tried.processor.tokens(whole)]])
    apart = [tried.batch([[tried.processor.tokens(path)]]) for path in paths]
    assert sum(b.targets.count for b in apart) == in_tree.targets.count
    assert_same_gradients(tried.gradients([in_tree]), tried.gradients(apart))


# ---- what must move nothing, and what must move -------------------------------------------------------------------
def test_another_neighbour_in_the_row_moves_nothing_at_all(tried: Subject) -> None:
    """Exactly: a masked column has the weight exp(−∞) = 0, and nothing else of the row's shape changes."""
    kinds = tried.kinds
    one, mine = (tried.processor.tokens(s) for s in conversations(kinds)[:2])
    other = tried.processor.tokens(
        sample(1, user("What is this?", *[medium(2, kind, content=1) for kind in kinds]), says("A red circle."))
    )
    changed = replace(other, ids=other.ids.clone())
    changed.ids[-4:] = changed.ids[-4:].roll(1)
    for order in ((0, 1), (1, 0)):
        before, after = ([(a, mine)[i] for i in order] for a in (one, changed))
        start = sum(len(t) for t in before[: order.index(1)])
        was, now = (tried.logits(tried.batch([row]))[0] for row in (before, after))
        mine_at = torch.arange(start, start + len(mine))
        assert torch.equal(now[mine_at], was[mine_at])
        assert not torch.allclose(now, was, atol=0.1), "the neighbour itself must have moved"


def test_another_sibling_moves_nothing_of_a_branch_at_all(tried: Subject) -> None:
    """The third answer's tokens change, and in the second the picture: the first path keeps its numbers exactly."""
    was = tree(tried.kinds)
    tokens, same = tried.processor.tokens(was), tried.processor.tokens(branches(was)[0])
    changed = tried.processor.tokens(tree(tried.kinds, content=1))
    third = changed.enter == changed.enter[-1]
    changed = replace(changed, ids=torch.where(third, changed.ids.roll(1), changed.ids))
    before, after = (tried.logits(tried.batch([[t]]))[0] for t in (tokens, changed))
    mine = columns_of(tokens, same)
    assert torch.equal(after[mine], before[mine])
    moved = (after - before).abs().amax(-1)
    assert float(moved[third].max()) > 0.1
    assert float(moved[~third].max()) > 0.1, "the second branch has another picture"


def test_a_picture_acts_from_its_place_on_and_never_before(tried: Subject) -> None:
    """Another second picture: columns before it, and paths without it, are equal to the bit; all behind it move.

    A picture's own columns need not all move: the first may be a learned beginning.
    """
    was, now = tree(tried.kinds), tree(tried.kinds, content=1)
    tokens, changed = tried.processor.tokens(was), tried.processor.tokens(now)
    before, after = (tried.logits(tried.batch([[t]]))[0] for t in (tokens, changed))
    if tried.processor.model.experts:
        # A picture that is told in words is where the words differ.
        told = (tokens.ids != changed.ids).nonzero().flatten()
        start, last = int(told[0]), int(told[-1])
    else:
        assert torch.equal(tokens.ids, changed.ids)
        item = tokens.items[len(tried.kinds)]
        start, last = item.start, item.start + item.columns - 1
    enter, end = int(tokens.enter[start]), int(tokens.exit[start])
    behind = (torch.arange(len(tokens)) >= start) & (tokens.enter >= enter) & (tokens.enter < end)
    assert torch.equal(after[~behind], before[~behind])
    moved = (after - before).abs().amax(-1)
    behind &= torch.arange(len(tokens)) >= last
    behind &= before.any(-1)  # where an encoder–decoder predicts nothing it says nothing
    assert bool((moved[behind] > 1e-3).all()), "a column behind the picture does not see it"
    assert float(moved[behind].max()) > 0.1


# ---- alignment ---------------------------------------------------------------------------------------------------
def test_counts_that_are_wrong_for_each_item_are_refused_though_their_sum_is_right(tried: Subject) -> None:
    batch = tried.batch([[tried.processor.tokens(s) for s in conversations(tried.kinds)]])
    for kind, media in batch.media.items():
        first, second, *rest = media.counts
        shifted = replace(media, counts=(first - 1, second + 1, *rest))
        with pytest.raises(AlignmentError, match=rf"{kind}: .*item 0: {first - 1} columns, {first} features; item 1"):
            tried.model(replace(batch, media={**batch.media, kind: shifted}))
        missing = replace(media, counts=media.counts[:-1])
        with pytest.raises(AlignmentError, match=f"{len(media.counts) - 1} items in the text, {len(media.counts)} enc"):
            tried.model(replace(batch, media={**batch.media, kind: missing}))


# ---- what trains -------------------------------------------------------------------------------------------------
def test_exactly_the_declared_parts_get_gradients_in_every_stage(plain: Subject) -> None:
    processor = plain.processor
    for stage in plain.recipe.stages:
        spelt = replace(processor, template=stage.template)
        model = copy.deepcopy(plain.model)
        model.fused = stage.fused
        declared = set_trainable(model, stage.train)
        wake(model)
        batch = plain.batch([[spelt.tokens(s)] for s in conversations(plain.kinds)])
        OBJECTIVES[stage.objective](model, batch, stage.extra)[0].backward()
        for part, module in model.parts().items():
            for name, parameter in module.named_parameters():
                has = parameter.grad is not None and bool((parameter.grad != 0).any())
                assert has == learns(module, name, declared.get(part)), f"stage {stage.name}: {part}.{name}"


def test_every_stage_takes_a_step_in_bfloat16(plain: Subject) -> None:
    """Where some products are rounded and some are not, types meet that a run in float32 never sees."""
    for stage in plain.recipe.stages:
        model = copy.deepcopy(plain.model)
        model.fused = stage.fused
        set_trainable(model, stage.train)
        spelt = replace(plain.processor, template=stage.template)
        batch = plain.batch([[spelt.tokens(s)] for s in conversations(plain.kinds)])
        with torch.autocast("cpu", torch.bfloat16):
            loss = OBJECTIVES[stage.objective](model, batch, stage.extra)[0]
        loss.backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert found, f"stage {stage.name} learns nothing"
        assert all(bool(torch.isfinite(x).all()) for x in (loss, *found)), stage.name


def wake(model: MLLM) -> None:
    """Adapters begin as zero, and then half of their weights get no gradient: they are drawn as after some steps."""
    for name, parameter in lora.lora_parameters(model):
        if name.endswith("lora_B"):
            with torch.no_grad():
                parameter.normal_(std=0.1)


def learns(part: nn.Module, name: str, rate: Rate | None) -> bool:
    """Whether a parameter of a part learns at this rate: all do, or the adapters, or those of the upper layers."""
    if rate is None:
        return False
    if rate.lora is not None:
        return ".lora_" in name
    if rate.upper == 1:
        return True
    layer = re.compile(r"layers\.(\d+)\.")
    numbers = {int(found[1]) for n, _ in part.named_parameters() if (found := layer.match(n))}
    found = layer.match(name)
    first = min(len(numbers) * (1 - rate.upper), len(numbers) - 1)
    return name.startswith("norm.") or (found is not None and int(found[1]) >= first)


# ---- saved, answered ---------------------------------------------------------------------------------------------
def test_a_saved_model_gives_the_same_numbers_when_it_is_loaded(plain: Subject, tmp_path: Path) -> None:
    save_model(plain.model, tmp_path)
    plain.processor.save(tmp_path)
    loaded = load_model(tmp_path).eval()
    processor = Processor.load(tmp_path, loaded.config)
    samples = conversations(plain.kinds)
    there = Subject(plain.recipe, loaded, processor)
    mine, back = (s.batch([[s.processor.tokens(x)] for x in samples]) for s in (plain, there))
    assert torch.equal(mine.tokens, back.tokens)
    assert torch.equal(plain.logits(mine), there.logits(back))


def extended(tokens: Tokens, ids: list[int]) -> Tokens:
    """A path with more tokens of an answer at its end."""
    n = len(ids)
    more = {
        "ids": torch.tensor(ids),
        "weight": torch.ones(n),
        "enter": tokens.enter[-1:].expand(n),
        "exit": tokens.exit[-1:].expand(n),
        "order": torch.arange(n) + len(tokens),
        "position": torch.arange(n) + tokens.position[-1] + 1,
        "parent": torch.arange(n) + len(tokens) - 1,
    }
    return replace(tokens, **{name: torch.cat([getattr(tokens, name), value]) for name, value in more.items()})


def test_decoding_with_the_cache_gives_what_recomputing_gives(tried: Subject) -> None:
    """Two trees of open answers in one row and a conversation in another, padded; each leaf against itself alone."""
    kinds = tried.kinds
    asked = sample(
        5,
        user("Look at this.", *[medium(0, kind) for kind in kinds]),
        says("I do."),
        children=tuple(
            Node((user(q, *m),))
            for q, m in (
                ("What colour?", ()),
                ("And this?", [medium(1, kind) for kind in kinds]),
                ("How many are there of them?", ()),
            )
        ),
    )
    other = sample(6, user("How much is two and two?"))
    third = sample(8, user("Read.", *[medium(4, kind) for kind in kinds]))
    rows = [[asked, other], [third]]
    batch = tried.batch([[tried.processor.tokens(s, open=True) for s in row] for row in rows])
    found = generate(tried.model, batch, stop=lambda ids: False, sampling=Sampling(max_tokens=6))
    prompts = [tried.processor.tokens(p, open=True) for s in (asked, other, third) for p in branches(s)]
    assert len(found) == len(prompts) == 5
    for prompt, answer in zip(prompts, found, strict=True):
        ids: list[int] = []
        while len(ids) < len(answer):
            # The token to come is any: what stands there moves nothing before it.
            logits = tried.logits(tried.batch([[extended(prompt, [*ids, 0])]]))
            ids.append(int(logits[0, -2].argmax()))
        assert answer == ids
    assert len({tuple(answer) for answer in found}) > 2, "answers that are all alike prove nothing"


def test_the_open_prompt_is_a_prefix_of_the_training_tokens(plain: Subject) -> None:
    """At every answer, in every stage's template; what is learnt of that turn is exactly what follows the prompt."""
    for stage in plain.recipe.stages:
        spelt = replace(plain.processor, template=stage.template)
        for whole in conversations(plain.kinds):
            turns = whole.root.turns
            for n, turn in enumerate(turns):
                if turn.role != "assistant":
                    continue
                prompt = spelt.tokens(replace(whole, root=Node(turns[:n])), open=True)
                taught = spelt.tokens(replace(whole, root=Node(turns[: n + 1])))
                assert torch.equal(taught.ids[: len(prompt)], prompt.ids)
                assert torch.equal(taught.position[: len(prompt)], prompt.position)
                assert [i.start for i in prompt.items] == [i.start for i in taught.items]
                assert bool((taught.weight[len(prompt) :] == turn.weight).all())
                answer = plain.processor.tokenizer.decode(taught.ids[len(prompt) :].tolist(), keep_special=True)
                assert answer == stage.template.answer + turn.parts[0].text + stage.template.end  # type: ignore[union-attr]


def test_the_size_of_the_batch_does_not_change_an_answer(plain: Subject) -> None:
    prompts = [Sample(Node(s.root.turns[:1]), s.origin) for s in conversations(plain.kinds)]
    engine = Engine(plain.model, plain.processor)
    one = engine.answer(prompts, max_tokens=6, batch_size=1)
    assert len(set(one)) > 1
    assert engine.answer(prompts, max_tokens=6, batch_size=3) == one
    assert engine.answer(prompts, max_tokens=6) == one
    assert engine.answer(prompts[::-1], max_tokens=6) == one[::-1]
