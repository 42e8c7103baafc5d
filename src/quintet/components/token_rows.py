"""Rows of added tokens that learn while the LLM stays as it is (Flamingo's `<EOC>`, LLaVA-v0's `<im_start>`).

An adapter, as LoRA is: the rows live beside the LLM's tables while a stage trains them and are written into the tables
when it ends. So an optimizer's moments, its weight decay and a checkpoint hold n rows and not a vocabulary of them,
and the published rows cannot move. Letters in shapes: n added tokens, D width, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TokenRows"]


class TokenRows(nn.Module):
    """`rows` float[n, D] of the embedding, and `head_rows` float[n, D] of the head unless the two are tied."""

    ids: Tensor
    place: Tensor

    def __init__(self, tables: Sequence[Tensor], ids: Sequence[int]) -> None:
        """`tables` are float[V, D]: the embedding, and the head's weight unless it is the same."""
        super().__init__()
        device = tables[0].device
        chosen = torch.tensor(list(ids), dtype=torch.int64, device=device)
        place = torch.full((len(tables[0]),), -1, dtype=torch.int64, device=device)
        place[chosen] = torch.arange(len(ids), device=device)
        # Made again from the tokenizer, so not saved.
        self.register_buffer("ids", chosen, persistent=False)
        self.register_buffer("place", place, persistent=False)
        # In float32, as LoRA's: in bfloat16 an optimizer's small steps round to nothing.
        own = [table.detach()[chosen].to(torch.promote_types(table.dtype, torch.float32)) for table in tables]
        self.rows = nn.Parameter(own[0])
        self.head_rows = nn.Parameter(own[1]) if len(own) > 1 else None

    def embed(self, tokens: Tensor, embeds: Tensor) -> Tensor:
        """`embeds` float[B, T, D] with our rows where `tokens` int64[B, T] are ours."""
        place = self.place[tokens]
        rows = F.embedding(place.clamp_min(0), self.rows).to(embeds.dtype)
        return torch.where((place >= 0).unsqueeze(-1), rows, embeds)

    def head(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """`logits` float[…, V] of `hidden` float[…, D] with our tokens' by our rows."""
        rows = self.rows if self.head_rows is None else self.head_rows
        return logits.index_copy(-1, self.ids, F.linear(hidden, rows.to(hidden.dtype)).to(logits.dtype))

    @torch.no_grad()
    def write(self, tables: Sequence[Tensor]) -> None:
        """Puts the rows into the tables they came from."""
        for table, rows in zip(tables, self.parameters(), strict=True):
            table[self.ids] = rows.to(table.dtype)
