"""Tesseract, an OCR engine, as an expert: the words that are written in a picture.

It is a program of its own (Smith 2007, "An overview of the Tesseract OCR engine"; `apt-get install tesseract-ocr`) and
is run once a picture: the picture goes in as a PNG, a table of words with the engine's confidence in each comes out.
"""

import io
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from quintet.components.experts.expert import ExpertConfig
from quintet.errors import ConfigError, DataError

__all__ = ["Tesseract"]

PROGRAM = "tesseract"

_COLUMNS = 12
"""Of a row of its table; the last two are the confidence, 0 to 100 (-1 for what is no word), and the word."""


class Tesseract:
    """Reads a picture by the program on PATH."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertConfig):
        """How it is run."""

        languages: tuple[str, ...] = ("eng",)
        """Its names of languages; each needs its data (`tesseract-ocr-deu`)."""
        layout: int = 11
        """Its page segmentation mode. 11 finds words anywhere, as on signs; 3 expects a page, 6 one block of text."""
        confidence: float = 60.0
        """Words below this confidence, 0 to 100, are left out: in a photograph without words it still finds some."""
        side: int = 1000
        """A picture whose longer side has fewer pixels is enlarged to it: letters should be 20 pixels high and more."""
        seconds: float = 60.0
        """Longest time for one picture."""

        def __post_init__(self) -> None:
            wrong = [name for name in self.languages if not name.replace("_", "").isalnum()]
            if wrong or not self.languages:
                raise ConfigError(f"languages are {self.languages}; name at least one as tesseract does: eng, chi_sim")
            if not 0 <= self.layout <= 13:
                raise ConfigError(f"layout is {self.layout}; tesseract's page segmentation modes are 0 to 13")

        @property
        def writes(self) -> Literal["text"]:
            return "text"

        def identity(self) -> str:
            """Its settings and the program's version."""
            version = subprocess.run([_program(), "--version"], capture_output=True, timeout=self.seconds, check=False)
            return f"{self!r} {(version.stdout or version.stderr).decode(errors='replace').splitlines()[:1]}"

        def check(self) -> None:
            _program()

        def build(self) -> "Tesseract":
            return Tesseract(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.program = _program()

    def __call__(self, value: Tensor) -> str:
        """The words in uint8[3, H, W], in the order of reading.

        Raises:
            ConfigError: the program fails (no data for a language, say); the message has its last words.
            DataError: it takes longer than it may.
        """
        languages = "+".join(self.config.languages)
        command = [self.program, "stdin", "stdout", "-l", languages, "--psm", str(self.config.layout), "tsv"]
        # Several threads on one picture only wait for each other.
        surroundings = os.environ | {"OMP_THREAD_LIMIT": "1"}
        try:
            done = subprocess.run(
                command,
                input=self._png(value),
                capture_output=True,
                timeout=self.config.seconds,
                env=surroundings,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DataError(
                "ocr-timeout",
                f"tesseract read for over {self.config.seconds:g} s; raise `seconds` or shrink the picture",
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ConfigError(
                f"tesseract failed with exit code {done.returncode} ({said[-1] if said else 'it said nothing'}); "
                f"is the data of {languages} installed? `tesseract --list-langs` lists what is"
            )
        return " ".join(self._words(done.stdout.decode(errors="replace")))

    def _png(self, value: Tensor) -> bytes:
        picture = Image.fromarray(value.permute(1, 2, 0).contiguous().numpy())
        longer = max(picture.size)
        if longer < self.config.side:
            width, height = (max(1, round(n * self.config.side / longer)) for n in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    def _words(self, table: str) -> list[str]:
        rows = (line.split("\t") for line in table.splitlines()[1:])
        found = [(row[-2], row[-1].strip()) for row in rows if len(row) == _COLUMNS]
        return [word for confidence, word in found if word and float(confidence) >= self.config.confidence]


def _program() -> str:
    """The path of the program.

    Raises:
        ConfigError: it is not there.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise ConfigError(
            "the OCR engine is not on this machine: no program `tesseract` on PATH. Install it (Debian, Ubuntu: "
            "apt-get install tesseract-ocr; macOS: brew install tesseract), or take the expert out of the recipe"
        )
    return found
