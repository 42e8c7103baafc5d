"""Encoder–decoders of transformers (T5, Flan-T5) as an LLM of ours.

    row:      prompt … last prompt column │ answer₀ answer₁ … end
    encoder:  ────────────────────────────┘ (looks both ways)
    decoder:  start answer₀ answer₁ …  →  states written back at the columns that predict answer₀, answer₁ …

An answer's encoder reads the columns that its first predicting column may look at, by the rule of
`quintet.values.visible`; its decoder reads the columns that predict it, the first replaced by the start token.
Packing, padding and trees therefore change nothing, and objectives and `head` are those of every other LLM.

A second answer's encoder reads the first turn, its answer included, as part of what was said: exactly what generation
does with a conversation, at the cost of encoding it once an answer. An answer is a run of targets; where words in the
middle of one are not learnt, what comes after them is an answer of its own.

Source: Raffel et al. 2020, arXiv:1910.10683; Chung et al. 2022, arXiv:2210.11416.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quintet.components.llms.cache import Columns
from quintet.components.llms.hf import HFConfig, pretrained, refuse_around, token_tables
from quintet.components.roles import Around, Context, plain
from quintet.errors import ConfigError
from quintet.values import Targets

__all__ = ["HFSeq2Seq"]

_KNOWN = ("t5", "mt5")
"""Model types whose logits are output_layer(hidden × scale) and whose start token is `decoder_start_token_id`."""


class HFSeq2Seq(nn.Module):
    """Tokens → hidden states at the columns that predict an answer; zeros everywhere else."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HFConfig):
        """See `HFConfig`."""

        def build(self, *, vocab: int | None = None) -> "HFSeq2Seq":
            """The module with random weights; `vocab` replaces the published vocabulary when tokens are added."""
            return HFSeq2Seq(self if vocab is None else replace(self, config={**self.config, "vocab_size": vocab}))

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        from transformers import AutoModelForSeq2SeqLM

        self.cfg = cfg
        self.dim, self.depth, self.vocab = cfg.dim, cfg.depth, cfg.vocab
        config = cfg.transformers()
        if config.model_type not in _KNOWN:
            raise ConfigError(f"{config.model_type!r} is no encoder–decoder we know ({', '.join(_KNOWN)})")
        if config.decoder_start_token_id is None:
            raise ConfigError("the config has no decoder_start_token_id; T5's is its padding token, 0")
        self.model: Any = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.get_default_dtype())
        if cfg.config.get("tie_word_embeddings") is False:
            # transformers 5 ties them whatever the config says, until it reads a file in which they differ. The new
            # head begins as t5x's `logits_dense` does: T5's embedding is drawn too large for logits without a scale.
            self.model.lm_head.weight = nn.Parameter(torch.randn_like(self.model.lm_head.weight) * self.dim**-0.5)

    def load(self, folder: Path) -> None:
        """Takes the weights of a local folder (safetensors only); added tokens keep their mean initial rows."""
        from transformers import AutoModelForSeq2SeqLM

        self.model = pretrained(AutoModelForSeq2SeqLM, folder, vocab=self.vocab, like=self.model)

    def embed(self, tokens: Tensor) -> Tensor:
        """int64[B, T] → float[B, T, D]."""
        return self.model.get_input_embeddings()(tokens)

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        """Decoder states at the columns of `ctx.targets`, or, with `ctx.cache`, at those that predict what is next.

        Raises:
            ConfigError: a fusion that stands around blocks, or neither targets nor a cache.
        """
        refuse_around(around, "HFSeq2Seq")
        if ctx.cache is not None:
            return self._start(embeds, ctx) if ctx.cache.length == 0 else self._continue(embeds, ctx)
        if ctx.targets is None:
            raise ConfigError("an encoder–decoder must know where answers begin: give ctx.targets, or a cache")
        answers = _answers(ctx.targets, ctx.enter)
        # With nothing to learn the modules run all the same, or sharded training would wait for this rank.
        slots = answers or [torch.zeros(1, dtype=torch.long, device=embeds.device)]
        first = torch.stack([s[0] for s in slots])
        seen = _seen_from(ctx, first)
        index = nn.utils.rnn.pad_sequence(slots, batch_first=True)
        states = self._states(embeds.flatten(0, 1)[index[:, 1:]], *self._memory(embeds, seen, first))
        real = torch.arange(index.shape[1], device=index.device) < torch.tensor(
            [len(s) for s in slots], device=index.device
        ).unsqueeze(1)
        # Branches share the column that predicts their first token, and there their states are equal: write one.
        flat = index[real]
        keep = _first_of_each(flat)
        if not answers:
            return torch.zeros_like(embeds) + 0.0 * states.sum()
        return _write(states[real][keep], flat[keep], like=embeds)

    def head(self, hidden: Tensor) -> Tensor:
        """float[…, D] → logits float[…, V]."""
        if self.model.config.scale_decoder_outputs:
            hidden = hidden * self.dim**-0.5
        return self.model.lm_head(hidden)

    def tables(self) -> tuple[Tensor, ...]:
        """The embedding's weight, and the head's unless it is tied: float[V, D] each."""
        return token_tables(self.model)

    def new_cache(self, rows: int, columns: int) -> "Seq2SeqCache":
        """An empty cache with room for the prompt's columns and those to be generated."""
        return Seq2SeqCache(rows, columns, device=self.model.device)

    def _start(self, embeds: Tensor, ctx: Context) -> Tensor:
        """Reads prompts: one memory for every column that nothing later sees, and the state after the start token."""
        cache: Seq2SeqCache = ctx.cache
        cache.extend(ctx)
        columns = embeds.shape[1]
        everything = torch.arange(embeds.shape[0] * columns, device=embeds.device)
        seen = _seen_from(ctx, everything).view(-1, columns, columns)
        ends = (~seen.tril(-1).any(dim=1)).flatten().nonzero().flatten()
        cache.prompt, cache.ends = columns, ends
        cache.memory, cache.memory_mask = self._memory(embeds, _seen_from(ctx, ends), ends)
        cache.answers = embeds[:, :0]
        states = self._states(embeds.new_empty(len(ends), 0, self.dim), cache.memory, cache.memory_mask)
        return _write(states[:, 0], ends, like=embeds)

    def _continue(self, embeds: Tensor, ctx: Context) -> Tensor:
        """One more column for every running answer; the decoder reads each answer again from its start."""
        cache: Seq2SeqCache = ctx.cache
        span = cache.extend(ctx)
        cache.answers = torch.cat((cache.answers, embeds), dim=1)
        rows, new = ctx.enter.shape
        held = replace(
            ctx, enter=cache.enter[:, : span.stop], exit=cache.exit[:, : span.stop], order=cache.order[:, : span.stop]
        )
        queries = torch.arange(rows, device=embeds.device)[:, None] * span.stop + torch.arange(
            span.start, span.stop, device=embeds.device
        )
        seen = _seen_from(held, queries.flatten())
        of_row = torch.arange(rows, device=embeds.device).repeat_interleave(new)
        # A path has one end of a prompt: a column before it on the path is seen by it, so it is no end.
        row_of_end, column_of_end = cache.ends // cache.prompt, cache.ends % cache.prompt
        on_path = (of_row[:, None] == row_of_end) & seen[:, column_of_end]
        live = on_path.any(dim=1)
        if not bool(live.any()):
            return torch.zeros_like(embeds)
        which = on_path.int().argmax(dim=1)[live]
        read, mask = _gather(cache.answers, seen[live, cache.prompt :], of_row[live])
        states = self._states(read, cache.memory[which], cache.memory_mask[which])
        last = states[torch.arange(len(which), device=embeds.device), mask.sum(dim=1)]
        return _write(last, live.nonzero().flatten(), like=embeds)

    def _memory(self, embeds: Tensor, seen: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states float[N, S, D] and mask bool[N, S] of the columns `seen` bool[N, T] by each end."""
        inputs, mask = _gather(embeds, seen, ends // embeds.shape[1])
        return self.model.encoder(inputs_embeds=inputs, attention_mask=mask.long()).last_hidden_state, mask

    def _states(self, answers: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Decoder states float[N, 1 + L, D] after the start token and `answers` float[N, L, D]."""
        start = torch.full((len(memory), 1), self.model.config.decoder_start_token_id, device=memory.device)
        inputs = torch.cat((self.embed(start).to(answers.dtype), answers), dim=1)
        out = self.model.decoder(
            inputs_embeds=inputs,
            encoder_hidden_states=memory,
            encoder_attention_mask=memory_mask.long(),
            use_cache=False,
        )
        return out.last_hidden_state


class Seq2SeqCache(Columns):
    """What was encoded, and the embeddings of the answers so far.

    `ends` int64[N] are the flat prompt columns that end a prompt, `memory` float[N, S, D] what was encoded for them.
    """

    prompt: int
    ends: Tensor
    memory: Tensor
    memory_mask: Tensor
    answers: Tensor


def _seen_from(ctx: Context, flat: Tensor) -> Tensor:
    """bool[N, T]: the columns of its row that the flat column may look at."""
    columns = ctx.enter.shape[1]
    row, column = flat // columns, flat % columns
    enter, order = ctx.enter[row, column][:, None], ctx.order[row, column][:, None]
    return (ctx.enter[row] <= enter) & (enter < ctx.exit[row]) & (ctx.order[row] <= order)


def _gather(values: Tensor, seen: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The seen columns of `values` float[B, T, D], pushed to the left: float[N, S, D] and bool[N, S]."""
    count = seen.sum(dim=1)
    width = int(count.max())
    index = (~seen).int().argsort(dim=1, stable=True)[:, :width]
    return values[rows[:, None], index], torch.arange(width, device=seen.device) < count[:, None]


def _write(states: Tensor, slots: Tensor, *, like: Tensor) -> Tensor:
    """Zeros like `like` float[B, T, D] with `states` float[P, D] at flat `slots`."""
    flat = torch.zeros_like(like, dtype=states.dtype).flatten(0, 1)
    return flat.index_copy(0, slots, states).view(like.shape)


def _first_of_each(values: Tensor) -> Tensor:
    """Indices of the first occurrence of every value, in order."""
    order = values.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = values[order][1:] != values[order][:-1]
    return order[first].sort().values


def _answers(targets: Targets, enter: Tensor) -> list[Tensor]:
    """The slots of every answer: targets of one node, in a run. `enter` int64[B, T].

    The first slot of a branch may be its parent's last column; the run then goes on in the branch's first.
    """
    order = targets.node.argsort(stable=True)
    slots, node, held = targets.slots[order], targets.node[order], enter.flatten()
    if not len(slots):
        return []
    before, after = slots[:-1], slots[1:]
    enters = (held[after] != held[after - 1]) & (held[after] != held[before])
    joined = (node[1:] == node[:-1]) & ((after == before + 1) | enters)
    return list(slots.tensor_split(((~joined).nonzero().flatten() + 1).tolist()))
