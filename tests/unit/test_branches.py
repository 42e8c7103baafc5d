"""Branches are spelt as they would be alone: a token may reach across the place where a conversation branches.

With the starter's tokenizer, which has words with the space before them, in every recipe's template.
"""

import random

import pytest
import torch

from conftest import picture
from quintet.data.template import Template
from quintet.data.tokenizer import Tokenizer
from quintet.errors import DataError
from quintet.lab.pretrained import folder_of
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.recipes._templates import VICUNA_V1
from quintet.values import Media, Node, Part, Ref, Sample, Text, Tokens, Turn

WORDS = ("the", " red", "circle", "\n", "is ", "Where", "?", " yes", "no", ".", "top left", "4")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.load(folder_of("starter/llm"))


RECIPES = [load_recipe(name)[1] for name in recipe_names()]
TEMPLATES: dict[str, Template] = {
    each.name: each for r in RECIPES for each in (r.template, *(s.template for s in r.stages if s.reads))
}


def grown(rng: random.Random, depth: int) -> Node:
    """A random tree of turns, of which the first asks about a picture."""
    turns = [Turn("user", (*asked(rng, pictured=depth == 2),))] if rng.random() < 0.8 or depth == 2 else []
    if not turns or rng.random() < 0.5 or depth == 0:
        turns.append(Turn("assistant", (Text("".join(rng.choices(WORDS, k=3))),)))
    children = tuple(grown(rng, depth - 1) for _ in range(rng.choice((0, 2, 3)))) if depth else ()
    return Node(tuple(turns), children)


def asked(rng: random.Random, *, pictured: bool) -> list[Part]:
    said: list[Part] = [Text("".join(rng.choices(WORDS, k=rng.randint(1, 4))))]
    return [Media("image", Ref("p.png", data=picture(1, height=16, width=16))), *said] if pictured else said


def paths(node: Node, before: tuple[Turn, ...] = ()) -> list[tuple[Turn, ...]]:
    """The turns from the root to each leaf."""
    here = (*before, *node.turns)
    return [path for child in node.children for path in paths(child, here)] if node.children else [here]


def columns(tokens: Tokens) -> list[list[int]]:
    """The columns of each path of a sample, from the root to a leaf."""
    nodes = sorted(set(tokens.enter.tolist()))
    ends = {n: int(tokens.exit[tokens.enter == n][0]) for n in nodes}
    leaves = [n for n in nodes if not any(n < m < ends[n] for m in nodes)]
    return [[c for c in range(len(tokens)) if tokens.enter[c] <= leaf < tokens.exit[c]] for leaf in leaves]


@pytest.mark.parametrize("open", [False, True], ids=["learnt", "open"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_path_is_spelt_as_the_path_alone(name: str, open: bool, tokenizer: Tokenizer) -> None:
    template = TEMPLATES[name]
    tokenizer.add(*template.special_tokens)
    tried = 0
    for seed in range(30):
        root = grown(random.Random(seed), 2)

        def made(node: Node) -> Tokens:
            return template.tokens(Sample(node), tokenizer, lambda medium: ((16, 16), 3), open=open)

        try:
            tree = made(root)
            alone = [made(Node(path)) for path in paths(root)]
        except DataError:
            continue  # a path of it has nothing to learn
        found = columns(tree)
        if len(found) != len(alone):
            continue  # a leaf that spells nothing has no columns
        tried += 1
        for path, flat in zip(found, alone, strict=True):
            assert tree.ids[path].tolist() == flat.ids.tolist()
            assert torch.equal(tree.position[path], flat.position)
            assert torch.equal(tree.weight[path], flat.weight)
    assert tried >= 5


def test_the_space_before_an_answers_header_goes_with_it(tokenizer: Tokenizer) -> None:
    """`Where? ASSISTANT:` has a token ` A`; the branches begin with it, and the prompt ends before it."""
    user, answers = Turn("user", (Text("Where?"),)), ("left", "right")
    node = Node((user,), tuple(Node((Turn("assistant", (Text(each),)),)) for each in answers))
    made = VICUNA_V1.tokens(Sample(node), tokenizer, lambda medium: ((1, 1), 1))
    first = made.enter.tolist().index(1)
    assert tokenizer.decode([int(made.ids[first])]).startswith(" ")
