"""Pictures: from bytes that may be anything to uint8[3, H, W], or a `DataError` that says why not.

Each kind of file is handled by a rule or refused by name; nothing is guessed, and nothing is only warned about.

| what is found | what is done |
|---|---|
| JPEG (also MPO), PNG, WEBP, GIF, BMP, TIFF, PPM | told by the content; the name's ending plays no role |
| any other format, or no picture at all | `unsupported-format` |
| no such file; not a regular file | `missing-file` |
| zero bytes | `empty-file` |
| over 64 Mpx in the header, or over 512 MiB on disk | `too-large`, before any pixel is decoded |
| sides over 100 : 1 | `extreme-aspect`: a 1 × 10000 strip holds nothing once it is fitted |
| cut short, broken, or anything Pillow raises or *warns* about | `corrupt-media` |
| EXIF orientation | applied, in `image_size` too; a PNG that has it behind the pixels is `corrupt-media` |
| alpha or a transparent colour (RGBA, LA, PA, tRNS) | laid on white (below) |
| palette, 1 bit, LA, YCbCr | RGB |
| CMYK, YCCK | RGB by Pillow's plain formula; colour profiles are not applied (nor does any reference processor) |
| 16-bit grey | value / 257, rounded; Pillow's conversions clip or cut it, depending on the version |
| 32-bit grey | integers by their declared range, floats from 0 to 1; `unknown-range` if exceeded, or all black |
| LAB and other modes | `unsupported-format` |
| several frames or pages | the first |

White, because pictures with alpha are drawn for a white page; dropping alpha, as the reference processors do, shows
whatever colour lies hidden, which is often black, and black on black for a drawing. For these pictures we differ.

Pixels are those of transformers' PIL processors (CLIP, SigLIP, LLaVA-1.5 with padding), but resampled by torch's
8-bit kernel, which is five to nine times faster than Pillow's and rounds its filter more coarsely: at most 2 levels of
255 off, at under 1 % of a photograph's values (tests/unit/test_media.py holds the bound). Columns are scaled before
rows, as Pillow did when the published encoders were trained; since version 13 it turns that round for tall pictures
that lose more height than width ("squash" only), which moves a photograph by up to 6 levels, in the reference too.
JPEG's scaled decoding (`draft`) is not used: it saves a third of the decoding and was up to 28 levels off.
"""

import io
import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from quintet.components.encoders.resize import resized
from quintet.components.roles import ImageSpec
from quintet.data.changes import LATE, changed
from quintet.errors import DataError
from quintet.values import Ref

__all__ = [
    "FORMATS",
    "MAX_ASPECT",
    "MAX_BYTES",
    "MAX_PIXELS",
    "decode_image",
    "fit_image",
    "image_size",
    "load_image",
    "num_frames",
]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_BYTES = 512 * 2**20
MAX_ASPECT = 100

_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAMPLE_FORMAT = 339  # the TIFF tag: 1 unsigned, 2 signed, 3 float

# What Pillow's plugins raise on broken bytes. 170,000 fuzzed pictures raised the first three, TypeError and the bomb;
# the plugins also parse with `struct`, indexing and division, and let those errors through.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


def load_image(ref: Ref, spec: ImageSpec) -> Tensor:
    """The picture as the encoder wants it, uint8[3, H, W] with (H, W) = `spec.output_size(*image_size(ref))`.

    Raises:
        DataError: it cannot be read; `fault` is one of the table above.
    """
    # A copy, because Pillow's own bytes are read-only; channels last, which is what `interpolate` is fast on.
    pixels = torch.from_numpy(np.array(decode_image(ref))).permute(2, 0, 1)
    if not ref.change:
        return fit_image(pixels, spec)
    if ref.change.startswith(LATE):
        return changed(fit_image(pixels, spec), ref.change)
    return fit_image(changed(pixels, ref.change), spec)


def image_size(ref: Ref) -> tuple[int, int]:
    """Height and width in pixels after EXIF orientation, from the header alone.

    Raises:
        DataError: as `load_image`, as far as the header tells.
    """
    with _guard(ref):
        image = _open(ref)
        width, height = image.size
        turned = _orientation(image) in _TURNED
    return (width, height) if turned else (height, width)


def num_frames(ref: Ref) -> int:
    """Frames or pages in the file, of which the first is the picture; 1 for MPO: its others are no frames.

    Raises:
        DataError: as `image_size`.
    """
    with _guard(ref):
        image = _open(ref)
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def decode_image(ref: Ref) -> Image.Image:
    """The whole picture, upright, mode RGB.

    Raises:
        DataError: as `load_image`.
    """
    with _guard(ref):
        image = _open(ref)
        orientation = _orientation(image)
        image.load()
        if image.format == "PNG" and image.getexif().get(_ORIENTATION, 1) != orientation:
            raise DataError(
                "corrupt-media",
                f"{ref.name}: its EXIF orientation stands behind the pixels, where the header does not show it; "
                "save the picture upright",
            )
        pixels = _rgb(image, ref)
        return pixels if orientation == 1 else pixels.transpose(_UPRIGHT[orientation])


def fit_image(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """uint8[3, H, W] at the size and by the fit of `spec`, uint8[3, h, w].

    For "pad" the picture lies in the middle of the smallest canvas of the target's aspect, then the canvas is scaled
    (LLaVA-1.5, `expand2square`). For "crop" it is scaled to cover the target, the long side rounded down, and the
    centre stays (CLIP). For "native" nothing is scaled that fits into `most`: the canvas grows at the right and at the
    bottom.
    """
    height, width = pixels.shape[1:]
    rows, cols = spec.output_size(height, width)
    if spec.fit == "native":
        pixels = _scale(pixels, spec.within(height, width), spec)
        return _canvas(pixels, (rows, cols), (0, 0), spec.background).contiguous()
    if spec.fit == "pad":
        outer = max(height, -(-width * rows // cols)), max(width, -(-height * cols // rows))
        corner = (outer[0] - height) // 2, (outer[1] - width) // 2
        if corner[0]:
            # Columns first, as both kernels do: then the rows of background, which that step leaves as they are, are
            # added to a picture that is narrow already.
            pixels, outer, corner = _scale(pixels, (height, cols), spec), (outer[0], cols), (corner[0], 0)
        if outer[0] * outer[1] > MAX_PIXELS:
            # Only giants: halved (thirded, …) by plain averages, so that a tall strip needs no square of memory.
            return fit_image(_reduce(pixels, math.ceil(math.sqrt(outer[0] * outer[1] / MAX_PIXELS))), spec)
        pixels = _canvas(pixels, outer, corner, spec.background)
    if spec.fit == "crop":
        wide = width * rows >= height * cols
        scaled = (
            (rows, max(cols, int(rows * width / height))) if wide else (max(rows, int(cols * height / width)), cols)
        )
        top, left = (scaled[0] - rows) // 2, (scaled[1] - cols) // 2
        return _scale(pixels, scaled, spec)[:, top : top + rows, left : left + cols].contiguous()
    return _scale(pixels, (rows, cols), spec).contiguous()


# ---- fitting -----------------------------------------------------------------------------------------------------
def _scale(pixels: Tensor, size: tuple[int, int], spec: ImageSpec) -> Tensor:
    return resized(pixels, size, spec.resample)


def _canvas(pixels: Tensor, size: tuple[int, int], corner: tuple[int, int], colour: tuple[int, int, int]) -> Tensor:
    height, width = pixels.shape[1:]
    if (height, width) == size:
        return pixels
    canvas = torch.tensor(colour, dtype=torch.uint8).repeat(*size, 1)
    canvas[corner[0] : corner[0] + height, corner[1] : corner[1] + width] = pixels.permute(1, 2, 0)
    return canvas.permute(2, 0, 1)


def _reduce(pixels: Tensor, factor: int) -> Tensor:
    return F.avg_pool2d(pixels[None].float(), factor, ceil_mode=True)[0].round().to(torch.uint8)


# ---- opening -----------------------------------------------------------------------------------------------------
def _open(ref: Ref) -> Image.Image:
    """The header, read and bounded; no pixel is decoded yet."""
    data = _read(ref)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise DataError(
            "unsupported-format",
            f"{ref.name}: not a picture that can be read (begins with {data[:8]!r}); use one of {', '.join(FORMATS)}",
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            "too-large", f"{ref.name}: {width} × {height} pixels; at most {MAX_PIXELS:,} are decoded, scale it down"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            "extreme-aspect", f"{ref.name}: {width} × {height} pixels; sides may differ {MAX_ASPECT} times at most"
        )
    return image


def _read(ref: Ref) -> bytes:
    if ref.data is None:
        assert ref.path is not None, f"{ref.name}: neither a path nor bytes"
        # A pipe or a device would block for ever.
        if not ref.path.is_file():
            raise DataError("missing-file", f"{ref.name}: no such file ({ref.path})")
        length = os.path.getsize(ref.path) if ref.length is None else ref.length
    else:
        length = len(ref.data)
    if length == 0:
        raise DataError("empty-file", f"{ref.name}: zero bytes; fetch or write it again")
    if length > MAX_BYTES:
        raise DataError("too-large", f"{ref.name}: {length:,} bytes; at most {MAX_BYTES:,} are read")
    return ref.read()


def _orientation(image: Image.Image) -> int:
    """What is left to be turned, 1 … 8, as far as the header tells: asking a PNG for more would decode it."""
    if image.format == "TIFF":  # Pillow gives its size upright and turns it while loading
        return 1
    if image.format == "PNG" and not any("exif" in str(k).lower() or "xmp" in str(k).lower() for k in image.info):
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _UPRIGHT else 1


# ---- colours -----------------------------------------------------------------------------------------------------
def _rgb(image: Image.Image, ref: Ref) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        values = np.array(image, dtype=np.uint16)
        values[values == image.info.get("transparency", -1)] = 65535
        return _grey(values, 65535)
    if image.mode == "I":
        return _integers(image, ref)
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and 0 < values.max() <= 1):
            raise _range(ref, values, "floats from 0 to 1")
        return _grey(values, 1)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode in ("1", "L", "P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise DataError("unsupported-format", f"{ref.name}: colours are {image.mode}; save it as RGB or grey")


def _integers(image: Image.Image, ref: Ref) -> Image.Image:
    """Pillow's mode I: a PGM (before version 11 a PNG) of over 8 bits, in 0 … 65535 already; else a TIFF of 32."""
    values = np.asarray(image)
    if image.format in ("PPM", "PNG"):
        return _grey(values, 65535)
    signed = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,)) in (2, (2,))
    white = 2**31 - 1 if signed else 2**32 - 1
    values = values.astype(np.int64) if signed else values.astype(np.int32).view(np.uint32).astype(np.int64)
    if values.min() < 0 or values.max() < white // 256:
        raise _range(ref, values, f"integers from 0 (black) to {white} (white)")
    return _grey(values, white)


def _grey(values: np.ndarray, white: int) -> Image.Image:
    """Grey of any depth to 8 bits, rounded to the nearest: float64 holds 32-bit integers exactly."""
    scaled = np.rint(values.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _range(ref: Ref, values: np.ndarray, expected: str) -> DataError:
    return DataError(
        "unknown-range",
        f"{ref.name}: grey from {values.min()} to {values.max()}, expected {expected}; save it with 8 or 16 bits",
    )


# ---- Pillow's errors and warnings --------------------------------------------------------------------------------
_warnings_lock = threading.Lock()
_warnings_depth = 0
_warnings_saved = warnings.catch_warnings()


@contextmanager
def _guard(ref: Ref) -> Iterator[None]:
    """Whatever Pillow raises or warns about inside becomes a `DataError` about `ref`."""
    try:
        with _pillow_warnings_raise():
            yield
    except DataError:
        raise
    except _BROKEN as error:
        what = " ".join(str(error).split()) or type(error).__name__
        huge = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        if huge:
            raise DataError("too-large", f"{ref.name}: too many pixels to be opened safely; scale it down") from error
        raise DataError("corrupt-media", f"{ref.name}: cannot be decoded ({what}); repair or remove it") from error


@contextmanager
def _pillow_warnings_raise() -> Iterator[None]:
    """Pillow's warnings raise inside. Filters belong to the process: threads share a change, the last undoes it."""
    global _warnings_depth, _warnings_saved
    with _warnings_lock:
        if _warnings_depth == 0:
            _warnings_saved = warnings.catch_warnings()
            _warnings_saved.__enter__()
            warnings.filterwarnings("error", module=r"PIL\.")
        _warnings_depth += 1
    try:
        yield
    finally:
        with _warnings_lock:
            _warnings_depth -= 1
            if _warnings_depth == 0:
                _warnings_saved.__exit__(None, None, None)
