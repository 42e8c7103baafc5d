"""The words of Scenes: every colour, shape, size, place and written word that a picture can hold.

These tables are the whole vocabulary of the ground truth: answers, captions and metrics are built from them alone.
"""

__all__ = [
    "COLOURS",
    "OBJECTS",
    "PLACES",
    "RGB",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "WORDS",
    "indefinite",
    "located",
    "phrase",
]

RGB: dict[str, tuple[int, int, int]] = {
    "red": (226, 32, 38),
    "green": (36, 178, 52),
    "blue": (44, 84, 255),
    "yellow": (252, 224, 36),
    "purple": (176, 52, 220),
    "orange": (255, 132, 12),
    "cyan": (44, 222, 236),
    "white": (248, 248, 248),
}
COLOURS = tuple(RGB)
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""A 3 × 3 grid over the picture, row by row."""

SPLITS = ("train", "val", "test")

_WORDS = (
    "apple bear bird boat book bread cake chair cloud corn desk door duck fire fish frog hand jump key king "
    "lamp leaf milk moon pen rain river road rope ship snow spoon stone sun tiger tree wind wolf yard zebra"
)
WORDS = tuple(_WORDS.split())

OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Every kind of object as text, 8 × 6 of them."""


def indefinite(noun: str) -> str:
    """`noun` with its article.

    >>> indefinite("orange star"), indefinite("small star")
    ('an orange star', 'a small star')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def located(place: str) -> str:
    """`place` with the preposition it takes.

    >>> located("top left"), located("left"), located("middle")
    ('at the top left', 'on the left', 'in the middle')
    """
    preposition = {"middle": "in", "left": "on", "right": "on"}.get(place, "at")
    return f"{preposition} the {place}"


def phrase(items: list[str]) -> str:
    """`items` as one enumeration.

    >>> phrase(["a red circle", "a star", "a cross"])
    'a red circle, a star and a cross'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
