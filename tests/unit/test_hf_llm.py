"""Any transformers LLM: OPT, GPT-NeoX and T5 with random weights, in packed rows, trees and generation. 9 s.

Tolerance: float32 in another order and with masked softmax; logits up to 5. Worst measured: 1.7e-6.
Losses are sums of up to 200: relative 1e-6, a rounding or two (worst measured 1.6e-7).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.components.llms.hf import HFCausal, HFConfig
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.roles import Context, Fusion, plain
from quintet.errors import CheckpointError, ConfigError
from quintet.values import Targets

TOLERANCE = 1e-5

OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 512,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "dropout": 0.0,
    "eos_token_id": None,
}
NARROW = OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}
"""As OPT-350M: projections around the blocks, norms after them, no last norm."""
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "eos_token_id": None,
}
T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "initializer_factor": 1.5,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": None,
}
FLAN = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "scale_decoder_outputs": False}
CAUSAL = {"opt": OPT, "opt, narrow": NARROW, "gpt-neox": NEOX}
SEQ2SEQ = {"t5": T5, "flan-t5": FLAN}


@pytest.fixture(params=CAUSAL, name="causal")
def _causal(request: pytest.FixtureRequest) -> HFCausal:
    torch.manual_seed(0)
    return HFCausal.Config(config=CAUSAL[request.param]).build().eval()


@pytest.fixture(params=SEQ2SEQ, name="t5")
def _t5(request: pytest.FixtureRequest) -> HFSeq2Seq:
    torch.manual_seed(0)
    return HFSeq2Seq.Config(config=SEQ2SEQ[request.param]).build().eval()


def forest(*rows: list[tuple[int, int, int, int]]) -> Context:
    """Rows of nodes (enter, exit, columns, first position)."""
    enter = torch.tensor([[e for e, _, n, _ in row for _ in range(n)] for row in rows])
    end = torch.tensor([[x for _, x, n, _ in row for _ in range(n)] for row in rows])
    positions = torch.tensor([[p + i for _, _, n, p in row for i in range(n)] for row in rows])
    return Context(enter=enter, exit=end, order=torch.arange(enter.shape[1]).expand_as(enter), positions=positions)


def paths(*rows: list[int]) -> Context:
    return forest(*([(i, i + 1, n, 0) for i, n in enumerate(row)] for row in rows))


# ---- causal ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_packed_paths_have_the_logits_of_transformers_alone(causal: HFCausal) -> None:
    tokens = torch.randint(4, 512, (2, 20))
    out = causal.head(causal(causal.embed(tokens), paths([7, 12, 1], [20])))
    for row, start, stop in ((0, 0, 7), (0, 7, 19), (0, 19, 20), (1, 0, 20)):
        alone = causal.model(tokens[row : row + 1, start:stop]).logits[0]
        torch.testing.assert_close(out[row, start:stop], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_branches_of_a_tree_have_the_logits_of_transformers_alone(causal: HFCausal) -> None:
    tokens = torch.randint(4, 512, (1, 15))
    out = causal.head(causal(causal.embed(tokens), forest([(0, 3, 6, 0), (1, 2, 4, 6), (2, 3, 5, 6)])))[0]
    for columns in ([*range(10)], [*range(6), *range(10, 15)]):
        alone = causal.model(tokens[:, columns]).logits[0]
        torch.testing.assert_close(out[columns], alone, atol=TOLERANCE, rtol=0)


def test_the_loss_is_that_of_transformers_labels(causal: HFCausal) -> None:
    tokens = torch.randint(4, 512, (2, 12))
    theirs = causal.model(tokens, labels=tokens).loss
    logits = causal.head(causal(causal.embed(tokens), paths([12], [12])))
    ours = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_widths_are_those_of_the_embeddings() -> None:
    assert HFCausal.Config(config=NARROW).dim == 16
    llm = HFCausal.Config(config=NARROW).build(vocab=600)
    assert (llm.dim, llm.depth, llm.vocab) == (16, 2, 600)
    assert llm.embed(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, 16)
    assert llm.head(torch.zeros(1, 1, 16)).shape == (1, 1, 600)


@torch.no_grad()
def test_causal_generation_in_a_batch_gives_the_tokens_of_transformers_alone(causal: HFCausal) -> None:
    prompts = [torch.randint(4, 512, (n,)) for n in (3, 8, 1)]
    expected = [theirs_greedy(causal, p) for p in prompts]
    assert greedy(causal, prompts) == expected


def theirs_greedy(llm: Any, prompt: Tensor, steps: int = 7) -> list[int]:
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    out = llm.model.generate(prompt[None], attention_mask=mask, max_new_tokens=steps, do_sample=False)
    return out[0, -steps:].tolist()


@torch.no_grad()
def greedy(llm: Any, prompts: list[Tensor], steps: int = 7) -> list[list[int]]:
    """All prompts in one batch, padded on the right by a node of its own; the second is copied as a branch pair."""
    width = max(map(len, prompts))
    ctx = paths(*([len(p), width - len(p)] for p in prompts))
    cache = llm.new_cache(len(prompts), width + steps)
    hidden = llm(llm.embed(torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)), replace(ctx, cache=cache))
    last = torch.tensor([len(p) for p in prompts])
    state, out = hidden[torch.arange(len(prompts)), last - 1], []
    for i in range(steps):
        out.append(llm.head(state).argmax(-1))
        zero = torch.zeros(len(prompts), 1, dtype=torch.long)
        new = Context(enter=zero, exit=zero + 1, order=zero + width + i, positions=last[:, None] + i, cache=cache)
        state = llm(llm.embed(out[-1][:, None]), new)[:, 0]
    return torch.stack(out, dim=1).tolist()


class Standing(Fusion):
    def around(self, index: int, block: Any, hidden: Tensor, ctx: Context) -> Tensor:
        return hidden


def test_standing_around_blocks_is_refused_and_doing_nothing_is_not(causal: HFCausal) -> None:
    embeds, ctx = causal.embed(torch.zeros(1, 3, dtype=torch.long)), paths([3])
    assert torch.equal(causal(embeds, ctx, plain), causal(embeds, ctx, Fusion().around))
    with pytest.raises(ConfigError, match="no fusion can stand around"):
        causal(embeds, ctx, Standing().around)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 3}, "model_type"),
        ({"model_type": "nothing-like-it"}, "no model_type 'nothing-like-it'"),
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}, "takes no position_ids"),
        ({"model_type": "clip"}, "it is no language model"),
        ({"model_type": "t5"}, "no causal model"),
        (
            {"model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
            | {"vocab_size": 32, "sliding_window": 8, "num_attention_heads": 4, "num_key_value_heads": 2},
            "sliding window",
        ),
    ],
)
def test_models_that_would_compute_something_else_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HFCausal.Config(config=config).build()


@torch.no_grad()
def test_a_local_folder_gives_its_weights_and_added_tokens_keep_the_rest(causal: HFCausal, tmp_path: Path) -> None:
    causal.model.save_pretrained(tmp_path)
    cfg = HFCausal.Config.from_folder(tmp_path)
    assert (cfg.dim, cfg.depth, cfg.vocab, cfg.source) == (causal.dim, 2, 512, str(tmp_path))
    assert HFConfig.from_json(cfg.to_json()) == cfg
    tokens, ctx = torch.randint(4, 512, (1, 6)), paths([6])
    for vocab in (512, 520):
        other = cfg.build(vocab=vocab).eval()
        other.load(tmp_path)
        torch.testing.assert_close(
            other.head(other(other.embed(tokens), ctx))[..., :512],
            causal.head(causal(causal.embed(tokens), ctx)),
            atol=1e-6,
            rtol=0,
        )


def test_rope_of_older_folders_gets_its_present_name(tmp_path: Path) -> None:
    old = NEOX | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    cfg = HFCausal.Config.from_folder(tmp_path)
    assert cfg.config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert HFConfig.from_json(cfg.to_json()) == cfg
    with pytest.raises(ConfigError, match="call it rope_type"):
        HFCausal.Config(config=old)


def test_folders_without_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        HFCausal.Config.from_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="never opened"):
        HFCausal.Config(config=OPT).build().load(tmp_path)


@pytest.mark.parametrize("full", [{"model_type": "opt", "hidden_size": 2560}, {"model_type": "t5"}], ids=["opt", "t5"])
def test_small_scales_keep_the_architecture(full: dict[str, Any]) -> None:
    cfg = HFConfig(config=full, source="x/y")
    assert (cfg.tiny().dim, cfg.tiny().depth, cfg.tiny().vocab) == (32, 2, 512)
    assert (cfg.starter().dim, cfg.starter().depth) == (192, 6 if full["model_type"] == "opt" else 3)
    assert cfg.tiny().source is None
    kind = HFCausal if full["model_type"] == "opt" else HFSeq2Seq
    with torch.device("meta"):
        extra = {} if kind is HFCausal else {"decoder_start_token_id": 0}
        assert kind.Config(config={**cfg.tiny().config, **extra}).build().dim == 32


# ---- encoder–decoder ---------------------------------------------------------------------------------------------
def learnt(spans: list[tuple[list[int], Tensor]]) -> Targets:
    """From these flat columns predict these tokens; every span is a node."""
    slots = torch.tensor([s for columns, _ in spans for s in columns])
    node = torch.tensor([i for i, (columns, _) in enumerate(spans) for _ in columns])
    return Targets(slots, torch.cat([ids for _, ids in spans]), torch.ones(len(slots)), node)


def test_packed_answers_have_the_loss_of_transformers_labels_alone(t5: HFSeq2Seq) -> None:
    """Prompts of 5 and 3 with answers of 4 and 2 in one row, and 6 with 1 in another, padded."""
    tokens = torch.randint(4, 512, (2, 14))
    spans = [(0, 0, 5, 9), (0, 9, 12, 14), (1, 0, 6, 7)]
    targets = learnt([([*range(r * 14 + b - 1, r * 14 + c - 1)], tokens[r, b:c]) for r, _, b, c in spans])
    ctx = replace(paths([9, 5], [7, 7]), targets=targets)
    hidden = t5(t5.embed(tokens), ctx)
    logits = t5.head(hidden.flatten(0, 1)[targets.slots])
    ours = F.cross_entropy(logits, targets.ids, reduction="none").split([4, 2, 1])
    for mine, (row, start, begin, stop) in zip(ours, spans, strict=True):
        prompt, answer = tokens[row : row + 1, start:begin], tokens[row : row + 1, begin:stop]
        torch.testing.assert_close(mine.mean(), t5.model(prompt, labels=answer).loss, atol=0, rtol=1e-6)
    untouched = torch.ones(28, dtype=torch.bool).index_fill(0, targets.slots, value=False)
    assert bool((hidden.flatten(0, 1)[untouched] == 0).all())


def test_answers_in_branches_have_loss_and_gradients_of_transformers_labels_alone(t5: HFSeq2Seq) -> None:
    """A prompt of 5 and two answers to it (columns 5 to 7 and 8 to 9): column 4 predicts the first token of each."""
    tokens = torch.randint(4, 512, (1, 10))
    targets = learnt([([4, 5, 6], tokens[0, 5:8]), ([4, 8], tokens[0, 8:10])])
    ctx = replace(forest([(0, 3, 5, 0), (1, 2, 3, 5), (2, 3, 2, 5)]), targets=targets)
    logits = t5.head(t5(t5.embed(tokens), ctx).flatten(0, 1)[targets.slots])
    ours = F.cross_entropy(logits, targets.ids, reduction="sum")
    theirs = sum(t5.model(tokens[:, :5], labels=tokens[:, a:b]).loss * (b - a) for a, b in ((5, 8), (8, 10)))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-6)
    names = [name for name, _ in t5.named_parameters()]
    mine = torch.autograd.grad(ours, t5.parameters())
    others = torch.autograd.grad(theirs, t5.parameters())
    for name, a, b in zip(names, mine, others, strict=True):
        worst = (a - b).abs().max() / b.abs().max().clamp(min=1e-6)
        assert worst < 1e-4, f"{name}: {worst}"


def test_a_second_answer_reads_the_first_turn_with_its_encoder(t5: HFSeq2Seq) -> None:
    """Two turns in one node: columns 4 to 5 answer 0 to 3, columns 9 to 10 answer 0 to 8; another row has one turn."""
    tokens = torch.randint(4, 512, (2, 12))
    in_one_node = [[3, 4, 8, 9], [16, 17]]
    targets = learnt([(slots, tokens.flatten()[[s + 1 for s in slots]]) for slots in in_one_node])
    hidden = t5(t5.embed(tokens), replace(paths([11, 1], [12]), targets=targets))
    logits = t5.head(hidden.flatten(0, 1)[targets.slots])
    ours = F.cross_entropy(logits, targets.ids, reduction="none").split(2)
    for mine, (row, begin, stop) in zip(ours, ((0, 4, 6), (0, 9, 11), (1, 5, 7)), strict=True):
        prompt, answer = tokens[row : row + 1, :begin], tokens[row : row + 1, begin:stop]
        torch.testing.assert_close(mine.mean(), t5.model(prompt, labels=answer).loss, atol=0, rtol=1e-6)


def test_a_branch_that_begins_with_its_answer_may_answer_again(t5: HFSeq2Seq) -> None:
    """A root of 5; the branch answers in columns 5 and 6, from column 4 on, asks in 7 and 8, answers in 9."""
    tokens = torch.randint(4, 512, (1, 12))
    targets = learnt([([4, 5, 8], tokens[0, [5, 6, 9]]), ([4, 10], tokens[0, 10:12])])
    ctx = replace(forest([(0, 3, 5, 0), (1, 2, 5, 5), (2, 3, 2, 5)]), targets=targets)
    logits = t5.head(t5(t5.embed(tokens), ctx).flatten(0, 1)[targets.slots])
    ours = F.cross_entropy(logits, targets.ids, reduction="none").split([2, 1, 2])
    for mine, prompt, answer in zip(ours, (range(5), range(9), range(5)), ((5, 6), (9,), (10, 11)), strict=True):
        theirs = t5.model(tokens[:, list(prompt)], labels=tokens[:, list(answer)]).loss
        torch.testing.assert_close(mine.mean(), theirs, atol=0, rtol=1e-6)


def test_a_row_with_nothing_to_learn_still_runs_every_layer(t5: HFSeq2Seq) -> None:
    tokens = torch.randint(4, 512, (1, 6))
    none = Targets(*(torch.zeros(0, dtype=torch.long) for _ in range(4)))
    hidden = t5(t5.embed(tokens), replace(paths([6]), targets=none))
    assert bool((hidden == 0).all())
    hidden.sum().backward()
    assert all(p.grad is not None for n, p in t5.named_parameters() if "lm_head" not in n)


def test_an_encoder_decoder_needs_to_know_where_answers_begin(t5: HFSeq2Seq) -> None:
    with pytest.raises(ConfigError, match=r"give ctx\.targets, or a cache"):
        t5(t5.embed(torch.zeros(1, 3, dtype=torch.long)), paths([3]))


@torch.no_grad()
def test_encoder_decoder_generation_in_a_batch_gives_the_tokens_of_transformers_alone(t5: HFSeq2Seq) -> None:
    prompts = [torch.randint(4, 512, (n,)) for n in (3, 8, 1)]
    assert greedy(t5, prompts) == [theirs_greedy(t5, p) for p in prompts]


@torch.no_grad()
def test_branches_and_packed_prompts_generate_side_by_side_as_if_alone(t5: HFSeq2Seq) -> None:
    """A root of 4 with questions of 3 and 2 below it, then a prompt of 5: three answers, three columns a step."""
    tokens = torch.randint(4, 512, (1, 14))
    paths_of = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8], [9, 10, 11, 12, 13])
    ctx = forest([(0, 3, 4, 0), (1, 2, 3, 4), (2, 3, 2, 4), (3, 4, 5, 0)])
    cache = t5.new_cache(1, 14 + 3 * 5)
    state = t5(t5.embed(tokens), replace(ctx, cache=cache))[:, [6, 8, 13]]
    out = []
    for i in range(5):
        out.append(t5.head(state).argmax(-1))
        node = torch.tensor([[1, 2, 3]])
        order = torch.full((1, 3), 14 + i)
        new = Context(enter=node, exit=node + 1, order=order, positions=order, cache=cache)
        state = t5(t5.embed(out[-1]), new)
    answers = torch.cat(out).T.tolist()
    assert answers == [theirs_greedy(t5, tokens[0, columns], steps=5) for columns in paths_of]


@torch.no_grad()
def test_a_finished_row_rests_in_a_node_of_its_own(t5: HFSeq2Seq) -> None:
    cache = t5.new_cache(1, 8)
    t5(t5.embed(torch.randint(4, 512, (1, 4))), replace(paths([4]), cache=cache))
    nobody = torch.full((1, 1), 9)
    hidden = t5(t5.embed(nobody), Context(enter=nobody, exit=nobody + 1, order=nobody, positions=nobody, cache=cache))
    assert bool((hidden == 0).all())


def test_other_encoder_decoders_are_refused() -> None:
    with pytest.raises(ConfigError, match="'bart' is no encoder–decoder we know"):
        HFSeq2Seq.Config(config={"model_type": "bart"}).build()
