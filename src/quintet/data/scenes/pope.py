"""Probes for object hallucination: "Is there a red circle?", half of them true, the other half chosen to tempt.

Source: POPE, Li et al. 2023, arXiv:2305.10355, section 4: absent objects are drawn at random, from the most frequent
ones of the data (popular), or from those most often seen together with what is there (adversarial).
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from quintet.data.scenes.questions import Question
from quintet.data.scenes.vocabulary import OBJECTS, indefinite
from quintet.data.scenes.world import Scene

__all__ = ["POPE_RULES", "Occurrences", "pope", "pope_candidates"]

POPE_RULES = ("random", "popular", "adversarial")


class Occurrences:
    """How often each object ("red circle") is in a set of scenes, and how often together with each other."""

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self.single: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        for scene in scenes:
            names = sorted({each.name for each in scene.objects})
            self.single.update(names)
            self.pairs.update((a, b) for a in names for b in names if a != b)


def pope_candidates(
    scene: Scene, seen: Occurrences, rng: random.Random, most: int = 3
) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """For each rule: objects that are there and, equally many, objects that are not. At most `most` of each."""
    there = sorted({each.name for each in scene.objects})
    present = rng.sample(there, min(most, len(there)))
    absent = [name for name in rng.sample(OBJECTS, len(OBJECTS)) if name not in there]  # ties stay in random order
    popular = sorted(absent, key=lambda name: -seen.single[name])
    tempting = sorted(absent, key=lambda name: -sum(seen.pairs[each, name] for each in there))
    ranked = {"random": absent, "popular": popular, "adversarial": tempting}
    return {rule: (present, ranked[rule][: len(present)]) for rule in POPE_RULES}


def pope(scene: Scene, seen: Occurrences, rng: random.Random, most: int = 3) -> dict[str, list[Question]]:
    """The same as questions, in random order: as many yes as no under every rule."""
    asked = {}
    for rule, (present, absent) in pope_candidates(scene, seen, rng, most).items():
        pairs = [(name, "yes") for name in present] + [(name, "no") for name in absent]
        asked[rule] = [
            Question("existence", f"Is there {indefinite(name)} in the picture?", answer)
            for name, answer in rng.sample(pairs, len(pairs))
        ]
    return asked
