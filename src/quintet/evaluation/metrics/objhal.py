"""Object HalBench: how many descriptions make something up, and how much of what they mention. Lower is better.

Source: Yu et al. 2023 (RLHF-V), arXiv:2312.00849, section 4; its released script eval_gpt_obj_halbench.py. There an LLM
takes the objects out of an answer, here rules do. As in the script, an answer of at most three words mentions nothing,
a word counts once an answer (two words for one object are two mentions), and the response rate is over the answers
that mention any object, so that silence lowers neither rate: look at recall, over all answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from quintet.evaluation.metrics.metric import Floats, Judged, Metric, commonest, ratio

__all__ = ["Named", "ObjectHal"]

Named = Callable[[str], Sequence[tuple[str, str]]]
"""A text → the words in it that name an object, each with the object's name in the truths; in order, with repeats."""

_SHORT = 3


class ObjectHal(Metric):
    """The response rate, with the mention rate, recall and length in words.

    Response rate = answers with something made up / answers that mention any object. Mention rate = words that name
    something made up / words that name an object. Recall = objects named / objects of the picture. A truth is
    `{"objects": […], "captions": […]}`: what is there, and reference captions (for the majority control only).
    """

    name = "response rate"
    higher_is_better = False
    beside = "recall"

    def __init__(self, named: Named) -> None:
        self.named = named

    def judge(self, outputs: Sequence[str], truths: Sequence[Mapping[str, Any]]) -> Judged:
        sums = np.zeros((len(outputs), 8))
        how = []
        for row, output, truth in zip(sums, outputs, truths, strict=True):
            there = set(truth["objects"])
            num_words = len(output.split())
            said = dict(self.named(output) if num_words > _SHORT else ())
            wrong = [word for word, name in said.items() if name not in there]
            found = there.intersection(said.values())
            row[:] = bool(wrong), bool(said), len(wrong), len(said), len(found), len(there), num_words, 1
            how.append({"hallucinated": wrong, "mentioned": list(said), "words": num_words})
        return Judged(sums, how)

    def guesses(self, truths: Sequence[Mapping[str, Any]]) -> list[str]:
        """Reference captions that mention something, else nothing."""
        captions = commonest(c for truth in truths for c in truth["captions"])
        return [c for c in captions if len(c.split()) > _SHORT and self.named(c)] or [""]

    def measures(self, sums: Floats) -> dict[str, float]:
        """Mention rate, recall, words an answer, and the share of answers that mention any object."""
        _, speaking, wrong, said, found, there, words, answers = sums
        return {
            "mention_rate": float(ratio(wrong, said)),
            "recall": float(ratio(found, there)),
            "words": float(ratio(words, answers)),
            "speaking": float(ratio(speaking, answers)),
        }
