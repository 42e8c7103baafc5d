"""Pixels of a scene: the same ones every time, about 0.3 ms for 64 × 64 on one core.

Each shape is drawn four times too large on a small mask of its own and averaged down; the whole picture never is large.
Digits and words are drawn at their own size, on whole pixels, because that is easier to read.
"""

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw

from quintet.data.scenes.vocabulary import RGB
from quintet.data.scenes.world import Box, Digit, Object, Scene, Word, digit_images, word_font, word_pad

__all__ = ["render"]

_FINE = 4
_TILE_DARK, _TILE_LIGHT, _INK_DARK, _INK_LIGHT = 14, 226, 8, 246


def render(scene: Scene) -> Image.Image:
    """The picture, RGB, `scene.side` pixels square."""
    picture = Image.fromarray(_ground(scene)).convert("RGB")
    for each in scene.objects:
        _draw_object(picture, each)
    if scene.digit:
        _draw_digit(picture, scene.digit)
    if scene.word:
        _draw_word(picture, scene.word)
    return _with_noise(picture, scene) if scene.backdrop.noise else picture


def _ground(scene: Scene) -> np.ndarray:
    """uint8[side, side]: the shade with its slope."""
    ramp = np.linspace(-0.5, 0.5, scene.side, dtype=np.float32)
    right, down = scene.backdrop.slope
    return np.clip(scene.backdrop.shade + right * ramp[None, :] + down * ramp[:, None], 0, 255).astype(np.uint8)


def _with_noise(picture: Image.Image, scene: Scene) -> Image.Image:
    """Grey noise over all. The raw stream of PCG64 never changes between NumPy versions; its distributions may."""
    num = scene.side * scene.side
    raw = np.random.PCG64(scene.backdrop.seed).random_raw((num + 7) // 8).astype("<u8").view(np.uint8)[:num]
    noise = _levels(scene.backdrop.noise)[raw].reshape(scene.side, scene.side, 1)
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


@cache
def _levels(noise: float) -> np.ndarray:
    """int16[256]: normal noise as a function of a uniform byte."""
    return np.array([round(noise * NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], dtype=np.int16)


def _draw_object(picture: Image.Image, each: Object) -> None:
    x1, y1, x2, y2 = (round(v * picture.width * _FINE) for v in each.box)
    left, top = x1 // _FINE, y1 // _FINE
    mask = _mask(each.shape, (x1 - left * _FINE, y1 - top * _FINE), (x2 - x1, y2 - y1))
    picture.paste(RGB[each.colour], (left, top), mask)


def _mask(shape: str, start: tuple[int, int], extent: tuple[int, int]) -> Image.Image:
    """How much of each pixel `shape` covers; `start` and `extent` are in quarters of a pixel."""
    (x, y), (w, h) = start, extent
    fine = Image.new("L", (-(-(x + w) // _FINE) * _FINE, -(-(y + h) // _FINE) * _FINE))
    draw = ImageDraw.Draw(fine)
    if shape == "circle":
        draw.ellipse((x, y, x + w - 1, y + h - 1), fill=255)
    else:
        draw.polygon([(x + u * (w - 1), y + v * (h - 1)) for u, v in _OUTLINES[shape]], fill=255)
    return fine.reduce(_FINE)


def _star() -> list[tuple[float, float]]:
    """Five points, stretched to fill the unit square exactly: its box is then tight."""
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    points = [
        ((1 if i % 2 == 0 else 0.42) * math.cos(a), (1 if i % 2 == 0 else 0.42) * math.sin(a))
        for i, a in enumerate(angles)
    ]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]


_ARM = (0.33, 0.67)
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "cross": [
        (_ARM[0], 0), (_ARM[1], 0), (_ARM[1], _ARM[0]), (1, _ARM[0]), (1, _ARM[1]), (_ARM[1], _ARM[1]),
        (_ARM[1], 1), (_ARM[0], 1), (_ARM[0], _ARM[1]), (0, _ARM[1]), (0, _ARM[0]), (_ARM[0], _ARM[0]),
    ],
    "star": _star(),
}  # fmt: skip


def _draw_digit(picture: Image.Image, digit: Digit) -> None:
    x1, y1, x2, y2 = _pixels(digit.box, picture.width)
    ink = Image.fromarray(digit_images()[0][digit.index])
    margin = max(1, (x2 - x1) // 18)
    ink = ink.resize((x2 - x1 - 2 * margin, y2 - y1 - 2 * margin), Image.Resampling.BICUBIC)
    picture.paste((_TILE_DARK,) * 3, (x1, y1, x2, y2))
    picture.paste((_INK_LIGHT,) * 3, (x1 + margin, y1 + margin), ink)


def _draw_word(picture: Image.Image, word: Word) -> None:
    x1, y1, x2, y2 = _pixels(word.box, picture.width)
    tile, ink = (_TILE_LIGHT, _INK_DARK) if word.dark else (_TILE_DARK, _INK_LIGHT)
    font, pad = word_font(picture.width), word_pad(picture.width)
    left, top, _, _ = font.getbbox(word.text)
    picture.paste((tile,) * 3, (x1, y1, x2, y2))
    ImageDraw.Draw(picture).text((x1 + pad - left, y1 + pad - top), word.text, fill=(ink,) * 3, font=font)


def _pixels(box: Box, side: int) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (round(v * side) for v in box)
    return x1, y1, x2, y2
