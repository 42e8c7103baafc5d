"""Scenes: what is drawn by lot, and its pixels."""

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageChops

from quintet.data.scenes import COLOURS, SHAPES, SPLITS, WORDS, Scene, World, render, sample_scene, stream
from quintet.data.scenes.vocabulary import RGB
from quintet.data.scenes.world import Box
from quintet.errors import ConfigError

FULL = World(digit=1, word=1, noise=0)


def some(world: World, num: int, seed: int = 0, split: str = "train") -> list[Scene]:
    return list(itertools.islice(stream(world, seed, split), num))


def boxes(scene: Scene) -> list[Box]:
    return [thing.box for thing in (*scene.objects, scene.digit, scene.word) if thing]


def changed(one: Scene, two: Scene) -> tuple[int, int, int, int]:
    """The pixels in which two scenes differ, as left, top, right, bottom."""
    found = ImageChops.difference(render(one), render(two)).getbbox()
    assert found
    return found


def test_a_seed_gives_the_same_scenes_and_pixels() -> None:
    for one, two in zip(some(World(), 20, seed=3), some(World(), 20, seed=3), strict=True):
        assert one == two
        assert render(one).tobytes() == render(two).tobytes()


def test_seeds_and_splits_give_different_scenes() -> None:
    first = [some(World(), 1, seed, split)[0] for seed in (0, 1) for split in SPLITS]
    assert len({render(scene).tobytes() for scene in first}) == len(first)


def test_a_scene_survives_json() -> None:
    for scene in some(World(min_objects=0), 50):
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


@pytest.mark.parametrize("size", [64, 100])
def test_object_boxes_are_tight_around_their_pixels(size: int) -> None:
    """No pixel changes outside the box, and the box is not over a pixel too large on any side."""
    for scene in some(World(size=size, noise=0), 60):
        for i, each in enumerate(scene.objects):
            drawn = changed(scene, replace(scene, objects=scene.objects[:i] + scene.objects[i + 1 :]))
            x1, y1, x2, y2 = (v * size for v in each.box)
            assert math.floor(x1) <= drawn[0] <= x1 + 1
            assert math.floor(y1) <= drawn[1] <= y1 + 1
            assert x2 - 1 <= drawn[2] <= math.ceil(x2)
            assert y2 - 1 <= drawn[3] <= math.ceil(y2)


@pytest.mark.parametrize("size", [64, 100])
def test_tiles_of_digits_and_words_are_their_boxes_exactly(size: int) -> None:
    for scene in some(replace(FULL, size=size), 40):
        assert scene.digit
        assert scene.word
        for without, box in (
            (replace(scene, digit=None), scene.digit.box),
            (replace(scene, word=None), scene.word.box),
        ):
            assert changed(scene, without) == pytest.approx([v * size for v in box])


def test_nothing_overlaps_or_leaves_the_picture() -> None:
    for scene in some(FULL, 200) + some(replace(FULL, min_objects=6, max_objects=6), 50):
        for x1, y1, x2, y2 in boxes(scene):
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
        for a, b in itertools.combinations(boxes(scene), 2):
            apart = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
            assert apart >= 1.5 / 64


def test_no_object_stands_near_a_line_between_places() -> None:
    for scene in some(World(), 200):
        for each in scene.objects:
            assert all(abs(v - line) > 0.04 for v in each.centre for line in (1 / 3, 2 / 3))


def test_no_two_objects_of_a_scene_are_equal_in_all_attributes() -> None:
    for scene in some(World(min_objects=4), 200):
        assert len({each.full_name for each in scene.objects}) == len(scene.objects)


def test_the_middle_of_an_object_has_its_colour() -> None:
    """Every shape covers the middle of its box. 1 level for rounding where four fine pixels are averaged."""
    for scene in some(World(noise=0), 100):
        picture = render(scene)
        for each in scene.objects:
            x, y = (int(v * scene.side) for v in each.centre)
            np.testing.assert_allclose(picture.getpixel((x, y)), RGB[each.colour], atol=1)


def test_shapes_of_a_size_have_different_pixels() -> None:
    scene = next(scene for scene in some(World(noise=0), 50) if len(scene.objects) == 1)
    one = scene.objects[0]
    pictures = {render(replace(scene, objects=(replace(one, shape=shape),))).tobytes() for shape in SHAPES}
    assert len(pictures) == len(SHAPES)


def test_every_colour_is_apart_from_every_other_and_from_any_background() -> None:
    """At least 60 levels of 256 in one channel; grounds are greys from 20 to 110."""
    greys = [(grey, grey, grey) for grey in range(20, 111, 5)]
    for colour in COLOURS:
        others = [RGB[other] for other in COLOURS if other != colour] + greys
        assert min(max(abs(a - b) for a, b in zip(RGB[colour], other, strict=True)) for other in others) >= 60


def test_noise_has_the_strength_that_was_asked_for() -> None:
    """Over 4096 pixels of a flat ground the standard deviation is known to about 2 %."""
    scene = sample_scene(World(min_objects=0, digit=0, word=0, noise=6), random.Random(1))
    quiet = replace(scene, objects=(), backdrop=replace(scene.backdrop, slope=(0.0, 0.0)))
    assert np.asarray(render(quiet).convert("L"), dtype=float).std() == pytest.approx(6, rel=0.1)


def test_held_out_digits_are_never_trained_on() -> None:
    used = {split: {s.digit.index for s in some(World(digit=1), 600, split=split) if s.digit} for split in SPLITS}
    assert not used["train"] & used["val"]
    assert not used["train"] & used["test"]
    assert not used["val"] & used["test"]
    assert all(len(rows) > 100 for rows in used.values())


def test_every_split_has_every_digit_about_equally_often() -> None:
    """1000 draws over 10 values: 100 each with a standard deviation of 9.5; 60 to 140 is four of them."""
    for split in SPLITS:
        values = [s.digit.value for s in some(World(digit=1, max_objects=1), 1000, split=split) if s.digit]
        assert all(60 <= values.count(value) <= 140 for value in range(10))


def test_shares_of_digits_words_and_counts_are_those_of_the_world() -> None:
    """2000 scenes: a share's standard deviation is 1.1 points at most; 5 points are over four of them."""
    scenes = some(World(), 2000)
    assert sum(s.digit is not None for s in scenes) / 2000 == pytest.approx(0.5, abs=0.05)
    assert sum(s.word is not None for s in scenes) / 2000 == pytest.approx(0.4, abs=0.05)
    for num in (1, 2, 3, 4):
        assert sum(len(s.objects) == num for s in scenes) / 2000 == pytest.approx(0.25, abs=0.05)
    assert {s.word.text for s in scenes if s.word} == set(WORDS)


def test_larger_pictures_hold_larger_things() -> None:
    small, large = some(FULL, 1)[0], some(replace(FULL, size=128), 1)[0]
    assert render(small).size == (64, 64)
    assert render(large).size == (128, 128)
    assert small.digit
    assert large.digit
    assert large.digit.box[2] - large.digit.box[0] == pytest.approx(small.digit.box[2] - small.digit.box[0], abs=0.02)


def test_digits_are_bright_ink_on_a_dark_tile() -> None:
    for scene in some(FULL, 20):
        assert scene.digit
        x1, y1, x2, y2 = (round(v * 64) for v in scene.digit.box)
        tile = np.asarray(render(scene).crop((x1, y1, x2, y2)).convert("L"))
        assert tile.max() > 200
        assert np.median(tile) < 100


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 32}, "at least 64"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects ≤ max_objects"),
        ({"max_objects": 7}, "max_objects ≤ 6"),
        ({"digit": 1.5}, "digit is 1.5"),
        ({"noise": -1}, "noise is -1"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        World(**settings)  # type: ignore[arg-type]


def test_an_unknown_split_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        sample_scene(World(digit=1), random.Random(0), "trian")


def test_a_picture_is_rgb() -> None:
    assert isinstance(render(some(World(), 1)[0]), Image.Image)
    assert render(some(World(noise=0), 1)[0]).mode == render(some(World(), 1)[0]).mode == "RGB"
