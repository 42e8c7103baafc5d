"""CHAIR: how much of what a caption mentions is not in the picture. Lower is better.

Source: Rohrbach et al. 2018, arXiv:1809.02156, section 3. CHAIR-i = hallucinated mentions / all mentions (repeated
mentions count each time, pooled over the corpus); CHAIR-s = captions with a hallucination / all captions. Which
words are mentions is the world's matter: `mentions` is given. Saying little lowers CHAIR, and captions that name
nothing make nothing up: 0, the best there is. So recall (objects of the pictures that their captions mention / objects
of the pictures, both without repetition) is printed beside it wherever it stands, and length is among the measures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from quintet.evaluation.metrics.metric import Floats, Judged, Metric, commonest, ratio

__all__ = ["Chair", "Mentions"]

Mentions = Callable[[str], Sequence[str]]
"""The objects a text mentions, in order and with repetitions, by the names that truths use."""


class Chair(Metric):
    """CHAIR-i, with CHAIR-s, recall and length in words.

    A truth is `{"objects": [...], "captions": [...]}`: the names of the picture's objects, and its reference captions
    (for the majority control only).
    """

    name = "CHAIR-i"
    higher_is_better = False
    beside = "recall"

    def __init__(self, mentions: Mentions) -> None:
        self.mentions = mentions

    def judge(self, outputs: Sequence[str], truths: Sequence[Mapping[str, Any]]) -> Judged:
        sums = np.zeros((len(outputs), 7))
        how = []
        for row, output, truth in zip(sums, outputs, truths, strict=True):
            there = set(truth["objects"])
            said = list(self.mentions(output))
            wrong = [name for name in said if name not in there]
            num_words = len(output.split())
            row[:] = len(wrong), len(said), bool(wrong), 1, len(there & set(said)), len(there), num_words
            how.append({"hallucinated": wrong, "mentioned": said, "words": num_words})
        return Judged(sums, how)

    def guesses(self, truths: Sequence[Mapping[str, Any]]) -> list[str]:
        """Reference captions that mention something: to say nothing would win."""
        return [c for c in commonest(c for truth in truths for c in truth["captions"]) if self.mentions(c)]

    def measures(self, sums: Floats) -> dict[str, float]:
        """CHAIR-s, recall, words a caption, mentions a caption."""
        _, said, bad, captions, found, there, words = sums
        return {
            "chair_s": float(ratio(bad, captions)),
            "recall": float(ratio(found, there)),
            "words": float(ratio(words, captions)),
            "mentions": float(ratio(said, captions)),
        }
