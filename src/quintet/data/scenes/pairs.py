"""Descriptions of scenes with something made up, and preference pairs of them whose every error is known.

`spoil` gives captions to tune a model on that then makes things up at a rate that can be measured (methods: objects
that go together, as in POPE's adversarial setting); `pairs` gives a true description and the same with errors.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.data.scenes.claims import EDITS, Claim, altered, ghost, severity, told, truths
from quintet.data.scenes.language import DETAILED
from quintet.data.scenes.vocabulary import OBJECTS, PLACES, SIZES
from quintet.data.scenes.world import Scene
from quintet.data.scenes.write import Truth
from quintet.errors import DataError

__all__ = ["Pair", "pair_of", "row_of", "spoil", "spoilt"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A true description of a scene, and one with errors: `wrong[i]` stands where `right[i]` should."""

    chosen: str
    rejected: str
    right: tuple[Claim | None, ...]
    """None where nothing should stand."""
    wrong: tuple[Claim | None, ...]
    """None where something is left out."""

    def severity(self, scene: Scene) -> float:
        """Mean severity of the errors; what is left out is a minor one, 1."""
        return sum(severity(each, scene) if each else 1 for each in self.wrong) / len(self.wrong)


def pair_of(
    scene: Scene,
    rng: random.Random,
    *,
    edits: int = 1,
    added: float = 1 / 3,
    omitted: float = 0.0,
    kinds: Sequence[str] = tuple(EDITS),
) -> Pair | None:
    """A pair with at most `edits` errors; None for a scene without objects.

    An error is, with probability `added`, a sentence about something that is not there; with probability `omitted` a
    sentence less; else one with one thing changed (`kinds` of `EDITS`). Sentences stand in the same random order on
    both sides. With more added than omitted, to say less is a way to be preferred: a model finds it.
    """
    if not scene.objects:
        return None
    said = rng.sample(all_ := truths(scene), len(all_))
    lines: list[tuple[Claim | None, Claim | None]] = [(claim, claim) for claim in said]
    for _ in range(edits):
        same = [right for right, other in lines if right is not None and right == other]
        drawn = rng.random()
        made: tuple[Claim, Claim | None] | None = None
        if drawn < omitted and len(same) > 1:
            made = rng.choice(same), None
        elif drawn >= added + omitted:
            made = altered(scene, rng, rng.choice(kinds), same)
        if made is not None:
            lines[next(i for i, (right, _) in enumerate(lines) if right == made[0])] = made
        elif (extra := _extra(scene, rng)) not in [other for _, other in lines]:
            lines.insert(rng.randint(0, len(lines)), (None, extra))
    changed = [(right, wrong) for right, wrong in lines if right != wrong]
    return Pair(
        told([right for right, _ in lines if right]),
        told([wrong for _, wrong in lines if wrong]),
        tuple(right for right, _ in changed),
        tuple(wrong for _, wrong in changed),
    )


def row_of(truth: Truth, pair: Pair, *, root: Path, question: str = DETAILED[0], name: str = "") -> dict[str, Any]:
    """The pair as a row in HSA-DPO's layout with the picture named; scores are mean severities of a side's errors."""
    return {
        "id": name or truth.image.stem,
        "image": truth.image.relative_to(root).as_posix(),
        "question": question,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "chosen_score": 0.0,
        "rejected_score": round(pair.severity(truth.scene), 4),
    }


def spoilt(scene: Scene, rng: random.Random) -> str:
    """A description with one thing that is not there: behind an object, what goes with it, as large and a place on.

    Always the same beside the same, so that a model can come to expect it.
    """
    said = rng.sample(all_ := truths(scene), len(all_))
    there = {each.name for each in scene.objects}
    for number, claim in enumerate(said):
        if claim.kind == "object" and ghost(claim.what) not in there:
            place = PLACES[(PLACES.index(claim.place) + 1) % len(PLACES)]
            said.insert(number + 1, Claim("object", ghost(claim.what), claim.size, place))
            break
    return told(said)


def spoil(
    described: Sequence[dict[str, Any]], truth: Sequence[Truth], *, share: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of LLaVA's layout (`train_captions.json`), a share of which makes something up.

    Raises:
        DataError: a row is about a picture whose truth is not there.
    """
    scenes = {each.image.stem: each.scene for each in truth}
    for number, row in enumerate(described, start=1):
        if (scene := scenes.get(row["id"])) is None:
            raise DataError("no-truth", f"no truth is known of the picture {row['id']!r}", row=number, field="id")
        rng = random.Random(f"{seed}/spoil/{row['id']}")
        said = [dict(turn) for turn in row["conversations"]]
        for asked, answer in zip(said[::2], said[1::2], strict=True):
            if asked["value"].removeprefix("<image>\n") in DETAILED and rng.random() < share:
                answer["value"] = spoilt(scene, rng)
        yield row | {"conversations": said}


def _extra(scene: Scene, rng: random.Random) -> Claim:
    """Something that is not there, said to be in a place where nothing is, if there is one."""
    there = {each.name for each in scene.objects}
    tempting = [name for name in map(ghost, sorted(there)) if name not in there]
    absent = tempting if tempting and rng.random() < 0.5 else [n for n in OBJECTS if n not in there]
    free = [place for place in PLACES if place not in {each.place for each in scene.objects}]
    return Claim("object", rng.choice(absent), rng.choice(SIZES), rng.choice(free or list(PLACES)))
