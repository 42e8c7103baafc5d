"""What LLaVA-RLHF adds to a reward model's number by rule (Sun et al. 2023, arXiv:2309.14525; terms as in its release).

The rows of its prompts say of each what kind of question it is, in `caption_type`: 1 is open, 2 to 5 have the right
choice A to D, 6 has the answer No, 7 has Yes.
"""

from collections.abc import Mapping

from quintet.training.rollout import Rollouts

__all__ = ["CHOICES", "correct", "symbolic"]

CHOICES = {2: "A", 3: "B", 4: "C", 5: "D"}
"""`caption_type` of a question with choices → the right one."""
NO = 6


def symbolic(answer: str, share: float, numbers: Mapping[str, float], how: Rollouts) -> float:
    """What an answer's rightness adds and its length costs; `share` is its tokens as a share of `max_tokens`.

    A row without `length_bonus` pays nothing for length: those of the release all have it.
    """
    return how.correct * correct(answer, numbers) - how.length * numbers.get("length_bonus", 0.0) * share


def correct(answer: str, numbers: Mapping[str, float]) -> float:
    """1 for the right choice; a half for a right No, less for a Yes instead; a right Yes earns nothing, on purpose.

    >>> correct("B. It is red.", {"caption_type": 3}), correct("Yes, it is.", {"caption_type": 6}), correct("Yes", {})
    (1.0, -0.5, 0.0)
    """
    kind, said = int(numbers.get("caption_type", 1)), answer.strip()
    if letter := CHOICES.get(kind):
        return float(said.startswith(f"{letter}.") or f"correct option is {letter}." in said)
    if kind == NO:
        return 0.5 * said.startswith("No") - 0.5 * said.startswith("Yes")
    return 0.0
