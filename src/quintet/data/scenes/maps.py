"""What is in a scene, and labels on a grid of cells, for an encoder that has never read a word.

A thing belongs to the cell its centre is in. No two things overlap, so with 8 cells or more to a side none share one.
"""

import numpy as np

from quintet.data.scenes.vocabulary import COLOURS, SHAPES, SIZES, WORDS
from quintet.data.scenes.world import Box, Scene

__all__ = ["dense_labels", "things"]


def things(scene: Scene) -> list[tuple[str, Box]]:
    """The name, without spaces, and the box of everything in the picture."""
    found = [(f"{each.size}{each.colour}{each.shape}", each.box) for each in scene.objects]
    found += [(f"digit{scene.digit.value}", scene.digit.box)] if scene.digit else []
    found += [(f"word{scene.word.text}", scene.word.box)] if scene.word else []
    return found


def dense_labels(scene: Scene, cells: int = 8) -> dict[str, np.ndarray]:
    """What each cell holds; −1 where it holds nothing.

    `colour`, `shape`, `size`, `digit` and `word` are int64[cells, cells], known at centres only: indices into
    `COLOURS`, `SHAPES`, `SIZES`, the digit's value, an index into `WORDS`. `cover_colour` and `cover_shape` are known
    at every cell whose middle lies in an object's box. `box` is float32[cells, cells, 4] at the centre of anything.
    """
    names = ("colour", "shape", "size", "digit", "word", "cover_colour", "cover_shape")
    labels: dict[str, np.ndarray] = {name: np.full((cells, cells), -1, dtype=np.int64) for name in names}
    labels["box"] = np.full((cells, cells, 4), -1, dtype=np.float32)
    for _, box in things(scene):
        labels["box"][_cell(box, cells)] = box
    for each in scene.objects:
        cell, covered = _cell(each.box, cells), _covered(each.box, cells)
        labels["size"][cell] = SIZES.index(each.size)
        labels["colour"][cell] = labels["cover_colour"][covered] = COLOURS.index(each.colour)
        labels["shape"][cell] = labels["cover_shape"][covered] = SHAPES.index(each.shape)
    if scene.digit:
        labels["digit"][_cell(scene.digit.box, cells)] = scene.digit.value
    if scene.word:
        labels["word"][_cell(scene.word.box, cells)] = WORDS.index(scene.word.text)
    return labels


def _cell(box: Box, cells: int) -> tuple[int, int]:
    """Row and column of the cell that the centre of `box` is in."""
    x1, y1, x2, y2 = box
    return int((y1 + y2) / 2 * cells), int((x1 + x2) / 2 * cells)


def _covered(box: Box, cells: int) -> tuple[slice, slice]:
    """Rows and columns of the cells whose middle lies in `box`; on its left or top edge counts as in."""
    x1, y1, x2, y2 = box
    middles = (np.arange(cells) + 0.5) / cells
    left, right = np.searchsorted(middles, (x1, x2)).tolist()
    top, bottom = np.searchsorted(middles, (y1, y2)).tolist()
    return slice(top, bottom), slice(left, right)
