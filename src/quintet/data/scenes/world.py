"""What a scene is and how one is drawn by lot: a `World` is a distribution, a `Scene` one sample with its exact truth.

In the manner of CLEVR (Johnson et al. 2017, arXiv:1612.06890, section 3): few attributes, all of them known, and no
picture whose truth a person could argue about. So nothing overlaps, nothing leaves the picture, and no object stands
near a line of the 3 × 3 grid that names its place. Handwritten digits are scikit-learn's, split by image.

Lengths of things are in pixels of a picture 64 pixels wide and grow with the picture; boxes are fractions of the side.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count
from typing import Any

import numpy as np
from PIL import ImageFont

from quintet.data.scenes.vocabulary import COLOURS, PLACES, SHAPES, SIZES, SPLITS, WORDS
from quintet.errors import ConfigError, nearest

__all__ = [
    "Backdrop",
    "Box",
    "Digit",
    "Object",
    "Scene",
    "Word",
    "World",
    "digit_images",
    "place_of",
    "sample_scene",
    "stream",
    "word_font",
    "word_pad",
]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the picture's side."""

_DIAMETERS = {"small": (9.0, 11.0), "large": (16.0, 20.0)}
_DIGIT_SIDES = (18, 20)
_GAP = 2.0
_EDGE = 1.0
_GRID_CLEARANCE = 0.04
_SAME_AGAIN = 0.3  # chance that an object takes an earlier one's colour; the same for its shape: else counts are all 1
_CROWDED = 12  # failed placements before large objects are given up; the number of objects never is
_HOPELESS = 200


@dataclass(frozen=True, kw_only=True)
class World:
    """The distribution scenes are drawn from."""

    size: int = 64
    """Side of the square picture, pixels, at least 64."""
    min_objects: int = 1
    max_objects: int = 4
    """The number of objects is uniform between the two, both included; at most 6 fit."""
    digit: float = 0.5
    """Probability of a handwritten digit."""
    word: float = 0.4
    """Probability of a written word."""
    noise: float = 4.0
    """Standard deviation of the grey noise over the picture, in levels of 256."""

    def __post_init__(self) -> None:
        if self.size < 64:
            raise ConfigError(f"size is {self.size} pixels; words are not legible under 64, use at least 64")
        if not 0 <= self.min_objects <= self.max_objects <= 6 or self.max_objects < 1:
            raise ConfigError(
                f"objects from {self.min_objects} to {self.max_objects}; use 0 ≤ min_objects ≤ max_objects ≤ 6"
            )
        for name in ("digit", "word"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is a probability, use 0 to 1")
        if not 0 <= self.noise <= 40:
            raise ConfigError(f"noise is {self.noise} levels; colours drown above 40, use 0 to 40")


@dataclass(frozen=True, slots=True)
class Object:
    """One coloured shape. `box` is tight around its pixels."""

    shape: str
    colour: str
    size: str
    box: Box

    @property
    def name(self) -> str:
        """Colour and shape: `red circle`."""
        return f"{self.colour} {self.shape}"

    @property
    def full_name(self) -> str:
        """Size, colour and shape: `small red circle`."""
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        return _centre(self.box)

    @property
    def place(self) -> str:
        """One of `PLACES`."""
        return place_of(self.centre)


@dataclass(frozen=True, slots=True)
class Digit:
    """One handwritten digit on a dark tile; `index` is its row in scikit-learn's `load_digits`."""

    value: int
    index: int
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        return _centre(self.box)


@dataclass(frozen=True, slots=True)
class Word:
    """One written word on a tile; `dark` text stands on a light tile, else light on dark. `box` is the tile's."""

    text: str
    dark: bool
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        return _centre(self.box)


@dataclass(frozen=True, slots=True)
class Backdrop:
    """The ground: a grey `shade` that changes by `slope` (right, down) across the picture, in levels of 256."""

    shade: float
    slope: tuple[float, float]
    noise: float
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's whole truth; `render` makes the same pixels from it every time."""

    side: int
    objects: tuple[Object, ...]
    digit: Digit | None
    word: Word | None
    backdrop: Backdrop

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Scene.from_json` gives back an equal scene."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Scene":
        """The scene that `to_json` wrote, also after it went through a JSON file."""
        digit, word, ground = data["digit"], data["word"], data["backdrop"]
        return Scene(
            side=data["side"],
            objects=tuple(Object(**{**each, "box": tuple(each["box"])}) for each in data["objects"]),
            digit=Digit(**{**digit, "box": tuple(digit["box"])}) if digit else None,
            word=Word(**{**word, "box": tuple(word["box"])}) if word else None,
            backdrop=Backdrop(**{**ground, "slope": tuple(ground["slope"])}),
        )


def sample_scene(world: World, rng: random.Random, split: str = "train") -> Scene:
    """One scene of `world`. Digits of one split never occur in another."""
    num_objects = rng.randint(world.min_objects, world.max_objects)
    value = rng.randrange(10)
    index = rng.choice(_digit_rows(split)[value]) if rng.random() < world.digit else -1
    text = rng.choice(WORDS) if rng.random() < world.word else ""
    dark = rng.random() < 0.5
    scale = world.size / 64
    digit_side = round(rng.randint(*_DIGIT_SIDES) * scale)
    tiles = [(float(digit_side), float(digit_side))] if index >= 0 else []
    tiles += [_word_tile(text, world.size)] if text else []
    for attempt in range(_HOPELESS):
        looks = _looks(num_objects, rng, SIZES if attempt < _CROWDED else SIZES[:1])
        sides = [_snapped(rng.uniform(*_DIAMETERS[size]) * scale) for _, _, size in looks]
        boxes = _arrange(tiles, sides, world.size, rng)
        if boxes is not None:
            break
    else:
        raise ConfigError(f"{num_objects} objects do not fit beside a digit and a word; lower max_objects")
    fractions: list[Box] = [
        (x1 / world.size, y1 / world.size, x2 / world.size, y2 / world.size) for x1, y1, x2, y2 in boxes
    ]
    slope = (rng.uniform(-14, 14), rng.uniform(-14, 14))
    return Scene(
        side=world.size,
        objects=tuple(Object(*look, box) for look, box in zip(looks, fractions[len(tiles) :], strict=True)),
        digit=Digit(value, index, fractions[0]) if index >= 0 else None,
        word=Word(text, dark, fractions[len(tiles) - 1]) if text else None,
        backdrop=Backdrop(rng.uniform(34, 96), slope, world.noise, rng.getrandbits(32)),
    )


def stream(world: World, seed: int, split: str = "train") -> Iterator[Scene]:
    """Scenes without end and without files. Scene `i` depends on `seed`, `split` and `i` only."""
    for i in count():
        yield sample_scene(world, random.Random(f"{seed}/{split}/{i}"), split)


def place_of(centre: tuple[float, float]) -> str:
    """The cell of the 3 × 3 grid that a point (x, y) is in.

    >>> place_of((0.1, 0.5)), place_of((0.5, 0.9))
    ('left', 'bottom')
    """
    x, y = centre
    return PLACES[min(int(y * 3), 2) * 3 + min(int(x * 3), 2)]


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: uint8[1797, 8, 8] with ink 0 to 255, and their values int64[1797]."""
    from sklearn.datasets import load_digits  # half a second that scenes without digits need not pay

    ink, values = load_digits(return_X_y=True)
    return np.minimum(np.asarray(ink) * 16, 255).astype(np.uint8).reshape(-1, 8, 8), np.asarray(values, dtype=np.int64)


@cache
def word_font(side: int) -> ImageFont.FreeTypeFont:
    """The font of words in a picture `side` pixels wide: 12 pixels at 64."""
    font = ImageFont.load_default(size=round(12 * side / 64))
    assert isinstance(font, ImageFont.FreeTypeFont), "this Pillow was built without FreeType"
    return font


def word_pad(side: int) -> int:
    """Pixels between a word's ink and the edge of its tile."""
    return round(2 * side / 64)


@cache
def _digit_rows(split: str) -> tuple[list[int], ...]:
    """The rows of `load_digits` that `split` may use, by value.

    Blocks of ten rows are dealt out, not single rows: the file counts 0 to 9 over and over, and `row % 10` would
    put most of one digit in one split. About 180 images each go to val and test. Writers are shared between splits:
    the file does not name them.
    """
    if split not in SPLITS:
        raise ConfigError(f"no split {split!r}{nearest(split, SPLITS)}")
    owner = {0: "val", 1: "test"}
    rows: tuple[list[int], ...] = tuple([] for _ in range(10))
    for row, value in enumerate(digit_images()[1]):
        if owner.get(row // 10 % 10, "train") == split:
            rows[value].append(row)
    return rows


def _looks(num_objects: int, rng: random.Random, sizes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Shape, colour and size of each object; no two are equal in all three, so each can be referred to."""
    looks: list[tuple[str, str, str]] = []
    while len(looks) < num_objects:
        shape = rng.choice(looks)[0] if looks and rng.random() < _SAME_AGAIN else rng.choice(SHAPES)
        colour = rng.choice(looks)[1] if looks and rng.random() < _SAME_AGAIN else rng.choice(COLOURS)
        look = (shape, colour, rng.choice(sizes))
        if look not in looks:
            looks.append(look)
    return looks


def _arrange(tiles: list[tuple[float, float]], sides: list[float], side: int, rng: random.Random) -> list[Box] | None:
    """Boxes in pixels of the tiles, then of the square objects; None if they found no room. Largest first."""
    scale = side / 64
    extents = [(w, h, False) for w, h in tiles] + [(d, d, True) for d in sides]
    boxes: dict[int, Box] = {}
    for i in sorted(range(len(extents)), key=lambda i: -extents[i][0] * extents[i][1]):
        box = _spot(extents[i], side, list(boxes.values()), rng, edge=_EDGE * scale, gap=_GAP * scale)
        if box is None:
            return None
        boxes[i] = box
    return [boxes[i] for i in range(len(extents))]


def _spot(
    extent: tuple[float, float, bool], side: int, taken: list[Box], rng: random.Random, *, edge: float, gap: float
) -> Box | None:
    """A free box in pixels after at most 40 tries. Tiles stand on whole pixels, objects keep clear of the grid."""
    w, h, is_object = extent
    for _ in range(40):
        x = edge + rng.random() * (side - w - 2 * edge)
        y = edge + rng.random() * (side - h - 2 * edge)
        x, y = (_snapped(x), _snapped(y)) if is_object else (float(round(x)), float(round(y)))
        if is_object and not (_is_clear((x + w / 2) / side) and _is_clear((y + h / 2) / side)):
            continue
        if all(x + w + gap <= a or c + gap <= x or y + h + gap <= b or d + gap <= y for a, b, c, d in taken):
            return x, y, x + w, y + h
    return None


def _is_clear(position: float) -> bool:
    return min(abs(position - 1 / 3), abs(position - 2 / 3)) > _GRID_CLEARANCE


def _snapped(length: float) -> float:
    """A length on quarters of a pixel, the grid shapes are drawn on: boxes are then exact."""
    return round(length * 4) / 4


@cache
def _word_tile(text: str, side: int) -> tuple[float, float]:
    left, top, right, bottom = word_font(side).getbbox(text)
    return right - left + 2.0 * word_pad(side), bottom - top + 2.0 * word_pad(side)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
