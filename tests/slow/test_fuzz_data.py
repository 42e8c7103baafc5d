"""12,000 malformed rows and media through sources and `data check`: only our errors, no row uncounted. About 25 s.

Hypothesis draws seeds and shapes; the bulk of a batch is then made by `random` from the seed, since drawing every byte
would cost more than checking it. Everything is derandomised: the same rows on every machine.
"""

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quintet.components.roles import ImageSpec
from quintet.data.check import check
from quintet.data.media import image_size, load_image
from quintet.data.sources import FORMATS, open_source
from quintet.errors import DataError
from quintet.values import Ref

pytestmark = pytest.mark.slow

BATCH = 100
T = TypeVar("T")
SEEDS = st.integers(0, 2**64 - 1)


def fuzz(examples: int) -> Callable[..., Any]:
    """The same examples on every run, as slow as they like; a folder is shared between them on purpose."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def judge(path: Path, *, format: str | None, rows: int | None) -> int:
    """Rows that were counted. Every row is either a sample or faulty, and both ways of reading agree on which."""
    report = check(path, format=format)
    assert report.rows == report.good + report.faulty
    assert all(fault.fault and fault.message for fault in report.faults)
    json.dumps(report.to_json())
    source = outcome(lambda: open_source(path, format=format))
    if isinstance(source, DataError):
        assert report.rows == 0
        assert [fault.fault for fault in report.faults] == [source.fault]
        return 0
    assert len(source) == report.rows
    assert rows is None or len(source) == rows
    read = [outcome(partial(source.sample, index)) for index in range(len(source))]
    refused = [each for each in read if isinstance(each, DataError)]
    assert all(each.file and each.row for each in refused)
    assert len(refused) <= report.faulty, "what a source refuses, the check must report"
    return report.rows


def outcome(made: Callable[[], T]) -> T | DataError:
    """What was made, or the error of ours that it ended with."""
    try:
        return made()
    except DataError as error:
        return error


# ---- rows --------------------------------------------------------------------------------------------------------
ODD: list[Any] = [
    *(None, True, 0, -1, 7, 1.5, 1e308, 2**70, "", " ", "\0", "\ud83d", "é", "<image>", "<region>", "<image>\n<image>"),
    *("../a", "/etc/passwd", "a" * 5_000, "http://x/y.png", "data:image/png;base64,AAAA", "data:,", "human", "gpt"),
    *([], [[]], {}, [0, 0, 2, 2], [0.1, 0.1, 0.2, 0.2], {"from": "human"}, {"type": "text"}, {"bytes": None}),
    *("user", ["good.png", 3]),
]  # fmt: skip
KEYS = [
    *("id", "image", "images", "conversations", "messages", "from", "value", "role", "content", "system", "regions"),
    *("type", "text", "image_url", "url", "weight", "loss", "tools", "_x", "source", "", "\ud800", "caption"),
]  # fmt: skip


def good_row(rng: random.Random) -> dict[str, Any]:
    said = [("<image>\nWhat?", "This."), ("And?", "That.")][: rng.randint(1, 2)]
    if rng.random() < 0.5:
        turns = [
            {"from": role, "value": text} for pair in said for role, text in zip(("human", "gpt"), pair, strict=True)
        ]
        return {"id": rng.randint(0, 10**9), "image": "good.png", "conversations": turns}
    turns = [
        {"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    if rng.random() < 0.5:
        parts = [{"type": "image_url", "image_url": {"url": "good.png"}}, {"type": "text", "text": "What?"}]
        return {"messages": [{"role": "user", "content": parts}, *turns[1:]]}
    return {"images": ["good.png"], "messages": turns}


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in list(items) for place in [(value, key), *places(inner)]]


def harm(row: Any, rng: random.Random) -> Any:
    """One to three values of a row replaced, removed, doubled or added."""
    for _ in range(rng.randint(0, 3)):
        if not (found := places(row)):
            return row
        inside, key = rng.choice(found)
        action = rng.randrange(4)
        if action == 0:
            inside[key] = json.loads(json.dumps(rng.choice(ODD)))
        elif action == 1:
            del inside[key]
        elif isinstance(inside, list):
            inside.insert(rng.randint(0, len(inside)), json.loads(json.dumps(rng.choice([inside[key], *ODD]))))
        else:
            inside[rng.choice(KEYS)] = json.loads(json.dumps(rng.choice(ODD)))
    return row


def flip(data: bytes, rng: random.Random, *, most: int = 8) -> bytes:
    """A few bytes changed, cut out, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(changed) + 1)
        action = rng.randrange(6)
        if action <= 2 and at < len(changed):
            changed[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256), changed[at] ^ (1 << rng.randrange(8))))
        elif action == 3:
            del changed[at : at + rng.randrange(1, 20)]
        elif action == 4:
            changed[at:at] = changed[at : at + rng.randrange(1, 20)]
        elif rng.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def line(rng: random.Random) -> bytes:
    text = json.dumps(harm(good_row(rng), rng), ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    return (flip(text, rng, most=3) if rng.random() < 0.3 else text).replace(b"\n", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    return tmp_path


def test_six_thousand_broken_lines_are_counted(folder: Path) -> None:
    done: Counter[str] = Counter()

    @fuzz(60)
    @given(SEEDS)
    def run(seed: int) -> None:
        rng = random.Random(seed)
        # The last is good: a blank line at the end of a file is none.
        rows = [*(line(rng) for _ in range(BATCH - 1)), json.dumps(good_row(rng)).encode()]
        path = folder / "rows.jsonl"
        path.write_bytes(b"\n".join(rows) + b"\n")
        done["rows"] += judge(path, format="llava", rows=BATCH)

    run()
    assert done["rows"] >= 6_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


@fuzz(200)
@given(st.lists(VALUES, max_size=8), st.sampled_from(["llava", "messages", None]))
def test_lists_of_any_json_are_counted(folder: Path, rows: list[Any], format: str | None) -> None:
    path = folder / "rows.json"
    path.write_bytes(json.dumps(rows).encode(errors="surrogatepass"))
    judge(path, format=format, rows=len(rows) if format and "NaN" not in path.read_text(errors="replace") else None)


# ---- whole files -------------------------------------------------------------------------------------------------
def files(folder: Path) -> dict[str, bytes]:
    """One small good file of every format."""
    rng = random.Random(0)
    rows = [{"conversations": good_row(random.Random(n)).get("conversations"), "id": str(n)} for n in range(5)]
    picture = (folder / "good.png").read_bytes()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for n in range(4):
            for ending, content in (("png", picture), ("txt", b"words"), ("json", b'{"status": "success"}')):
                info = tarfile.TarInfo(f"{n}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    columns = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(
            [
                {"id": str(n), "conversations": json.dumps(row["conversations"]), "image": "good.png"}
                for n, row in enumerate(rows)
            ]
        ),
        columns,
    )
    coco = {
        "images": [{"id": 1, "file_name": "good.png"}],
        "annotations": [{"id": n, "image_id": 1, "caption": "x"} for n in range(5)],
    }
    asked = {"data_subtype": "val", "questions": [{"question_id": n, "image_id": n, "question": "?"} for n in range(5)]}
    noted = {
        "annotations": [
            {"question_id": n, "image_id": n, "multiple_choice_answer": "x", "answers": []} for n in range(5)
        ]
    }
    (folder / "v_annotations.json").write_text(json.dumps(noted))
    return {
        "webdataset": archive.getvalue(),
        "parquet": columns.getvalue(),
        "coco": json.dumps(coco).encode(),
        "vqav2": json.dumps(asked).encode(),
        "sharegpt": json.dumps([good_row(rng) for _ in range(5)], indent=1).encode(),
    }


def test_two_thousand_broken_files_of_every_format_are_judged(folder: Path) -> None:
    whole = files(folder)
    done: Counter[str] = Counter()

    @fuzz(40)
    @given(SEEDS)
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(BATCH // 2):
            format = rng.choice(sorted(whole))
            path = folder / ("v_questions.json" if format == "vqav2" else "data")
            content = whole[format]
            if format in ("coco", "vqav2") and rng.random() < 0.6:
                path.write_bytes(json.dumps(harm(json.loads(content), rng)).encode())
            else:
                path.write_bytes(flip(content, rng))
            judge(path, format=rng.choice([None, format, rng.choice(sorted(FORMATS))]), rows=None)
            done["files"] += 1

    run()
    assert done["files"] >= 2_000


# ---- media -------------------------------------------------------------------------------------------------------
def pictures() -> list[bytes]:
    """Small pictures of every format and most modes."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((rgb, format, {}) for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")),
        *((rgb, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        (rgb, "JPEG", {"exif": exif, "progressive": True}),
        (rgb, "PNG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.quantize(), "GIF", {"save_all": True, "append_images": [rgb.quantize()]}),
        (rgb.quantize(), "PNG", {"transparency": 3}),
        *((rgba, format, {}) for format in ("PNG", "WEBP", "TIFF")),
        *((wide, format, {}) for format in ("PNG", "TIFF", "PPM")),
        (Image.fromarray(noise[..., 0].astype(np.float32) / 255), "TIFF", {}),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb.convert("1"), "PNG", {}),
    ]
    found = []
    for image, format, options in made:
        file = io.BytesIO()
        image.save(file, format, **options)
        found.append(file.getvalue())
    return found


def test_four_thousand_broken_pictures_load_or_are_refused() -> None:
    """Also: if the header could be read and the picture too, they agree on the size."""
    good = pictures()
    spec = ImageSpec(size=(8, 8), fit="native", multiple=4)
    done: Counter[str] = Counter()

    @fuzz(40)
    @given(SEEDS)
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(BATCH):
            ref = Ref("fuzzed", data=flip(rng.choice(good), rng))
            try:
                size = image_size(ref)
                loaded = load_image(ref, spec)
            except DataError as error:
                done[error.fault] += 1
            else:
                assert tuple(loaded.shape[1:]) == spec.output_size(*size)
                done["good"] += 1

    run()
    assert sum(done.values()) >= 4_000
    assert done["good"] > 100
    assert done["corrupt-media"] > 100
