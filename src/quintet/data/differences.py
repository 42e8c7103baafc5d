"""Which tokens of two answers differ: the segments that a person corrected (RLHF-V).

Equal runs of token ids stay unmarked; everything else is marked, and so are equal runs shorter than `SHORTEST`, which
are as likely chance as agreement. Source: RLHF-V (Yu et al. 2023, arXiv:2312.00849), section 3.2, and its code.
"""

from dataclasses import replace
from difflib import SequenceMatcher

import torch

from quintet.errors import DataError
from quintet.values import Tokens

__all__ = ["mark_differences"]

SHORTEST = 3
"""Tokens of an equal run that counts as equal."""


def mark_differences(tokens: Tokens) -> Tokens:
    """The sample with `mark` 1 where a scored answer differs from the other one.

    Raises:
        DataError: there are not two of them; what differs is told of an answer and its correction.
    """
    nodes = [node for node, answer in tokens.answers if answer.score is not None]
    if len(nodes) != 2:
        raise DataError(
            "not-two",
            f"{len(nodes)} answers are compared, and `differences` marks what two of them do not share; "
            "give each pair a row of its own, or set differences=false",
        )
    columns = [(tokens.enter == node).nonzero().flatten() for node in nodes]
    one, two = (tokens.ids[at].tolist() for at in columns)
    mark = torch.zeros_like(tokens.ids)
    for at in columns:
        mark[at] = 1
    blocks = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
    for start, other, length in blocks:
        if length >= SHORTEST:
            mark[columns[0][start : start + length]] = 0
            mark[columns[1][other : other + length]] = 0
    return replace(tokens, mark=mark)
