"""Decoding with a cache: alone = batched = packed = as a branch of a tree, token for token. 3 s.

Tolerance of logits (up to 1.5): float32, other kernels for other shapes. Worst measured: 9.5e-7.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quintet.components.llms.decoder import Decoder
from quintet.components.presets_llm import MISTRAL_7B, QWEN2_0_5B, QWEN3_0_6B
from quintet.components.roles import Context
from quintet.errors import ConfigError

TOLERANCE = 5e-6
STEPS = 6


@pytest.fixture(params=["qwen2", "qwen3", "window"], name="decoder")
def _decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    cfgs = {
        "qwen2": QWEN2_0_5B.tiny(),
        "qwen3": QWEN3_0_6B.tiny(),
        "window": replace(MISTRAL_7B.tiny(), sliding_window=5),
    }
    decoder = cfgs[request.param].build().eval()
    for p in decoder.parameters():
        # Larger than the initial 0.02, so that attention is far from uniform.
        torch.nn.init.normal_(p, std=0.3)
    return decoder


@torch.no_grad()
def alone(decoder: Decoder, prompt: Tensor) -> tuple[list[int], Tensor]:
    """Greedy answer without any cache: every step reads the whole path again."""
    tokens = prompt
    logits: list[Tensor] = []
    for _ in range(STEPS):
        n = torch.arange(len(tokens))[None]
        ctx = Context(enter=0 * n, exit=0 * n + 1, order=n, positions=n)
        logits.append(decoder.head(decoder(decoder.embed(tokens[None]), ctx))[0, -1])
        tokens = torch.cat((tokens, logits[-1].argmax()[None]))
    return tokens[len(prompt) :].tolist(), torch.stack(logits)


@torch.no_grad()
def decode(decoder: Decoder, tokens: Tensor, ctx: Context, answers: list[dict[str, int]]) -> list[tuple]:
    """Greedy answers of all `answers` at once: each is a row, its last prompt column and its node's vectors.

    Rows with fewer answers than others get columns of a node nobody else is in.
    """
    rows, columns = tokens.shape
    width = max(sum(a["row"] == r for a in answers) for r in range(rows))
    cache = decoder.new_cache(rows, columns + width * (STEPS - 1))
    hidden = decoder(decoder.embed(tokens), replace(ctx, cache=cache))
    place = {i: (a["row"], sum(b["row"] == a["row"] for b in answers[:i])) for i, a in enumerate(answers)}
    states = torch.stack([hidden[a["row"], a["last"]] for a in answers])
    out: list[list[int]] = [[] for _ in answers]
    logits: list[list[Tensor]] = [[] for _ in answers]
    for step in range(STEPS):
        now = decoder.head(states)
        for i in range(len(answers)):
            logits[i].append(now[i])
            out[i].append(int(now[i].argmax()))
        if step == STEPS - 1:
            break
        new = {name: torch.full((rows, width), 10_000) for name in ("enter", "exit", "order", "positions", "tokens")}
        new["exit"] += 1
        new["tokens"] *= 0
        new["positions"] *= 0
        for i, a in enumerate(answers):
            at = place[i]
            new["enter"][at], new["exit"][at] = a["enter"], a["exit"]
            new["order"][at] = columns + step
            new["positions"][at] = a["position"] + step
            new["tokens"][at] = out[i][-1]
        read = decoder.embed(new.pop("tokens"))
        hidden = decoder(read, Context(**new, cache=cache))
        states = torch.stack([hidden[place[i]] for i in range(len(answers))])
    assert cache.length == cache.columns
    return [(o, torch.stack(x)) for o, x in zip(out, logits, strict=True)]


def same(decoder: Decoder, got: tuple, prompt: Tensor) -> None:
    tokens, logits = alone(decoder, prompt)
    assert got[0] == tokens
    torch.testing.assert_close(got[1], logits, atol=TOLERANCE, rtol=0)


def runs(*rows: list[int]) -> Context:
    enter = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in rows])
    positions = torch.tensor([[p for n in row for p in range(n)] for row in rows])
    order = torch.arange(enter.shape[1]).expand_as(enter)
    return Context(enter=enter, exit=enter + 1, order=order, positions=positions)


def test_prompts_of_different_length_decode_in_one_batch_as_alone(decoder: Decoder) -> None:
    prompts = [torch.randint(512, (n,)) for n in (9, 1, 5)]
    tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    ctx = runs(*([len(p), 9 - len(p)] for p in prompts))
    answers = [{"row": i, "last": len(p) - 1, "enter": 0, "exit": 1, "position": len(p)} for i, p in enumerate(prompts)]
    for got, prompt in zip(decode(decoder, tokens, ctx, answers), prompts, strict=True):
        same(decoder, got, prompt)


def test_prompts_packed_in_rows_decode_side_by_side_as_alone(decoder: Decoder) -> None:
    """Three prompts in one row and one in the other: four answers grow, three columns a row at each step."""
    tokens = torch.randint(512, (2, 15))
    ctx = runs([4, 6, 5], [12, 3])
    spans = [(0, 0, 4, 0), (0, 4, 10, 1), (0, 10, 15, 2), (1, 0, 12, 0)]
    answers = [{"row": r, "last": b - 1, "enter": e, "exit": e + 1, "position": b - a} for r, a, b, e in spans]
    for got, (row, start, stop, _) in zip(decode(decoder, tokens, ctx, answers), spans, strict=True):
        same(decoder, got, tokens[row, start:stop])


def test_branches_of_a_tree_decode_side_by_side_as_if_alone(decoder: Decoder) -> None:
    """A root of 6 columns, questions of 3 and 4 below it, a neighbour of 2; two more answers sampled below the first
    question, in nodes that hold no prompt column at all.
    """
    tokens = torch.randint(512, (1, 15))
    spans = [(0, 5, 6, 0), (1, 4, 3, 6), (4, 5, 4, 6), (5, 6, 2, 0)]
    vectors = {
        "enter": torch.tensor([[e for e, _, n, _ in spans for _ in range(n)]]),
        "exit": torch.tensor([[x for _, x, n, _ in spans for _ in range(n)]]),
        "positions": torch.tensor([[p + i for _, _, n, p in spans for i in range(n)]]),
        "order": torch.arange(15)[None],
    }
    root, one, two, neighbour = tokens[0, :6], tokens[0, 6:9], tokens[0, 9:13], tokens[0, 13:]
    answers = [
        {"row": 0, "last": 8, "enter": 2, "exit": 3, "position": 9},
        {"row": 0, "last": 8, "enter": 3, "exit": 4, "position": 9},
        {"row": 0, "last": 12, "enter": 4, "exit": 5, "position": 10},
        {"row": 0, "last": 14, "enter": 5, "exit": 6, "position": 2},
    ]
    got = decode(decoder, tokens, Context(**vectors), answers)
    same(decoder, got[0], torch.cat((root, one)))
    same(decoder, got[1], torch.cat((root, one)))
    same(decoder, got[2], torch.cat((root, two)))
    same(decoder, got[3], neighbour)


@torch.no_grad()
def test_reading_in_pieces_gives_the_states_of_reading_at_once(decoder: Decoder) -> None:
    tokens, ctx = torch.randint(512, (2, 14)), runs([6, 8], [10, 4])
    whole = decoder(decoder.embed(tokens), ctx)
    cache = decoder.new_cache(2, 14)
    pieces = []
    for a, b in ((0, 3), (3, 8), (8, 9), (9, 14)):
        part = {name: getattr(ctx, name)[:, a:b] for name in ("enter", "exit", "order", "positions")}
        pieces.append(decoder(decoder.embed(tokens[:, a:b]), Context(**part, cache=cache)))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_full_cache_says_how_large_it_must_be(decoder: Decoder) -> None:
    cache = decoder.new_cache(1, 4)
    ctx = replace(runs([3]), cache=cache)
    decoder(decoder.embed(torch.zeros(1, 3, dtype=torch.long)), ctx)
    with pytest.raises(ConfigError, match="room for 4 columns, 3 are used and 3 more were asked for"):
        decoder(decoder.embed(torch.zeros(1, 3, dtype=torch.long)), ctx)
    assert cache.length == 3, "nothing is appended by halves"


@torch.no_grad()
def test_a_cache_of_other_rows_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="holds 2 rows, this forward has 1"):
        decoder(decoder.embed(torch.zeros(1, 3, dtype=torch.long)), replace(runs([3]), cache=decoder.new_cache(2, 9)))
