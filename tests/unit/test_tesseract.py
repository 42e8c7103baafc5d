"""The OCR expert: what the engine is given, what is taken of it, and an engine that fails. About 5 s."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from conftest import picture_rows
from quintet.components.experts.tesseract import Tesseract
from quintet.errors import ConfigError, DataError
from quintet.lab.run import Job, train

HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
FAKE = f"""#!{sys.executable}
import os, struct, sys, time
if sys.argv[1:] == ["--version"]:
    print("tesseract 9.9.9"); sys.exit()
data = sys.stdin.buffer.read()
assert data[:8] == b"\\x89PNG\\r\\n\\x1a\\n"
width, height = struct.unpack(">II", data[16:24])
mode = os.environ.get("FAKE_MODE", "")
if mode == "fail":
    print("Error opening data file", "Failed loading language 'xxx'", sep="\\n", file=sys.stderr); sys.exit(1)
if mode == "slow":
    time.sleep(20)
print({HEAD!r})
print("4", *[0] * 9, -1, "", sep="\\t")
for confidence, word in (("96.1", sys.argv[-1]), ("12.0", "smudge"), ("88", f"{{width}}x{{height}}"), ("70", " ")):
    print("5", *[0] * 9, confidence, word, sep="\\t")
print("5", *[0] * 9, "91", os.environ["OMP_THREAD_LIMIT"] + "|" + " ".join(sys.argv[1:]), sep="\\t")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name on PATH: what it reads and how it was called is what it finds written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "tesseract"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def written(text: str, *, size: tuple[int, int] = (400, 100)) -> Tensor:
    """A picture with words in it, uint8[3, H, W]."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 30), text, "black", font=ImageFont.load_default(size=36))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.usefixtures("fake")
def test_the_engine_gets_a_png_and_words_that_it_is_sure_of_come_back() -> None:
    config = Tesseract.Config(languages=("eng", "deu"), layout=6)
    config.check()
    assert "tesseract 9.9.9" in config.identity()
    # 30 × 20 pixels are enlarged until the longer side has 1000.
    assert config.build()(torch.zeros(3, 20, 30, dtype=torch.uint8)) == (
        "tsv 1000x667 1|stdin stdout -l eng+deu --psm 6 tsv"
    )
    assert "1200x10" in config.build()(torch.zeros(3, 10, 1200, dtype=torch.uint8))


@pytest.mark.usefixtures("fake")
def test_an_engine_that_fails_or_hangs_is_no_empty_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = Tesseract.Config(seconds=0.5).build()
    monkeypatch.setenv("FAKE_MODE", "fail")
    with pytest.raises(ConfigError, match=r"exit code 1 \(Failed loading language 'xxx'\); is the data of eng inst"):
        replace_seconds(expert, 30.0)(written("A"))
    monkeypatch.setenv("FAKE_MODE", "slow")
    with pytest.raises(DataError, match=r"over 0.5 s") as found:
        expert(written("A"))
    assert found.value.fault == "ocr-timeout"


def replace_seconds(expert: Tesseract, seconds: float) -> Tesseract:
    return replace(expert.config, seconds=seconds).build()


def test_without_the_engine_training_stops_before_it_writes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install tesseract-ocr"):
        Tesseract.Config().build()
    job = Job(recipe="captioner", out=tmp_path / "run", scale="full", data={"": picture_rows(tmp_path, 2)})
    with pytest.raises(ConfigError, match=r"no program `tesseract` on PATH\. Install it"):
        train(job)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "message"), [({"languages": ("eng; ls",)}, "languages are"), ({"layout": 14}, "modes are 0 to 13")]
)
def test_settings_that_the_engine_does_not_know_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tesseract.Config(**wrong)


@pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="the OCR engine is not here: apt-get install tesseract-ocr"
)
def test_the_real_engine_reads_what_is_written() -> None:
    expert = Tesseract.Config().build()
    assert expert(written("STOP HERE 42")) == "STOP HERE 42"
    assert expert(written("")) == ""
    assert expert(torch.full((3, 2, 3), 255, dtype=torch.uint8)) == ""
    with pytest.raises(ConfigError, match="tesseract failed with exit code"):
        Tesseract.Config(languages=("nowhere",)).build()(written("A"))
