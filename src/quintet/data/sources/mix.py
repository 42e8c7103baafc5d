"""Several sources as one: so many rows of each, in a seeded order, with random access like any other source."""

from collections.abc import Mapping, Sequence

import torch

from quintet.data.sources.base import Reading, Source
from quintet.errors import ConfigError, DataError

__all__ = ["Mix"]


class Mix(Source):
    """A pass over several sources, shuffled together.

    `sizes` says how many rows of each a pass holds. A source that is asked for more rows than it has is repeated, each
    time in another order, and no row comes twice before every row came once; one that is asked for fewer gives a seeded
    choice. Equal arguments give equal order.
    """

    def __init__(self, sources: Sequence[Source], *, sizes: Sequence[int], seed: int = 0, name: str = "mix") -> None:
        if len(sources) != len(sizes) or not sources:
            raise ConfigError(f"{len(sources)} sources and {len(sizes)} sizes; give each source its size")
        for source, size in zip(sources, sizes, strict=True):
            if size < 0:
                raise ConfigError(f"{source.name}: a size of {size}; sizes count rows")
            if size and not len(source):
                raise DataError("no-rows", "there is no row to mix in", file=source.file)
        self.sources, self.sizes = tuple(sources), tuple(sizes)
        self.name, self.file = name, ", ".join(source.file for source in sources)
        rows = [
            _draw(len(source), size, (seed, k)) for k, (source, size) in enumerate(zip(sources, sizes, strict=True))
        ]
        which = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
        order = torch.randperm(len(which), generator=_generator(seed, len(sources)))
        self._which, self._row = which[order], torch.cat(rows)[order]

    @staticmethod
    def weighted(
        sources: Sequence[Source],
        *,
        weights: Sequence[float],
        size: int | None = None,
        seed: int = 0,
        name: str = "mix",
    ) -> "Mix":
        """A mix in which each source has its share of `size` rows (all rows together, if None).

        Shares are rounded so that they add up: the largest remainders get the rows that are left.

        >>> Mix.weighted([], weights=[])
        Traceback (most recent call last):
        quintet.errors.ConfigError: weights are []; expected one for each source, none below 0, not all 0
        """
        total = sum(weights)
        if not all(0 <= w < float("inf") for w in weights) or not 0 < total < float("inf"):
            raise ConfigError(f"weights are {list(weights)}; expected one for each source, none below 0, not all 0")
        size = sum(map(len, sources)) if size is None else size
        exact = [size * w / total for w in weights]
        sizes = [int(e) for e in exact]
        for k in sorted(range(len(exact)), key=lambda k: (sizes[k] - exact[k], k))[: size - sum(sizes)]:
            sizes[k] += 1
        return Mix(sources, sizes=sizes, seed=seed, name=name)

    @staticmethod
    def tempered(
        sources: Sequence[Source],
        *,
        power: float = 0.5,
        size: int | None = None,
        seed: int = 0,
        name: str = "mix",
    ) -> "Mix":
        """A mix in which a source of n rows weighs n to the `power`: 1 is as they come, 0 all alike.

        A half is InstructBLIP's (Dai et al. 2023, arXiv:2305.06500, section 3.4): small sets come more often than
        their size, without being met as often as large ones.
        """
        return Mix.weighted(sources, weights=[len(s) ** power for s in sources], size=size, seed=seed, name=name)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows of a pass by source; sources of one name are told apart by their place."""
        names = [source.name for source in self.sources]
        unique = [f"{n} ({k + 1})" if names.count(n) > 1 else n for k, n in enumerate(names)]
        return dict(zip(unique, self.sizes, strict=True))

    def __len__(self) -> int:
        return len(self._which)

    def read(self, index: int) -> Reading:
        return self.sources[int(self._which[index])].read(int(self._row[index]))


def _draw(rows: int, size: int, seed: tuple[int, int]) -> torch.Tensor:
    """`size` rows of `rows`: whole permutations, then a part of one."""
    passes = -(-size // rows) if rows else 0
    drawn = [torch.randperm(rows, generator=_generator(*seed, n)) for n in range(passes)]
    return torch.cat(drawn)[:size] if drawn else torch.empty(0, dtype=torch.int64)


def _generator(*seed: int) -> torch.Generator:
    """A generator of its own for each tuple of small numbers."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)
