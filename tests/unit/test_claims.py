"""What descriptions of Scenes claim, how wrong it is, and pairs whose errors are known."""

import random

import pytest

from quintet.data.scenes import World, caption, mentions, objects_of, stream
from quintet.data.scenes.claims import Claim, claims, ghost, mended, severity, told, truths
from quintet.data.scenes.pairs import pair_of, spoilt
from quintet.data.scenes.vocabulary import OBJECTS
from quintet.data.scenes.world import Scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    found = stream(World(min_objects=0), 0)
    return [next(found) for _ in range(200)]


def test_a_true_caption_is_read_back_and_nothing_in_it_is_wrong(scenes: list[Scene]) -> None:
    for n, scene in enumerate(scenes):
        text = caption(scene, random.Random(n), "long")
        said = claims(text)
        assert sorted(map(repr, said)) == sorted(map(repr, truths(scene)))
        assert told(said) == text
        assert [severity(each, scene) for each in said] == [0] * len(said)
        assert mended(text, scene) == text


def test_severity_is_of_the_nearest_object_of_that_name() -> None:
    scene = next(s for s in stream(World(digit=1.0, word=0.0), 1) if len(s.objects) == 1)
    [thing] = scene.objects
    other = "small" if thing.size == "large" else "large"
    place = "top" if thing.place != "top" else "bottom"
    assert severity(Claim("object", thing.name, thing.size, thing.place), scene) == 0
    assert severity(Claim("object", thing.name), scene) == 0
    assert severity(Claim("object", thing.name, thing.size, place), scene) == 1
    assert severity(Claim("object", thing.name, other, place), scene) == 2
    assert severity(Claim("object", ghost(thing.name), thing.size, thing.place), scene) == 3
    assert scene.digit is not None
    assert severity(Claim("digit", str((scene.digit.value + 1) % 10)), scene) == 2
    assert severity(Claim("word", "lamp"), scene) == 3


def test_a_pair_differs_in_its_errors_alone(scenes: list[Scene]) -> None:
    added = replaced = omitted = 0
    for n, scene in enumerate(scenes):
        pair = pair_of(scene, random.Random(n), edits=1 + n % 2, omitted=1 / 3)
        if pair is None:
            assert not scene.objects
            continue
        right, wrong = claims(pair.chosen), claims(pair.rejected)
        assert sorted(map(repr, right)) == sorted(map(repr, truths(scene)))
        assert [severity(each, scene) > 0 for each in wrong] == [each in pair.wrong for each in wrong]
        assert [each for each in wrong if each not in pair.wrong] == [each for each in right if each not in pair.right]
        assert pair.severity(scene) >= 1
        added += pair.right.count(None)
        omitted += pair.wrong.count(None)
        replaced += sum(None not in each for each in zip(pair.right, pair.wrong, strict=True))
    assert min(added, replaced, omitted) > 50


def test_a_mended_description_is_true_and_keeps_what_was(scenes: list[Scene]) -> None:
    for n, scene in enumerate(scenes):
        if (pair := pair_of(scene, random.Random(n), edits=2)) is None:
            continue
        right = claims(mended(pair.rejected, scene))
        assert all(severity(each, scene) == 0 for each in right)
        assert all(each in right for each in claims(pair.rejected) if each not in pair.wrong)


def test_every_object_has_one_ghost_and_is_one() -> None:
    assert sorted(map(ghost, OBJECTS)) == sorted(OBJECTS)


def test_a_spoilt_description_names_one_thing_that_is_not_there(scenes: list[Scene]) -> None:
    for n, scene in enumerate(scenes):
        said = mentions(spoilt(scene, random.Random(n)))
        made_up = [each for each in said if each not in objects_of(scene)]
        assert len(made_up) == bool(scene.objects)
        assert all(ghost(" ".join(said[said.index(each) - 1])) == " ".join(each) for each in made_up)
