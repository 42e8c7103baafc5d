"""The P-Former: from a caption's words alone, the soft prompt that would make the LLM say them.

    [CLS] words ─► BERT ─► [CLS] ─► linear to Q · 768 ─► linear, tanh ─► linear ─► prompt float[Q, D]

It reads texts, never pictures, and works in training only: the objective `prompts` teaches it on sentences alone; then,
beside a picture, it tells how far the connector's features are from the prompt of the caption (`alignment`). What the
LLM reads is what `TokenFusion` writes, with it or without.

Source: Jian et al. 2023, arXiv:2307.07063, section 3, and its code (yiren-jian/BLIText, `pformer_opt.py`). Two things
differ, as in our Q-Former: the words are the LLM's own tokens with an embedding of the P-Former's (released: BERT's),
and BERT's dropout is left out.

Letters: N sentences, L words, Q prompts, D width of the LLM, V its vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.connectors.bert import initialise
from quintet.components.fusion.token import TokenFusion
from quintet.errors import ConfigError
from quintet.values import Batch, Features, MediaBatch

__all__ = ["PFormer"]


class PFormer(TokenFusion):
    """Token-level fusion whose features are compared with the prompt of their caption.

    Says in `Output.extra`: `alignment`, the mean squared distance of a picture's features from that prompt; no gradient
    goes into the prompt.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        """Sizes of a P-Former. The defaults are those of BERT-base and of BLIP-2's queries."""

        prompts: int = 32
        """As many as the features of a picture."""
        dim: int = 768
        depth: int = 12
        heads: int = 12
        ffn: int = 3072
        positions: int = 512
        """Words that are read of a sentence."""
        contrast: int = 256
        """Width of the space in which sentences are told apart."""
        temperature: float = 0.07
        """Of that comparison, where it begins."""
        kind: str = "image"
        """Whose features are compared."""

        def __post_init__(self) -> None:
            if min(self.prompts, self.depth, self.heads, self.positions) < 1 or self.dim % self.heads:
                raise ConfigError(
                    f"prompts {self.prompts}, depth {self.depth}, heads {self.heads} and positions {self.positions} "
                    f"must be at least 1, and width {self.dim} a multiple of heads"
                )

        @property
        def has_words(self) -> bool:
            return True

        def starter(self) -> "PFormer.Config":
            return replace(self, prompts=min(self.prompts, 16), dim=128, depth=3, heads=4, ffn=512, contrast=64)

        def tiny(self) -> "PFormer.Config":
            return replace(self, prompts=min(self.prompts, 4), dim=32, depth=2, heads=4, ffn=64, contrast=16)

        def build(self, *, dim: int, depth: int, vocab: int = 0) -> "PFormer":
            return PFormer(self, dim=dim, vocab=vocab)

    def __init__(self, config: Config, *, dim: int, vocab: int) -> None:
        super().__init__()
        self.config = config
        width = config.dim
        self.words = nn.Embedding(vocab + 1, width)
        """The last row stands for a word that is hidden."""
        self.positions = nn.Embedding(config.positions, width)
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(_bert(config) for _ in range(config.depth))
        self.spread = nn.Linear(width, config.prompts * width)
        self.pooler = nn.Linear(width, width)
        self.project = nn.Linear(width, dim)
        self.contrast = nn.Linear(width, config.contrast)
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())
        initialise(self, dim=config.dim)

    def read(self, sentences: Sequence[Tensor], *, hidden: float = 0.0) -> Tensor:
        """[CLS] of each sentence int64[L], float[N, width]. With `hidden` that share of the words is masked."""
        cut = [ids[: self.config.positions] for ids in sentences]
        ids = nn.utils.rnn.pad_sequence(list(cut), batch_first=True)
        lengths = torch.tensor([len(s) for s in cut], device=ids.device)
        if hidden:
            drawn = torch.rand(ids.shape, device=ids.device) < hidden
            ids = ids.masked_fill(drawn, self.words.num_embeddings - 1)
        words = self.words(ids) + self.positions.weight[: ids.shape[1]]
        state = self.norm(torch.cat([self.cls.expand(len(ids), 1, -1), words], 1))
        # Column 0 is [CLS]; behind a sentence's end there is nothing to be seen.
        padding = torch.arange(state.shape[1], device=ids.device) > lengths[:, None]
        for layer in self.layers:
            state = layer(state, src_key_padding_mask=padding)
        return state[:, 0]

    def prompts(self, cls: Tensor) -> Tensor:
        """float[N, width] → prompts float[N, Q, D]."""
        spread = self.spread(cls).unflatten(-1, (self.config.prompts, -1))
        return self.project(torch.tanh(self.pooler(spread)))

    def similarities(self, cls: Tensor) -> Tensor:
        """float[N, width] → cosines of all pairs by the temperature, float[N, N]."""
        said = F.normalize(self.contrast(cls).float(), dim=-1)
        return said @ said.T / self.log_temperature.exp()

    def rows(self, llm: Any, *, columns: int, media: int, features: int) -> Mapping[nn.Module | Tensor, float]:
        words, prompts = columns - media, self.config.prompts
        once = {self.spread: 1, self.contrast: 1, self.pooler: prompts, self.project: prompts}
        attentions: list[Any] = [layer.self_attn for layer in self.layers]
        return {self: words, **once, **{each.in_proj_weight: words for each in attentions}}

    def extra(self, features: Mapping[str, Features], batch: Batch) -> Mapping[str, Tensor]:
        """See `Fusion.extra`: `alignment`, zero where no picture has a caption.

        Raises:
            ConfigError: pictures with more or fewer features than there are prompts.
        """
        found = features.get(self.config.kind)
        if found and (wrong := set(found.counts) - {self.config.prompts}):
            raise ConfigError(f"the P-Former predicts {self.config.prompts} prompts, the connector gives {min(wrong)}")
        captions = _captions(batch, batch.media[self.config.kind]) if found else []
        kept = [n for n, ids in enumerate(captions) if len(ids)]
        # Without a caption it runs all the same: sharded layers are gathered by all ranks together, or by none.
        one = torch.zeros(1, dtype=torch.int64, device=batch.tokens.device)
        with torch.no_grad():
            wanted = self.prompts(self.read([captions[n] for n in kept] or [one]))
        if not found or not kept:
            return {"alignment": wanted.sum() * 0.0}
        made = torch.stack(found.split())[kept]
        return {"alignment": F.mse_loss(made.float(), wanted.float())}


def _captions(batch: Batch, media: MediaBatch) -> list[Tensor]:
    """What is learnt of each item int64[L]: the targets that are predicted from columns which see it."""
    targets, columns = batch.targets, batch.tokens.shape[1]
    row = targets.slots // columns
    enter, order = batch.enter.flatten()[targets.slots], batch.order.flatten()[targets.slots]
    places = zip(media.row.tolist(), media.enter.tolist(), media.exit.tolist(), media.order.tolist(), strict=True)
    return [targets.ids[(row == r) & (enter >= i) & (enter < e) & (order >= o)] for r, i, e, o in places]


def _bert(config: PFormer.Config) -> nn.Module:
    """A layer of BERT: the norms come after the residuals."""
    return nn.TransformerEncoderLayer(
        config.dim, config.heads, config.ffn, dropout=0.0, activation="gelu", batch_first=True, layer_norm_eps=1e-12
    )
