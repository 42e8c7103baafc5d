"""Pictures of every kind: handled by the rule in `quintet.data.media` or refused by name. About 6 s."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from quintet.components.roles import ImageSpec
from quintet.data import media
from quintet.data.media import decode_image, fit_image, image_size, load_image
from quintet.errors import DataError
from quintet.values import Ref

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = (int(MEAN[0] * 255), int(MEAN[1] * 255), int(MEAN[2] * 255))
NATIVE = ImageSpec(size=(8, 8), fit="native")
SMALL = ImageSpec(size=(8, 8))


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> Ref:
    file = io.BytesIO()
    image.save(file, format, **options)
    return Ref(f"picture.{format.lower()}", data=file.getvalue())


def pixels(ref: Ref) -> np.ndarray:
    return np.asarray(decode_image(ref))


def fault(ref: Ref) -> str:
    """The fault that loading ends with."""
    with pytest.raises(DataError) as caught:
        load_image(ref, SMALL)
    assert ref.name in str(caught.value)
    return caught.value.fault


def photograph(name: str, width: int, height: int) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).resize((width, height))


# ---- fits: equal to the reference processors ---------------------------------------------------------------------
PROCESSORS = {
    "clip": (CLIPImageProcessorPil(), ImageSpec(size=(224, 224), fit="crop", mean=MEAN, std=STD)),
    "siglip": (SiglipImageProcessorPil(), ImageSpec(size=(224, 224), fit="squash")),
    "llava": (
        LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        ImageSpec(size=(336, 336), fit="pad", mean=MEAN, std=STD, background=GREY),
    ),
}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize(
    ("name", "width", "height"),
    [("rocket", 640, 427), ("coffee", 301, 300), ("astronaut", 512, 512), ("chelsea", 100, 67), ("chelsea", 451, 300)],
)
def test_pixels_are_those_of_the_reference_image_processor(kind: str, name: str, width: int, height: int) -> None:
    """Tolerance: 2 levels of 255 at under 1 % of the values, because torch's 8-bit filter has 16-bit weights.

    Measured worst case of these 15: 2 levels, at 0.46 %. A crop or padding off by one pixel moves tens of levels.
    """
    processor, spec = PROCESSORS[kind]
    ref = encoded(photograph(name, width, height), "JPEG", quality=92)
    expected = processor(Image.open(io.BytesIO(ref.read())), return_tensors="pt")["pixel_values"][0]
    std = torch.tensor(spec.std)[:, None, None]
    ours = (load_image(ref, spec).float() / 255 - torch.tensor(spec.mean)[:, None, None]) / std
    levels = ((ours - expected) * std * 255).abs()
    assert float(levels.max()) <= 2.01
    assert float((levels > 0.5).float().mean()) < 0.01


@pytest.mark.parametrize("kind", ["clip", "llava"])
@pytest.mark.parametrize("name", ["rocket", "coffee"])
def test_tall_pictures_are_fitted_like_wide_ones(kind: str, name: str) -> None:
    """Turned by 90°: the same bound as above. Measured worst case: 1 level, at 0.35 %."""
    processor, spec = PROCESSORS[kind]
    picture = photograph(name, 500, 333).transpose(Image.Transpose.ROTATE_90)
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    std = torch.tensor(spec.std)[:, None, None]
    ours = (load_image(encoded(picture), spec).float() / 255 - torch.tensor(spec.mean)[:, None, None]) / std
    levels = ((ours - expected) * std * 255).abs()
    assert float(levels.max()) <= 2.01
    assert float((levels > 0.5).float().mean()) < 0.01


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_noise_is_scaled_as_by_pillow_with_columns_before_rows(resample: str) -> None:
    """Black and white noise is the hardest case. Measured worst case: 2 levels, at 1.13 % of the values."""
    generator = np.random.default_rng(0)
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[resample]
    for height, width in [(640, 480), (100, 50), (33, 1000), (500, 7), (1, 1), (7, 7)]:
        noise = generator.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
        # In two calls: Pillow 13 scales rows first where the height shrinks much more than the width.
        expected = np.asarray(Image.fromarray(noise).resize((224, height), method).resize((224, 200), method))
        spec = ImageSpec(size=(200, 224), resample="bicubic" if resample == "bicubic" else "bilinear")
        ours = fit_image(torch.from_numpy(noise).permute(2, 0, 1), spec).permute(1, 2, 0).numpy()
        difference = np.abs(ours.astype(int) - expected.astype(int))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.02


def test_padding_goes_around_the_middle_and_has_the_background_colour() -> None:
    wide = torch.full((3, 2, 4), 200, dtype=torch.uint8)
    spec = ImageSpec(size=(4, 4), fit="pad", background=(1, 2, 3))
    fitted = fit_image(wide, spec)
    assert fitted[:, 1:3].unique().tolist() == [200]
    assert fitted[:, 0, 0].tolist() == fitted[:, 3, 3].tolist() == [1, 2, 3]
    assert fit_image(wide.mT, spec).equal(fitted.mT)


def test_a_crop_keeps_the_centre() -> None:
    columns = torch.tensor([9, 5, 5, 9], dtype=torch.uint8).expand(3, 2, 4)
    assert fit_image(columns, ImageSpec(size=(2, 2), fit="crop")).unique().tolist() == [5]


def test_a_native_picture_is_not_scaled_but_grows_right_and_down() -> None:
    spec = ImageSpec(size=(8, 8), fit="native", multiple=4, background=(7, 7, 7))
    fitted = fit_image(torch.full((3, 5, 8), 200, dtype=torch.uint8), spec)
    assert fitted.shape == (3, 8, 8)
    assert fitted[:, :5].unique().tolist() == [200]
    assert fitted[:, 5:].unique().tolist() == [7]


@pytest.mark.parametrize("fit", ["pad", "crop", "squash", "native"])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (8, 8), (13, 40)])
def test_every_fit_gives_the_promised_size(fit: str, size: tuple[int, int]) -> None:
    spec = ImageSpec.from_json(ImageSpec(size=(10, 6), multiple=4).to_json() | {"fit": fit})
    fitted = fit_image(torch.zeros(3, *size, dtype=torch.uint8), spec)
    assert fitted.shape == (3, *spec.output_size(*size))
    assert fitted.dtype == torch.uint8
    assert fitted.is_contiguous()


def test_a_tall_strip_is_padded_without_a_square_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of 10,000 pixels stands for the real one; the strip of 400 × 80 would need 160,000."""
    monkeypatch.setattr(media, "MAX_PIXELS", 10_000)
    fitted = fit_image(torch.full((3, 400, 80), 200, dtype=torch.uint8), ImageSpec(size=(50, 50), fit="pad"))
    assert fitted[:, :, 25].unique().tolist() == [200]
    assert fitted[:, :, 0].unique().tolist() == [0]


# ---- EXIF --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(format: str, orientation: int) -> None:
    """The stored picture is the upright one, turned by the inverse of what the tag asks for."""
    upright = Image.new("RGB", (40, 20), "black")
    upright.paste("white", (0, 0, 20, 10))
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    ref = encoded(stored, format, exif=exif)
    assert image_size(ref) == (20, 40)
    seen = pixels(ref)
    assert seen.shape == (20, 40, 3)
    assert seen[3:7, 3:17].min() > 200
    assert seen[13:, 23:].max() < 50
    assert load_image(ref, NATIVE).shape == (3, 20, 40)


def test_an_orientation_of_nine_means_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert image_size(encoded(Image.new("RGB", (4, 2)), "JPEG", exif=exif)) == (2, 4)


def test_a_png_with_its_orientation_behind_the_pixels_is_refused() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.new("RGB", (4, 2))).read()
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert fault(Ref("late.png", data=plain[:-12] + late + plain[-12:])) == "corrupt-media"


# ---- colours -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_on_white(format: str) -> None:
    """Half transparent black on white is (0 · 128 + 255 · 127) / 255 = 127."""
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (10, 20, 30, 0))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert pixels(encoded(image, format, **options))[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


def test_grey_with_alpha_lies_on_white() -> None:
    image = Image.new("LA", (2, 1), (50, 255))
    image.putpixel((1, 0), (50, 0))
    assert pixels(encoded(image))[0].tolist() == [[50] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_colour_lies_on_white(mode: str, format: str) -> None:
    if format == "GIF" and mode == "RGB":
        image, key = Image.new("P", (2, 1), 0), 0
        image.putpalette([0, 0, 0, 9, 9, 9])
    else:
        image, key = Image.new(mode, (2, 1)), {"L": 0, "RGB": (0, 0, 0), "P": 0}[mode]
    image.putpixel((1, 0), {"RGB": (9, 9, 9)}.get(image.mode, 1))
    assert pixels(encoded(image, format, transparency=key))[0, 0].tolist() == [255] * 3
    assert pixels(encoded(image, format, transparency=key))[0, 1].max() < 10


def test_a_transparent_16_bit_grey_lies_on_white() -> None:
    image = Image.fromarray(np.array([[1000, 65535, 0]], dtype=np.uint16))
    assert pixels(encoded(image, transparency=1000))[0, :, 0].tolist() == [255, 255, 0]


def test_palette_bits_and_other_colours_become_rgb() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixels(encoded(palette))[0, 0].tolist() == [10, 20, 30]
    assert pixels(encoded(Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255] * 3
    assert pixels(encoded(Image.new("L", (1, 1), 77), "BMP"))[0, 0].tolist() == [77] * 3
    assert pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PPM"))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    """Full cyan is no red: (255, 0, 0, 0) → (0, 255, 255), within JPEG's losses."""
    seen = pixels(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), format))[4, 4].astype(int)
    assert np.abs(seen - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format: str) -> None:
    """By hand: 257 is level 1, 32768 / 257 = 127.5 → 128 (to even), 300 / 257 = 1.17 → 1, 65535 is white."""
    image = Image.fromarray(np.array([[0, 257, 300, 32768, 65535]], dtype=np.uint16))
    assert pixels(encoded(image, format))[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_a_16_bit_pgm_is_scaled_by_its_own_maximum() -> None:
    raw = b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000)
    assert pixels(Ref("a.pgm", data=raw))[0, :, 0].tolist() == [0, 128, 255]


def test_32_bit_grey_is_scaled_by_its_declared_range_or_refused() -> None:
    whole = Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32))
    assert pixels(encoded(whole, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    share = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert pixels(encoded(share, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    # Depth in millimetres would be all black, negative numbers have no level, heights in metres no known white.
    assert fault(encoded(Image.fromarray(np.array([[0, 4000]], dtype=np.int32)), "TIFF")) == "unknown-range"
    assert fault(encoded(Image.fromarray(np.array([[-5, 2**31 - 1]], dtype=np.int32)), "TIFF")) == "unknown-range"
    assert fault(encoded(Image.fromarray(np.array([[0, 7.5]], dtype=np.float32)), "TIFF")) == "unknown-range"
    assert fault(encoded(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF")) == "unknown-range"


def test_lab_is_refused() -> None:
    assert fault(encoded(Image.new("LAB", (4, 4)), "TIFF")) == "unsupported-format"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    ref = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    red, _, blue = pixels(ref)[8, 8]
    assert red > 200 > 50 > blue


# ---- what is refused ---------------------------------------------------------------------------------------------
def test_the_content_tells_the_format_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (3, 2), "red").save(path, "PNG")
    assert image_size(Ref("picture.jpg", path)) == (2, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(format: str, share: float) -> None:
    """Photographs, so that the data is long and no header ends the cut."""
    whole = encoded(
        photograph("coffee", 200, 100).quantize() if format == "GIF" else photograph("coffee", 200, 100), format
    )
    content = whole.read()
    assert fault(Ref("cut", data=content[: int(share * len(content))])) in ("corrupt-media", "unsupported-format")


def test_missing_empty_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>404</html>")
    assert fault(Ref("none.png", tmp_path / "none.png")) == "missing-file"
    assert fault(Ref("folder.png", tmp_path)) == "missing-file"
    assert fault(Ref("empty.png", tmp_path / "empty.png")) == "empty-file"
    assert fault(Ref("page.png", tmp_path / "page.png")) == "unsupported-format"
    assert fault(Ref("bytes.png", data=b"")) == "empty-file"
    assert fault(encoded(Image.new("RGB", (4, 4)), "ICO")) == "unsupported-format"


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """A PNG header of 50,000 × 50,000 pixels and no data: decoding would ask for 7.5 GB."""

    def bomb(side: int) -> Ref:
        head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        data = b"IDAT" + zlib.compress(b"\0" * 100)
        chunks += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        return Ref("bomb.png", data=b"\x89PNG\r\n\x1a\n" + chunks)

    for side in (8_001, 10_000, 50_000):  # over ours, over Pillow's warning, over Pillow's error
        assert fault(bomb(side)) == "too-large"
        with pytest.raises(DataError) as caught:
            image_size(bomb(side))
        assert caught.value.fault == "too-large"


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.bmp"
    with path.open("wb") as file:
        file.truncate(media.MAX_BYTES + 1)  # a hole: it takes no room on disk
    assert fault(Ref("huge.bmp", path)) == "too-large"


def test_a_strip_of_one_by_ten_thousand_is_refused_and_one_by_hundred_is_not() -> None:
    assert fault(encoded(Image.new("RGB", (10_000, 1)))) == "extreme-aspect"
    assert fault(encoded(Image.new("RGB", (1, 10_000)))) == "extreme-aspect"
    assert load_image(encoded(Image.new("RGB", (100, 1))), SMALL).shape == (3, 8, 8)


def test_what_pillow_warns_about_is_refused() -> None:
    """EXIF whose directory promises more than there is: Pillow would warn and go on."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03"
    ref = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    assert fault(ref) == "corrupt-media"


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    """Filters belong to the process: overlapping changes that undo each other out of order would stay."""
    before = list(warnings.filters)
    good, bad = encoded(photograph("chelsea", 60, 40)), Ref("bad", data=b"\x89PNG\r\n\x1a\n")
    errors: list[DataError] = []

    def work() -> None:
        for _ in range(20):
            load_image(good, SMALL)
            try:
                load_image(bad, SMALL)
            except DataError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 80
    assert warnings.filters == before


def test_a_slice_of_a_file_is_read_as_a_picture_of_its_own(tmp_path: Path) -> None:
    first, second = encoded(Image.new("RGB", (3, 2))).read(), encoded(Image.new("RGB", (5, 4))).read()
    path = tmp_path / "two.bin"
    path.write_bytes(first + second)
    assert image_size(Ref("1.png", path, 0, len(first))) == (2, 3)
    assert image_size(Ref("2.png", path, len(first), len(second))) == (4, 5)
