"""The Q-Former: learned queries that look at a picture, and at an instruction, through BERT's layers.

    queries (+ words) ─► [self-attention ─► cross-attention to the picture (queries only) ─► feed-forward] × depth
                                                                              queries only ─► linear ─► LLM

BLIP-2 (Li et al. 2023, arXiv:2301.12597, section 3): 32 queries of width 768, BERT-base's twelve layers and
cross-attention in every second. InstructBLIP (Dai et al. 2023, arXiv:2305.06500, section 3.3) lets the queries also see
the words of the instruction, so that other words take other features from the same picture. tests/unit/test_qformer.py
compares with transformers' `Blip2QFormerModel` and `InstructBlipQFormerModel`; dropout, 0.1 there, is left out.

With `captions` it is the Q-Former of BLIP-2's first stage (section 3.2): it reads whole captions beside the picture, by
the same self-attention, and three masks say who sees whom (`sight`). What only captions need is a part of its own,
`Captions`, which the second stage leaves behind.

Two things differ from the released InstructBLIP. The words are the LLM's own tokens with an embedding of the Q-Former's
(released: BERT's tokens, which `words` gives): a sample has one spelling, and what is read is exactly what the LLM
reads. And the feed-forward of the last layer's words is not built: nothing reads it, so nothing trains it.

Letters: N items, Q queries, L words, S picture features, D width, P width of the space that ITC compares in, V words.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.connectors.bert import BertFeedForward, BertLayer, embed, initialise
from quintet.components.roles import ConnectorConfig, Prompts
from quintet.components.unused import parameters_to_buffers
from quintet.config.base import Config
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Captions", "QFormer", "Queries", "Sight", "sight"]

Sight = Literal["apart", "together", "causal"]
"""The masks of BLIP-2's figure 2: uni-modal (ITC), bi-directional (ITM), multi-modal causal (ITG)."""


def sight(kind: Sight, queries: int, there: Tensor) -> Tensor:
    """Who sees whom among queries, then words: bool[N, 1, Q + L, Q + L], true where it may.

    apart      queries see queries, words see words
    together   everybody sees everybody
    causal     queries see queries; a word sees the queries, itself and the words before it

    `there` bool[N, L] is false at padding, which nobody sees.
    """
    count = queries + there.shape[1]
    at = torch.arange(count, device=there.device)
    word = at >= queries
    if kind == "together":
        seen = torch.ones(count, count, dtype=torch.bool, device=there.device)
    elif kind == "apart":
        seen = word[:, None] == word
    else:
        seen = ~word | (word[:, None] & (at <= at[:, None]))
    return seen & F.pad(there, (queries, 0), value=True)[:, None, None]


class Captions(nn.Module):
    """What a Q-Former needs to read captions: words, their feed-forwards, and the heads of ITC, ITM and ITG.

    The row behind the vocabulary is [DEC], which takes the place of a caption's first token where it is written. The
    head that writes is BERT's, its last matrix the table of words. The temperature is kept as its logarithm: at any
    rate it stays positive (LAVIS trains it as it is).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        """Sizes. The defaults are BLIP-2's, whose words are BERT's."""

        source: str = "google-bert/bert-base-uncased"
        """Whose tokenizer spells captions; empty is the LLM's."""
        vocab: int = 30_522
        """Tokens of that tokenizer; 0 is as many as the LLM has."""
        dim: int = 256
        """Width of the space in which pictures and captions are compared."""
        temperature: float = 0.07
        """At the beginning; it is learnt."""

        def small(self, dim: int) -> "Captions.Config":
            """The same with the LLM's tokens."""
            return replace(self, source="", vocab=0, dim=dim)

    def __init__(self, config: "Captions.Config", qformer: "QFormer.Config", *, vocab: int) -> None:
        super().__init__()
        dim = qformer.dim
        self.dec = config.vocab or vocab
        """The id of [DEC]."""
        self.words, self.positions = nn.Embedding(self.dec + 1, dim), nn.Embedding(qformer.positions, dim)
        self.ffn = nn.ModuleList(BertFeedForward(qformer) for _ in range(qformer.depth))
        self.itc_picture, self.itc_caption = nn.Linear(dim, config.dim), nn.Linear(dim, config.dim)
        self.itm = nn.Linear(dim, 2)
        self.itg, self.itg_norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=qformer.eps)
        initialise(self, dim=dim)
        self.itg_bias = nn.Parameter(torch.zeros(self.dec + 1))
        self.log_temperature = nn.Parameter(torch.full((1,), config.temperature).log())

    def embed(self, ids: Tensor) -> Tensor:
        """Words int64[N, L] → float[N, L, D], not yet normalised."""
        return embed(ids, self.words, self.positions, what="a caption")

    def logits(self, states: Tensor) -> Tensor:
        """Of the next word, from the states float[…, D] of words: float[…, V]."""
        return F.linear(self.itg_norm(F.gelu(self.itg(states))), self.words.weight, self.itg_bias)


class QFormer(nn.Module):
    """A few queries an item, and one linear layer to the LLM's width."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes of a Q-Former. The defaults are BLIP-2's."""

        queries: int = 32
        dim: int = 768
        depth: int = 12
        heads: int = 12
        ffn: int = 3072
        cross_every: int = 2
        """Cross-attention is in the layers 0, `cross_every`, 2 · `cross_every`, …"""
        norm: bool = True
        """LayerNorm on the encoder's features first: BLIP-2's `ln_vision`, which trains while the encoder is frozen."""
        norm_eps: float = 1e-6
        """Of that norm. LAVIS has torch's 1e-5, transformers the encoder's 1e-6."""
        eps: float = 1e-12
        reads: bool = False
        """Whether the queries also see the instruction (InstructBLIP)."""
        words: int | None = None
        """Tokens of a tokenizer of its own (`Tokenizer.reader`; the released InstructBLIP: BERT's); None: the LLM's."""
        positions: int = 512
        """The longest instruction or caption, in tokens."""
        captions: Captions.Config | None = None
        """What reads captions in the first stage; None is a Q-Former of later stages alone."""
        source: str | None = None
        """A folder or a hub name of BERT, BLIP-2 or InstructBLIP, as which it begins (`model.qformer_source`)."""
        source_project: bool = False
        """Whether its projection begins as the source's too: the LLM is then the source's."""
        keep_unused: bool = False
        """Whether the feed-forward of the last layer's words is kept, as buffers, for a lossless export."""

        def __post_init__(self) -> None:
            if self.dim % self.heads:
                raise ConfigError(f"width {self.dim} does not divide into {self.heads} heads")
            if min(self.queries, self.depth, self.cross_every, self.positions) < 1:
                raise ConfigError("queries, depth, cross_every and positions must be at least 1")

        @property
        def sees_prompt(self) -> bool:
            return self.reads

        @property
        def has_words(self) -> bool:
            return self.reads or self.captions is not None

        @property
        def own_words(self) -> bool:
            return self.reads and self.words is not None

        @property
        def matches(self) -> bool:
            return self.captions is not None

        @property
        def words_source(self) -> str:
            return self.captions.source if self.captions else ""

        def starter(self) -> "QFormer.Config":
            return self._small(queries=16, dim=192, depth=3, heads=6, ffn=768, shared=64)

        def tiny(self) -> "QFormer.Config":
            return self._small(queries=4, dim=32, depth=2, heads=4, ffn=64, shared=16)

        def _small(self, *, queries: int, shared: int, **sizes: int) -> "QFormer.Config":
            captions = self.captions and self.captions.small(shared)
            queries = min(self.queries, queries)
            plain = replace(self, source=None, source_project=False, words=None, keep_unused=False)
            return replace(plain, queries=queries, captions=captions, **sizes)

        def layout(self, layout: Layout) -> Layout:
            return Layout((self.queries,))

        def build(self, *, d_in: int, d_out: int, vocab: int = 0) -> "QFormer":
            return QFormer(self, d_in=d_in, d_out=d_out, vocab=vocab)

    def __init__(self, config: "QFormer.Config", *, d_in: int, d_out: int, vocab: int = 0) -> None:
        super().__init__()
        self.config = config
        self.sees_prompt = config.reads
        self.qformer = Queries(config, d_in=d_in, vocab=(config.words or vocab) if config.reads else 0)
        self.captions = Captions(config.captions, config, vocab=vocab) if config.captions else None
        # Without an LLM there is nothing to project to: such a model compares pictures and captions and no more.
        self.project = nn.Linear(config.dim, d_out) if d_out else None

    def forward(self, features: Features, prompts: Prompts = ()) -> Features:
        """The queries' states of every item. `prompts` int64[L], one an item, if it reads the instruction."""
        if self.project is None:
            raise ConfigError("this Q-Former has no LLM behind it; it only compares pictures with captions")
        if not features.layouts:
            return Features(self.project(features.values.new_empty(0, self.config.dim)), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in features.groups():
            for chosen, ids in self._words(items, prompts):
                states = self.qformer(values[chosen], ids)[:, : self.config.queries]
                pieces.append((self.config.layout(layout), [items[n] for n in chosen], self.project(states)))
        return Features.join(pieces)

    def parts(self) -> dict[str, nn.Module]:
        """What may train apart: MiniGPT-4 trains `project` alone."""
        parts = {"qformer": self.qformer, "captions": self.captions, "project": self.project}
        return {name: part for name, part in parts.items() if part is not None}

    @torch.no_grad()
    def begin(self, llm: Any) -> None:
        """Words that are the LLM's tokens begin as the LLM's, at BERT's scale, where widths agree."""
        if self.config.source or self.config.own_words or self.config.words_source:
            return  # BLIP-2's words are BERT's
        known = llm.tables()[0] if self.config.has_words else torch.empty(0, 0)
        for part in (self.captions, self.qformer):
            words = part.words if part is not None else None
            if words is not None and words.embedding_dim == known.shape[1]:
                rows = min(len(known), words.num_embeddings)
                centred = known[:rows] - known[:rows].mean(0)
                words.weight[:rows] = centred / centred.std() * 0.02

    # ---- captions (BLIP-2's first stage) -------------------------------------------------------------------------
    def read(self, pictures: Tensor, ids: Tensor, there: Tensor, kind: Sight) -> tuple[Tensor, Tensor]:
        """Queries and words through the same layers: float[N, S, E], int64[N, L] → float[N, Q, D], float[N, L, D]."""
        queries = self.config.queries
        states = self.qformer(pictures, ids, sight(kind, queries, there), captions=self.captions)
        return states[:, :queries], states[:, queries:]

    def compared(self, asked: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The last states of queries and words where ITC compares them, of length 1: float[N, Q, P], float[N, P]."""
        heads = self._heads()
        return F.normalize(heads.itc_picture(asked), dim=-1), F.normalize(heads.itc_caption(words[:, 0]), dim=-1)

    def pictures(self, pictures: Tensor) -> Tensor:
        """Pictures alone, as ITC compares them: float[N, S, E] → float[N, Q, P]."""
        return F.normalize(self._heads().itc_picture(self.qformer(pictures)), dim=-1)

    def sentences(self, ids: Tensor, there: Tensor) -> Tensor:
        """Captions alone, as ITC compares them: int64[N, L] → float[N, P]."""
        words = self.qformer(None, ids, there[:, None, None], queries=False, captions=self.captions)
        return F.normalize(self._heads().itc_caption(words[:, 0]), dim=-1)

    def match(self, pictures: Tensor, ids: Tensor, there: Tensor) -> Tensor:
        """Whether caption n is of picture n, as logits of (no, yes): the mean over the queries, float[N, 2]."""
        asked, _ = self.read(pictures, ids, there, "together")
        return self._heads().itm(asked).mean(1)

    def write(self, pictures: Tensor, ids: Tensor, there: Tensor) -> Tensor:
        """Logits of the word behind each word of a caption whose first token is [DEC]: float[N, L, V]."""
        heads = self._heads()
        ids = torch.cat([torch.full_like(ids[:, :1], heads.dec), ids[:, 1:]], 1)
        return heads.logits(self.read(pictures, ids, there, "causal")[1])

    def _heads(self) -> Captions:
        if self.captions is None:
            raise ConfigError("this Q-Former reads no captions; give its Config `captions`")
        return self.captions

    def _words(self, items: list[int], prompts: Prompts) -> Iterator[tuple[list[int], Tensor | None]]:
        """Which of the items run together, and their words int64[n, L].

        Instructions of one length do: without padding, what an item gives does not depend on its neighbours by a bit.
        """
        by_length: dict[int, list[int]] = {}
        for n, item in enumerate(items):
            by_length.setdefault(len(prompts[item]) if self.sees_prompt else 0, []).append(n)
        for length, chosen in by_length.items():
            yield chosen, torch.stack([prompts[items[n]] for n in chosen]) if length else None


class Queries(nn.Module):
    """Queries, words and layers. What is not wanted of the last layer is not there: no weight without a gradient."""

    def __init__(self, config: "QFormer.Config", *, d_in: int, vocab: int, last_words: bool = False) -> None:
        super().__init__()
        self.config = config
        self.norm_picture = nn.LayerNorm(d_in, eps=config.norm_eps) if config.norm else nn.Identity()
        self.queries = nn.Parameter(torch.randn(config.queries, config.dim) * 0.02)
        if vocab:
            self.words: nn.Embedding | None = nn.Embedding(vocab, config.dim)
            self.positions: nn.Embedding | None = nn.Embedding(config.positions, config.dim)
        else:
            self.words = self.positions = None
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        last = config.depth - 1
        self.layers = nn.ModuleList(
            BertLayer(
                config, d_in=d_in, cross=i % config.cross_every == 0, words=bool(vocab) and (i < last or last_words)
            )
            for i in range(config.depth)
        )
        if config.keep_unused and vocab and not last_words:
            self.unused = BertFeedForward(config)
            parameters_to_buffers(self.unused)
        initialise(self, dim=config.dim)

    def embed(self, ids: Tensor) -> Tensor:
        """Words int64[N, L] → float[N, L, D], not yet normalised.

        Raises:
            ConfigError: more words than there are positions.
        """
        assert self.words is not None, "this Q-Former has no words"
        assert self.positions is not None
        return embed(ids, self.words, self.positions, what="an instruction")

    def forward(
        self,
        picture: Tensor | None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        queries: bool = True,
        captions: Captions | None = None,
    ) -> Tensor:
        """float[N, S, E] and words int64[N, L] → the last layer's states, queries first: float[N, Q + L, D].

        `mask` bool[N, 1, T or 1, T] over queries and words says who sees whom; None is everybody. With `captions` the
        words are its words, with its feed-forwards.
        """
        pieces: list[Tensor] = []
        if queries:
            assert picture is not None, "queries need a picture"
            pieces.append(self.queries.expand(len(picture), -1, -1))
            picture = self.norm_picture(picture)
        if ids is not None:
            pieces.append(self.embed(ids) if captions is None else captions.embed(ids))
        hidden = self.norm(torch.cat(pieces, 1))
        asked = self.config.queries if queries else 0
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, picture, asked, mask, None if captions is None else captions.ffn[i])
        return hidden
