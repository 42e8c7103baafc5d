"""How places in a picture are spelt: boxes and points as text, both ways, as data of a template.

A `Region` is in shares of the picture as it is in its file. A format says how many numbers stand where, in which unit,
and in which frame: systems that pad pictures to a square count on the padded square, Fuyu counts pixels.
`parse(format(r))` gives `r` back to the precision of the format, and `format(parse(t))` gives `t`. What a model writes
may be anything: text that is no region of this format reads as none, and never raises.

    <ref>the dog</ref><box>(12,40),(500,730)</box>
    └──── phrase ────┘└─── group ───────────────┘      numbers in a point, points in a place, places in a group
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from quintet.config.base import Config
from quintet.data.frame import Frame
from quintet.errors import ConfigError, DataError
from quintet.values import Region

__all__ = ["Bins", "Numbers", "RegionFormat"]

Size = tuple[int, int]
"""Height and width of the picture in its file; only their ratio matters, except to formats that count pixels."""

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)"
_NEARLY = 1e-9  # decimals are not exact: 0.29 × 100 is under 29


@dataclass(frozen=True, kw_only=True)
class RegionFormat(Config):
    """What all formats share; `Numbers` and `Bins` say how one place is written."""

    phrase: Frame = Frame()
    """Around the words that name a region (`Region.phrase`), which stand before it."""
    group: Frame = Frame()
    """Around all places of one phrase."""
    place: Frame = Frame()
    """Around each place."""
    dot: Frame | None = None
    """Around a point, where that is not as around a box."""
    also: str = ""
    """Between places of one phrase."""
    frame: Literal["picture", "square", "pixels"] = "picture"
    """What numbers count on: shares of the picture, or of the square that it is padded to, evenly on both sides; or
    pixels of the picture, made smaller until it fits into `within`."""
    within: tuple[int, int] = (1080, 1920)
    """Height and width, in pixels."""
    outline: Literal["refuse", "bound", "write"] = "refuse"
    """Scribbles and masks: refused, written as the box around them, or point by point."""
    added: tuple[str, ...] = ()
    """Special tokens that the format adds to the tokenizer."""

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Every token that is added to the tokenizer."""
        return self.added

    def starter(self) -> Self:
        """The format for the small pictures of the starter parts."""
        return self

    def format(self, regions: Sequence[Region], *, size: Size = (1, 1)) -> str:
        """The places of one phrase as text, without the phrase: `Template` writes that, as plain words.

        Raises:
            DataError: a scribble or a mask, if the format has no spelling for them.
        """
        return self.group.around(self.also.join(self._one(self._points(region, size)) for region in regions))

    def parse(self, text: str, *, size: Size = (1, 1)) -> list[Region]:
        """The regions in `text`, in order; those that are malformed or have no area are left out."""
        found: list[Region] = []
        for match in re.finditer(self._pattern(), text, re.DOTALL):
            phrase = (match["phrase"] or "").strip() if self.phrase.before else ""
            for place in re.finditer(self._places(f"({self._place()})"), match["places"]):
                inner = next(filter(None, place.groups()))
                if region := _region(self._back(self._read(inner), size), phrase):
                    found.append(region)
        return found

    def _one(self, points: tuple[float, ...]) -> str:
        frame = self.dot if self.dot and len(points) == 2 else self.place
        return frame.around(self._write(points))

    def _points(self, region: Region, size: Size) -> tuple[float, ...]:
        points = region.points
        if region.kind == "mask" or (region.kind == "points" and len(points) > 2):
            if self.outline == "refuse":
                raise DataError(
                    "unsupported-region", f"this template spells boxes and points, no {region.kind} of several points"
                )
            points = points if self.outline == "write" else region.bounds
        if self.frame == "square":
            return _framed(points, size)
        return _times(points, self._fitted(size)) if self.frame == "pixels" else points

    def _back(self, points: tuple[float, ...], size: Size) -> tuple[float, ...]:
        """From numbers of the frame to shares of the picture."""
        if self.frame == "square":
            return _framed(points, size, back=True)
        height, width = self._fitted(size) if self.frame == "pixels" else (1.0, 1.0)
        return _times(points, (1 / height, 1 / width))

    def _fitted(self, size: Size) -> tuple[float, float]:
        factor = min(1.0, *(most / side for most, side in zip(self.within, size, strict=True)))
        return size[0] * factor, size[1] * factor

    def _places(self, place: str) -> str:
        """The pattern of a place with what stands around it."""
        frames = (self.place, self.dot) if self.dot else (self.place,)
        return "(?:" + "|".join(_around(frame, place) for frame in frames) + ")"

    def _pattern(self) -> str:
        place, also = self._places(self._place()), rf"\s*{_literal(self.also)}\s*"
        name = rf"(?:{_literal(self.phrase.before)}(?P<phrase>.*?){_literal(self.phrase.after)}\s*)?"
        # Numbers with nothing between two places would be cut anywhere: "0.12" as 0 and .12.
        more = f"(?:{also}{place})*" if self.also or self.place.before else ""
        places = f"(?P<places>{place}{more})"
        return (name if self.phrase.before else "") + _around(self.group, places)

    def _place(self) -> str:
        """The pattern of one place, without groups that capture."""
        raise NotImplementedError

    def _write(self, points: tuple[float, ...]) -> str:
        raise NotImplementedError

    def _read(self, text: str) -> tuple[float, ...]:
        """Shares of one place; at most four numbers unless outlines are written."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Numbers(RegionFormat):
    """x and y of each corner as numbers: `[0.123,0.456,0.789,0.999]`, `{<12><34><56><78>}`, `(12,34),(56,78)`."""

    scale: float = 1.0
    """What a side is long, or a pixel, in the unit of the numbers."""
    highest: float = 1.0
    """The largest number there is: 999 in [0, 1000)."""
    decimals: int = 0
    digits: int = 1
    """Digits at least, zeros in front."""
    rounding: Literal["nearest", "down"] = "nearest"
    least: int = 2
    """Numbers that read as a place at least: where nothing stands around them, any text has two."""
    number: Frame = Frame()
    comma: str = ","
    """Between x and y."""
    order: Literal["xy", "yx"] = "xy"
    """Which of the two comes first."""
    point: Frame = Frame()
    between: str = ","
    """Between points."""

    def __post_init__(self) -> None:
        if not 0 < self.highest <= (self.scale * max(self.within) if self.frame == "pixels" else self.scale):
            raise ConfigError(
                f"the highest number is {self.highest}, a side is {self.scale}; expected 0 < highest ≤ side"
            )

    def _write(self, points: tuple[float, ...]) -> str:
        written = [self.number.around(self._number(value)) for value in self._ordered(points)]
        pairs = [self.comma.join(written[i : i + 2]) for i in range(0, len(written), 2)]
        return self.between.join(self.point.around(pair) for pair in pairs)

    def _number(self, share: float) -> str:
        value = share * self.scale
        if self.rounding == "down":
            step = 10.0**-self.decimals
            value = math.floor(value / step + _NEARLY) * step
        return f"{min(max(value, 0.0), self.highest):0{self.digits}.{self.decimals}f}"

    def _place(self) -> str:
        number = _around(self.number, rf"\s*{_NUMBER}\s*")
        point = _around(self.point, f"{number}{_literal(self.comma)}{number}")
        return rf"{point}(?:\s*{_literal(self.between)}\s*{point})*"

    def _read(self, text: str) -> tuple[float, ...]:
        number = _around(self.number, rf"\s*({_NUMBER})\s*")
        shares = tuple(float(value) / self.scale for value in re.findall(number, text))
        known = self.least <= len(shares) <= 4 or (len(shares) > 4 and self.outline == "write")
        return self._ordered(shares) if known else ()

    def _ordered(self, points: tuple[float, ...]) -> tuple[float, ...]:
        pairs = zip(points[::2], points[1::2], strict=True)
        return points if self.order == "xy" else tuple(value for x, y in pairs for value in (y, x))


@dataclass(frozen=True, kw_only=True)
class Bins(RegionFormat):
    """A token for each bin of a grid: that of a box's upper left corner, then that of its lower right (Kosmos-2).

    A box reads as from the middle of one bin to the middle of the other, or as whole bins where the two stand in one
    row or column, as in Kosmos-2's code; so corners are off by at most one bin. A point is the bin it lies in, twice.
    """

    side: int = 32
    token: str = "<patch_index_{:04d}>"
    """How a bin's number is spelt, counted in raster order from 0."""
    apart: float = 0.0
    """How far apart their rows of the vocabulary begin, near bins alike; in deviations of others. 0: all the same."""

    def starter(self) -> Self:
        """A bin is four of 64 pixels: a box as it reads shares at least half with its own, and a token is met often.

        In minutes 256 rows that begin the same do not come apart (docs/log.md).
        """
        return replace(self, side=min(self.side, 16), apart=1.0)

    @property
    def bins(self) -> tuple[str, ...]:
        """A token a bin, in raster order."""
        return tuple(self.token.format(i) for i in range(self.side**2))

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The format's tags, and a token a bin."""
        return (*self.added, *self.bins)

    def _write(self, points: tuple[float, ...]) -> str:
        n = self.side
        if len(points) != 4:
            points = (*points[:2], *points[:2])
        left, top = (min(math.floor(v * n), n - 1) for v in points[:2])
        right, bottom = (math.ceil(v * n - 1) for v in points[2:4])
        right, bottom = max(left, right), max(top, bottom)
        return self.token.format(top * n + left) + self.token.format(bottom * n + right)

    def _place(self) -> str:
        before, _, after = self.token.partition("{:04d}")
        token = rf"{re.escape(before)}\d{{4}}{re.escape(after)}"
        return token + token

    def _read(self, text: str) -> tuple[float, ...]:
        n = self.side
        first, last = map(int, re.findall(r"\d{4}", text))
        if max(first, last) >= n * n:
            return ()
        (top, left), (bottom, right) = divmod(first, n), divmod(last, n)
        if left == right or top == bottom:
            return left / n, top / n, (right + 1) / n, (bottom + 1) / n
        return (left + 0.5) / n, (top + 0.5) / n, (right + 0.5) / n, (bottom + 0.5) / n


# ---- geometry ----------------------------------------------------------------------------------------------------
def _framed(points: tuple[float, ...], size: Size, *, back: bool = False) -> tuple[float, ...]:
    """Shares of the picture as shares of the square that it is padded to, or `back`."""
    longest = max(size)
    made: list[float] = []
    for i, value in enumerate(points):
        side = size[1 - i % 2]
        margin = (longest - side) / 2
        made.append((value * longest - margin) / side if back else (value * side + margin) / longest)
    return tuple(made)


def _times(points: tuple[float, ...], sides: tuple[float, float]) -> tuple[float, ...]:
    """X times the width, y times the height."""
    return tuple(value * sides[1 - i % 2] for i, value in enumerate(points))


def _region(points: tuple[float, ...], phrase: str) -> Region | None:
    """A region of the picture; None if these numbers are none."""
    if not points or not all(map(math.isfinite, points)):
        return None
    if len(points) == 2:
        return Region("points", points, phrase)
    if len(points) > 4:
        return Region("mask", points, phrase)
    area = len(points) == 4 and points[0] < points[2] and points[1] < points[3]
    return Region("box", points, phrase) if area else None


# ---- patterns ----------------------------------------------------------------------------------------------------
def _literal(text: str) -> str:
    return re.escape(text.strip())


def _around(frame: Frame, pattern: str) -> str:
    return _literal(frame.before) + pattern + _literal(frame.after)
