"""Pictures found by captions and captions by pictures: near by ITC, then the nearest judged by ITM.

As in LAVIS, the candidates that ITC finds nearest are ordered by the sum of ITM's yes and ITC's cosine; all others stay
behind them.

Letters: N pictures, M captions, Q queries, P width of ITC's space, L tokens, S picture features, E their width.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.errors import CheckpointError, ConfigError, DataError
from quintet.evaluation.metrics.recall import LEVELS
from quintet.model.mllm import MLLM
from quintet.training.objectives.align import similarities
from quintet.values import Media, Node, Sample, Text, Turn

__all__ = ["JUDGED", "Retriever"]

JUDGED = 16
"""Candidates of a query that ITM judges (LAVIS: 128 of COCO's 5,000 pictures)."""
BATCH = 64


class Retriever:
    """A model whose connector matches, and the processor that spells its captions.

    `weights` are the model's as they were after the stage that matched: BLIP-2's second stage writes captions with the
    same Q-Former, which then finds no picture any more.
    """

    def __init__(
        self, model: MLLM, processor: Processor, *, judged: int = JUDGED, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model, self.processor, self.judged = model.eval(), processor, judged
        self.kind = model.config.matcher
        if not self.kind:
            raise ConfigError("no connector of this model reads captions, so it cannot find pictures by them")
        self.connector: Any = model.connectors[self.kind]
        if weights:
            own, prefix = copy.deepcopy(self.connector), f"connectors.{self.kind}."
            learnt = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            if strangers := own.load_state_dict(learnt, strict=False).unexpected_keys:
                raise CheckpointError(f"the connector that matches has no {', '.join(strangers[:4])}")
            self.connector = own

    def rank(self, samples: Sequence[Sample]) -> list[str]:
        """For each query the names of what fits it best, the best first, a line each.

        A sample is one turn of a query and a candidate, a picture and a caption or the other way round; candidates are
        those of all samples in the same order. A caption is named by its words, a picture by its sample's origin.

        Raises:
            DataError: a sample of another form, or a picture that cannot be read.
        """
        pairs = [_pair(sample, self.kind) for sample in samples]
        shown = {medium: n for n, medium in enumerate(dict.fromkeys(medium for medium, _, _ in pairs))}
        said = {text: n for n, text in enumerate(dict.fromkeys(text for _, text, _ in pairs))}
        found = [""] * len(samples)
        with self.model.inference():
            features = self._features(list(shown))
            near = similarities(self._pictures(features), self._sentences(list(said)))
            for by_picture in (True, False):
                asked = [n for n, (_, _, first) in enumerate(pairs) if first == by_picture]
                # A caption is one candidate however often it stands; a picture is one at each place.
                if by_picture:
                    candidates = {pairs[n][1]: said[pairs[n][1]] for n in asked}
                else:
                    candidates = {samples[n].origin.id: shown[pairs[n][0]] for n in asked}
                names, numbers = list(candidates), list(candidates.values())
                for n in asked:
                    query = shown[pairs[n][0]] if by_picture else said[pairs[n][1]]
                    cosines = near[query, numbers] if by_picture else near[numbers, query]
                    order = cosines.sort(descending=True, stable=True).indices.tolist()
                    first, rest = order[: self.judged], order[self.judged :]
                    if first:
                        others = [numbers[i] for i in first]
                        own = [query] * len(first)
                        seen, read = (own, others) if by_picture else (others, own)
                        yes = self._fit(features[seen], [list(said)[i] for i in read]) + cosines[first]
                        first = [first[i] for i in yes.sort(descending=True, stable=True).indices.tolist()]
                    found[n] = "\n".join(names[i] for i in (first + rest)[: max(LEVELS)])
        return found

    def _fit(self, features: Tensor, said: Sequence[str]) -> Tensor:
        """ITM's yes to each picture with its caption: float[N]."""
        return self.connector.match(features, *self._ids(said))[:, 1].float()

    # ---- what is compared ----------------------------------------------------------------------------------------
    def _features(self, shown: Sequence[Media]) -> Tensor:
        """The encoder's, float[N, S, E]."""
        spec, pieces = self.processor.spec(self.kind), []
        for batch in _chunks(shown):
            pixels = tuple(load_image(medium.ref, spec).to(self._device) for medium in batch)
            features = self.model.encoders[self.kind](pixels)
            if len(set(features.layouts)) > 1:
                raise ConfigError("pictures of several sizes; retrieval compares those of one (`ImageSpec.fit`)")
            pieces += features.split()
        return torch.stack(pieces)

    def _pictures(self, features: Tensor) -> Tensor:
        """float[N, Q, P]."""
        return torch.cat([self.connector.pictures(batch) for batch in features.split(BATCH)])

    def _sentences(self, said: Sequence[str]) -> Tensor:
        """float[M, P]."""
        return torch.cat([self.connector.sentences(*self._ids(batch)) for batch in _chunks(said)])

    def _ids(self, said: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions as the first stage spells them: int64[n, L], and which are no padding."""
        spelt = [self.processor.tokens(Sample(Node((Turn("assistant", (Text(text),)),)))).ids for text in said]
        pad = torch.nn.utils.rnn.pad_sequence
        there = [torch.ones_like(ids, dtype=torch.bool) for ids in spelt]
        return pad(spelt, batch_first=True).to(self._device), pad(there, batch_first=True).to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.connector.parameters()).device


def _pair(sample: Sample, kind: str) -> tuple[Media, str, bool]:
    """The picture, the caption, and whether the picture is the query."""
    match [part for turn in sample.turns() for part in turn.parts]:
        case [Media() as medium, Text() as text] if medium.kind == kind:
            return medium, text.text, True
        case [Text() as text, Media() as medium] if medium.kind == kind:
            return medium, text.text, False
    message = f"a sample for retrieval is an {kind} and a caption, the query first"
    raise DataError("not-a-pair", message, file=sample.origin.file, row=sample.origin.row)


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]
