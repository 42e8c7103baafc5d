"""The composition: encoders → connectors → fusion → LLM, one forward for every family.

    embeds   = llm.embed(tokens)
    features = connector(encoder(media))          per modality
    embeds   = fusion.inputs(embeds, features)    token level
    memory   = fusion.memory(features)            feature level; kept with the cache
    hidden   = llm(embeds, around=fusion.around)  … each block, with fusion.view(memory)

The model never sees text or pictures as files; it gets a `Batch`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quintet.components import lora
from quintet.components.experts.expert import ExpertConfig
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.fused import log_probs
from quintet.components.roles import (
    ConnectorConfig,
    Context,
    EncoderConfig,
    Fusion,
    FusionConfig,
    ImageSpec,
    LLMConfig,
    RegionConfig,
    plain,
)
from quintet.components.token_rows import TokenRows
from quintet.config.base import Config
from quintet.errors import ConfigError, DataError, nearest
from quintet.model import modes
from quintet.sizes import rounded
from quintet.values import Batch, Features, Layout, Region, Spots, Targets

__all__ = ["MLLM", "Output"]

Made = dict[str, Features] | None
"""Features by modality that were made before."""

LOGIT_BYTES = 256 * 2**20
"""Logits of this many bytes are made at once, the rest chunk by chunk and again in the backward pass."""


@dataclass(frozen=True)
class Output:
    """What a forward gives: `hidden` float[B, T, D] after the LLM's last norm, or float[P, D] of the slots `read`."""

    hidden: Tensor
    read: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What the fusion tells the objective, by name: scalars, each a mean over the batch (a router's balance)."""


class MLLM(nn.Module):
    """One LLM, one fusion, and per modality an encoder and a connector."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        """A composition as data."""

        encoders: Mapping[str, EncoderConfig] = field(default_factory=dict)
        """Modality → encoder."""
        connectors: Mapping[str, ConnectorConfig] = field(default_factory=dict)
        """Modality → connector; the same keys."""
        experts: Mapping[str, Mapping[str, ExpertConfig]] = field(default_factory=dict)
        """Modality → experts by the name that stands before what each writes, in the order of their lines."""
        regions: RegionConfig | None = None
        """What makes a feature of a region in a picture, for templates with a `pointer`."""
        fusion: FusionConfig = field(default_factory=TokenFusion.Config)
        llm: LLMConfig
        score: bool = False
        """Whether a linear head reads one number off a hidden state: a reward, or a value."""

        def __post_init__(self) -> None:
            if set(self.encoders) != set(self.connectors):
                raise ConfigError(
                    f"encoders are for {sorted(self.encoders)}, connectors for {sorted(self.connectors)}; "
                    "each modality needs both"
                )
            if both := self.encoders.keys() & self.experts.keys():
                raise ConfigError(f"{sorted(both)} has encoders and experts; features or words stand for it, not both")
            if self.regions and (self.spec("image").fit not in ("squash", "native")):
                raise ConfigError(
                    f"regions are shares of the picture, and its fit is {self.spec('image').fit!r}; use 'squash'"
                )

        @property
        def kinds(self) -> tuple[str, ...]:
            """The modalities that it takes, as features or in words."""
            return (*self.encoders, *self.experts)

        def spec(self, kind: str) -> ImageSpec:
            """How media of this kind are prepared."""
            return self._encoder(kind).spec

        def layout(self, kind: str, size: tuple[int, ...]) -> Layout:
            """The features of an item of this size as they reach the LLM: pure arithmetic, no weights."""
            encoded = self._encoder(kind).layout(size)
            return self.connectors[kind].layout(encoded)

        def columns(self, kind: str, size: tuple[int, ...]) -> int:
            """Columns of text that an item of this size takes."""
            return self.fusion.columns(self.layout(kind, size).count)

        @property
        def matcher(self) -> str:
            """The modality whose connector says how well a caption fits (BLIP-2's first stage); empty if none does."""
            return next((kind for kind, connector in self.connectors.items() if connector.matches), "")

        def _encoder(self, kind: str) -> EncoderConfig:
            if kind not in self.encoders:
                raise ConfigError(f"this model takes no {kind}{nearest(kind, self.encoders)}")
            return self.encoders[kind]

        def build(self, *, vocab: int | None = None, added: Sequence[int] = ()) -> "MLLM":
            """The model, with random weights. Under `torch.device("meta")` it takes no memory.

            `vocab` is the rows of the embedding, by default the published ones; `added` are the ids among them of the
            tokens that templates add.
            """
            return MLLM(self, vocab=vocab, added=added)

    tokens: TokenRows | None
    score: nn.Linear | None

    def __init__(self, config: Config, *, vocab: int | None = None, added: Sequence[int] = ()) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict({k: e.build() for k, e in config.encoders.items()})
        self.llm: Any = config.llm.build(vocab=vocab)
        d_out = config.fusion.d_features(config.llm.dim)
        self.connectors = nn.ModuleDict(
            {
                k: _connector(c, d_in=config.encoders[k].dim, d_out=d_out, vocab=self.llm.vocab)
                for k, c in config.connectors.items()
            }
        )
        image = config.encoders["image"].dim if config.regions else 0
        self.regions = config.regions.build(d_in=image, d_out=config.llm.dim) if config.regions else None
        self.fusion = _fusion(config, vocab=self.llm.vocab)
        self.register_module("score", None)
        if config.score:
            self.with_score()
        self.fused = True
        """Whether the fusion stands around the blocks; a stage may train the LLM without it (`Stage.fused`)."""
        self.added = tuple(added)
        """Ids of added tokens, whose rows the part `tokens` may train."""
        self.register_module("tokens", None)
        self.frozen_encoders: frozenset[str] = frozenset()
        """Encoders that run without a graph: none of their weights train."""
        self.kept_encoders: frozenset[str] = frozenset()
        """Encoders that never run, because all their features were kept."""
        self.run_all_parts = False
        """Whether every encoder and connector runs at every forward, also without media (sharded training needs it)."""

    def forward(
        self, batch: Batch, *, cache: Any = None, only_targets: bool = False, seen: Made = None, given: Made = None
    ) -> Output:
        """Hidden states of every column, or with `only_targets` of those that predict a target: what training reads.

        With a `cache`, `batch` holds the new columns only, and no media. Of a modality in `seen` the encoder does not
        run: it made these features (`look`). Of one in `given` the connector does not either: these stand for its.
        """
        embeds = self.llm.embed(batch.tokens)
        if self.tokens is not None:
            embeds = self.tokens.embed(batch.tokens, embeds)
        assert batch.media.keys() <= self.encoders.keys(), f"media of {sorted(batch.media)}"
        features = dict(given or {})
        # In the model's order, whatever comes first in the batch: sharded parts must run in one order on every rank.
        for kind in [kind for kind in self.encoders if kind not in features]:
            encoded = seen[kind] if seen and kind in seen else self._look(kind, batch)
            if encoded is None:
                continue
            if kind in batch.media:
                features[kind] = self._connect(kind, encoded, batch)
            else:
                # A rank whose rows hold no picture must still run the encoder and the connector: sharded parameters
                # are gathered and reduced by all ranks together, or by none (peers.md section 2, row 8).
                connector = self.connectors[kind]
                word = torch.zeros(1, dtype=torch.int64, device=embeds.device)
                made = connector(encoded, (word,)) if connector.sees_prompt else connector(encoded)
                embeds = embeds + made.values.sum() * 0.0
            if kind == "image" and self.regions is not None:
                embeds = self._point(embeds, encoded, batch.spots)
        embeds = self.fusion.inputs(embeds, features, batch)
        memory = self.fusion.memory(features, batch) if features else None
        if cache is not None:
            # What comes later brings no media; it looks at the prompt's.
            memory = cache.memory = cache.memory if memory is None else memory
        around = self.fusion.around if self.config.fusion.needs_blocks and self.fused else plain
        read = _few(batch.targets.slots) if only_targets else None
        ctx = Context(
            enter=batch.enter,
            exit=batch.exit,
            order=batch.order,
            positions=batch.positions,
            targets=batch.targets,
            # What stands around a block may want all its columns.
            read=read if around is plain else None,
            memory=self.fusion.view(memory, batch),
            cache=cache,
            media=batch.media,
            lengths=batch.lengths,
        )
        hidden = self.llm(embeds, ctx, around)
        if read is not None and hidden.ndim == 3:
            hidden = hidden.flatten(0, 1).index_select(0, read)
        told = self.fusion.extra(features, batch) if only_targets and not given else {}
        return Output(hidden, read, {**ctx.extra.sums, **told})

    def look(self, batch: Batch) -> dict[str, Features]:
        """What the frozen encoders make of a batch: `seen`, for several forwards over it with other weights behind."""
        frozen = [kind for kind in self.encoders if kind in self.frozen_encoders]
        return {kind: found for kind in frozen if (found := self._look(kind, batch)) is not None}

    def _look(self, kind: str, batch: Batch) -> Features | None:
        if kind in batch.media:
            return self.encode(kind, batch)
        return self.blank(kind, batch.tokens.device) if self.run_all_parts else None

    def encode(self, kind: str, batch: Batch) -> Features:
        """What the encoder makes of one modality's items; cached features pass through."""
        media = batch.media[kind]
        if media.encoded:
            return media.features()
        with torch.set_grad_enabled(torch.is_grad_enabled() and kind not in self.frozen_encoders):
            return self.encoders[kind](media.values)

    def _connect(self, kind: str, features: Features, batch: Batch) -> Features:
        connector, media = self.connectors[kind], batch.media[kind]
        if not connector.sees_prompt:
            return connector(features)
        silent = [n for n, count in enumerate(media.word_counts) if not count]
        # A node whose interval holds others has children: the question is in them.
        if silent and bool((media.exit[silent] > media.enter[silent] + 1).any()):
            raise DataError(
                "question-apart",
                f"an {kind} stands in a turn without words that questions branch from, and this connector reads the"
                " question, so its features cannot be shared: put the question into the turn of the"
                f" {kind}, or the {kind} into each branch",
            )
        if not media.prompts and self.config.connectors[kind].own_words:
            raise DataError(
                "no-reader",
                f"the connector for {kind} reads the instruction in tokens of its own, and none came with the batch; "
                "load its tokenizer beside the LLM's (Tokenizer.reader)",
            )
        words = batch.tokens.flatten()[media.words].split(list(media.word_counts))
        return connector(features, media.prompts or words)

    def logits(self, hidden: Tensor) -> Tensor:
        """float[…, D] → float32[…, V]; float64 stays."""
        logits = self._head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _head(self, hidden: Tensor) -> Tensor:
        logits = self.llm.head(hidden)
        return logits if self.tokens is None else self.tokens.head(hidden, logits)

    def scores(self, hidden: Tensor) -> Tensor:
        """float[…, D] → float32[…]: the score head's number; float64 stays.

        Raises:
            ConfigError: the model has no such head.
        """
        if self.score is None:
            raise ConfigError(
                "this model has no score head, so it is no reward model; `quintet align reward` makes one"
            )
        return self.score(hidden).squeeze(-1).to(torch.promote_types(hidden.dtype, torch.float32))

    def target_logps(self, output: Output, targets: Targets) -> Tensor:
        """Log-probability of each supervised token, float32[P], in nats.

        Logits exist only where something is learnt, and in chunks that are recomputed in the backward pass once they
        would take more than `LOGIT_BYTES`.
        """
        count, ids = len(targets.slots), _few(targets.ids)
        hidden = output.hidden
        if output.read is None:
            hidden = hidden.flatten(0, 1).index_select(0, _few(targets.slots))
        chunk = max(1, LOGIT_BYTES // (4 * self.llm.vocab))
        if len(hidden) <= chunk:
            return self._logps(hidden, ids)[:count]
        pieces = zip(hidden.split(chunk), ids.split(chunk), strict=True)
        return torch.cat([checkpoint(self._logps, h, i, use_reentrant=False) for h, i in pieces])[:count]  # type: ignore[arg-type]

    def _logps(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return log_probs(self._head(hidden), ids)

    def _point(self, embeds: Tensor, encoded: Features, spots: Spots | None) -> Tensor:
        """`embeds` float[B, T, D] with the features of regions in their columns; zero is added where there are none."""
        assert self.regions is not None
        if spots is None:
            whole = Region("box", (0.0, 0.0, 1.0, 1.0))
            return embeds + self.regions(encoded, [whole], [0]).sum() * 0.0 if self.run_all_parts else embeds
        made = self.regions(encoded, spots.regions, spots.items).to(embeds.dtype)
        return embeds.flatten(0, 1).index_copy(0, spots.slots, made).view_as(embeds)

    def blank(self, kind: str, device: torch.device) -> Features:
        """What the encoder makes of nothing. One whose features are kept runs on no rank, so it does not run here."""
        size = self.config.spec(kind).size
        if kind in self.kept_encoders:
            config = self.config.encoders[kind]
            layout = config.layout(size)
            return Features(torch.zeros(layout.count, config.dim, device=device), (layout,))
        blank = torch.zeros(3, *size, dtype=torch.uint8, device=device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and kind not in self.frozen_encoders):
            return self.encoders[kind]((blank,))

    def parts(self) -> dict[str, nn.Module]:
        """Part name → module, as `train={…}` names them: `connectors.image`, `regions`, `fusion`, `llm` and so on.

        What has no weights is no part: a fusion that only writes tokens, an encoder that hands pixels on.
        While a stage trains them apart, the rows of added tokens are the part `tokens` (`with_token_rows`).
        """
        found: dict[str, nn.Module] = {}
        for kind, encoder in self.encoders.items():
            if any(True for _ in encoder.parameters()):
                found |= _inner(f"encoders.{kind}", encoder)
        for kind, connector in self.connectors.items():
            found |= _inner(f"connectors.{kind}", connector)
        if self.regions is not None:
            found["regions"] = self.regions
        found |= {name: m for name, m in self.fusion.parts().items() if any(True for _ in m.parameters())}
        found["llm"] = self.llm
        if self.tokens is not None:
            found["tokens"] = self.tokens
        if self.score is not None:
            found["score"] = self.score
        return found

    def with_score(self) -> None:
        """Gives the model a score head, its bias 0, if it has none."""
        if self.score is None:
            self.config = replace(self.config, score=True)
            self.score = nn.Linear(self.config.llm.dim, 1)
            nn.init.zeros_(self.score.bias)

    def with_token_rows(self) -> None:
        """Makes the rows of added tokens a part of their own, `tokens`, until `fold`.

        Raises:
            ConfigError: no token was added, or the LLM does more with a token than look up its row.
        """
        if not self.added:
            raise ConfigError("no part 'tokens' to train: the recipe's templates add no tokens (`Template.added`)")
        if self.tokens is None:
            self.tokens = TokenRows(self.llm.tables(), self.added)

    def fold(self) -> None:
        """Folds what a stage trained beside the weights into them: adapters, and rows of added tokens."""
        lora.merge(self)
        if self.tokens is not None:
            self.tokens.write(self.llm.tables())
            self.tokens = None

    inference = modes.inference


def _inner(name: str, part: nn.Module) -> dict[str, nn.Module]:
    """A part by its name; one that is several, as a Q-Former and its projection, as those: a stage may train one."""
    inner = part.parts() if hasattr(part, "parts") else {}  # type: ignore[operator]
    return {f"{name}.{own}": each for own, each in inner.items()} or {name: part}


def _connector(config: ConnectorConfig, *, d_in: int, d_out: int, vocab: int) -> nn.Module:
    """A connector between its neighbours; one that reads words has a row for each of the LLM's tokens."""
    words = {"vocab": vocab} if config.has_words else {}
    return config.build(d_in=d_in, d_out=d_out, **words)


def _fusion(config: MLLM.Config, *, vocab: int) -> Fusion:
    """The fusion of the LLM; one that has words has a row for each of the LLM's tokens."""
    if not config.fusion.has_words:
        return config.fusion.build_for(config.llm)
    words = {"vocab": vocab}
    return config.fusion.build(dim=config.llm.dim, depth=config.llm.depth, **words)


def _few(indices: Tensor) -> Tensor:
    """`indices` int64[P] and zeros behind them, up to one of few lengths; what comes of the zeros is cut off again."""
    return F.pad(indices, (0, rounded(len(indices)) - len(indices)))
