"""Answers token by token: where they begin, how a token is chosen, when it ends. About 2 s."""

import pytest
import torch
from torch import Tensor

from quintet.components.llms.decoder import Decoder
from quintet.model.generate import Leaf, Sampling, generate, leaves
from quintet.model.mllm import MLLM
from quintet.values import Batch, Targets


def batch(enter: list[list[int]], exit: list[list[int]], lengths: tuple[int, ...], *, seed: int = 0) -> Batch:
    shape = (len(enter), len(enter[0]))
    tokens = torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(seed))
    order = torch.arange(shape[1]).expand(shape).contiguous()
    none = torch.zeros(0, dtype=torch.long)
    return Batch(
        tokens,
        torch.tensor(enter),
        torch.tensor(exit),
        order,
        order,
        Targets(none, none, none.float(), none),
        {},
        lengths,
    )


def prompt() -> Batch:
    return batch([[0, 0, 0]], [[1, 1, 1]], (3,))


@pytest.fixture(scope="module")
def model() -> MLLM:
    torch.manual_seed(0)
    llm = Decoder.Config(vocab=20, dim=16, depth=1, heads=2, kv_heads=1, ffn=16)
    made = MLLM.Config(llm=llm).build()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.normal_(std=0.5)
    return made


def never(ids: list[int]) -> bool:
    return False


def test_leaves_are_the_last_columns_of_nodes_that_hold_no_other() -> None:
    """Row 0: root 0 with leaves 1 (columns 1, 2) and 2, then sample 3. Row 1: a sample of two columns, then padding."""
    made = batch([[0, 1, 1, 2, 3], [0, 0, 1, 1, 1]], [[3, 2, 2, 3, 4], [1, 1, 2, 2, 2]], (5, 2))
    assert leaves(made) == [Leaf(0, 2, 1), Leaf(0, 3, 2), Leaf(0, 4, 3), Leaf(1, 1, 0)]


def test_leaves_that_add_nothing_begin_behind_what_stands_above_them() -> None:
    """Row 0: root 0 with leaves 1 and 3, and node 2 whose leaves are 3 and 4; then root 5 with leaf 6. No leaf has a
    column but the sample behind them, 7."""
    made = batch([[0, 0, 2, 5, 7]], [[5, 5, 5, 7, 8]], (5,))
    assert leaves(made) == [Leaf(0, 1, 1), Leaf(0, 2, 3), Leaf(0, 2, 4), Leaf(0, 3, 6), Leaf(0, 4, 7)]


def test_greedy_answers_repeat_and_end_at_the_limit(model: MLLM) -> None:
    one, two = (generate(model, prompt(), stop=never, sampling=Sampling(max_tokens=5)) for _ in range(2))
    assert one == two
    assert [len(ids) for ids in one] == [5]


def test_an_answer_ends_where_it_is_told_to_and_others_go_on(model: MLLM) -> None:
    """Two prompts; the one that meets its second token again stops there, the token included."""
    made = batch([[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]], (3, 3))
    free = generate(model, made, stop=never, sampling=Sampling(max_tokens=6))
    assert free[0] != free[1]
    ended = generate(model, made, stop=lambda ids: ids == free[0][:2], sampling=Sampling(max_tokens=6))
    assert ended == [free[0][:2], free[1]]


def test_each_token_is_told_as_it_comes_but_not_the_one_that_ends(model: MLLM) -> None:
    told: list[tuple[int, int]] = []
    free = generate(model, prompt(), stop=never, sampling=Sampling(max_tokens=4))[0]
    generate(model, prompt(), stop=lambda ids: len(ids) == 3, on_token=lambda leaf, token: told.append((leaf, token)))
    assert told == [(0, token) for token in free[:2]]


def test_sampling_follows_its_seed(model: MLLM) -> None:
    def drawn(seed: int) -> list[int]:
        return generate(model, prompt(), stop=never, sampling=Sampling(max_tokens=12, temperature=2.0, seed=seed))[0]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(4)}) == 4


def test_a_nucleus_of_next_to_nothing_is_greedy(model: MLLM) -> None:
    greedy = generate(model, prompt(), stop=never, sampling=Sampling(max_tokens=8))
    assert generate(model, prompt(), stop=never, sampling=Sampling(max_tokens=8, temperature=1.0, top_p=1e-9)) == greedy


def test_the_nucleus_keeps_the_smallest_set_that_holds_the_mass() -> None:
    """Probabilities 0.5, 0.3, 0.2 and top_p 0.6: the second token is still in, the third never comes."""
    from quintet.model.generate import _Run

    run = object.__new__(_Run)
    run.sampling = Sampling(temperature=1.0, top_p=0.6)
    run.random = torch.Generator().manual_seed(0)
    logits: Tensor = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(400, 3)
    chosen = run._choose(logits)
    assert set(chosen) == {0, 1}
    # Renormalised: 0.625 and 0.375; 400 draws lie within 0.1 of it but once in 10,000.
    assert abs(chosen.count(0) / 400 - 0.625) < 0.1


def test_the_model_is_left_in_the_mode_it_was_in(model: MLLM) -> None:
    model.train()
    generate(model, prompt(), stop=never, sampling=Sampling(max_tokens=1))
    assert model.training
