"""The contract of a model that answers: saved, decoded with a cache and asked in any batch, it says the same."""

from dataclasses import replace
from pathlib import Path

import subjects
import torch
from subjects import Subject, branches, conversations, medium, sample, says, user

from quintet.data.processor import Processor
from quintet.model.checkpoint import load_model, save_model
from quintet.model.generate import Sampling, generate
from quintet.serving.engine import Engine
from quintet.training.rolling import continued
from quintet.values import Node, Sample, Tokens

tried, plain = subjects.tried, subjects.plain


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
        # One pass says what is likeliest behind every beginning of the answer: what stands there moves nothing before.
        logits = tried.logits(tried.batch([[extended(prompt, [*answer, 0])]]))[0, len(prompt) - 1 : -2]
        assert answer == logits.argmax(-1).tolist()
    assert len({tuple(answer) for answer in found}) > 2, "answers that are all alike prove nothing"


def test_several_answers_to_a_prompt_are_each_the_one_answer(tried: Subject) -> None:
    """Greedy, so alike: what is sampled for pairs and policies, whether the template writes a header or not."""
    asked = [user("What is it?", *[medium(n, kind) for kind in tried.kinds for n in range(count)]) for count in (1, 2)]
    engine = Engine(tried.model, tried.processor)
    alone = engine.sampled([sample(n, turn) for n, turn in enumerate(asked)], sampling=Sampling(max_tokens=6))
    several = [sample(n, turn, children=(Node(()),) * (n + 2)) for n, turn in enumerate(asked)]
    found = engine.sampled(several, sampling=Sampling(max_tokens=6))
    assert found == [one * (n + 2) for n, one in enumerate(alone)]
    # Drawn, they differ, of a prompt and of two (Kosmos-2's random weights always find the same token likeliest).
    drawn = engine.sampled(several, sampling=Sampling(max_tokens=6, temperature=1.0))
    assert all(len(set(each)) > 1 for each in drawn)
    for n, one in enumerate(several):
        made = tried.processor.tokens(one, open=True)
        ids = [[5 + answer, 6, 7] for answer in range(n + 2)]
        whole = continued(made, ids)
        assert [whole.ids[whole.enter == node].tolist()[-3:] for node, _ in whole.answers] == ids
        assert int(whole.weight.sum()) == 3 * (n + 2)


def test_the_size_of_the_batch_does_not_change_an_answer(plain: Subject) -> None:
    prompts = [Sample(Node(s.root.turns[:1]), s.origin) for s in conversations(plain.kinds)]
    engine = Engine(plain.model, plain.processor)
    one = engine.answer(prompts, max_tokens=6, batch_size=1)
    assert len(set(one)) > 1
    assert engine.answer(prompts, max_tokens=6, batch_size=3) == one
    assert engine.answer(prompts, max_tokens=6) == one
    assert engine.answer(prompts[::-1], max_tokens=6) == one[::-1]
