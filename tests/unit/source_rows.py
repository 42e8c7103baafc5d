"""Rows of conversations for tests of sources, and short forms of what is read."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from quintet.data.sources import Source, open_source
from quintet.values import Media, Part, Region, Sample, Text


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def llava(question: str = "<image>\nWhat is it?", answer: str = "A cat.", **more: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "7", "image": "a.png", "conversations": said} | more


def messages(content: Any = "<image>What is it?", **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
    return {"messages": said, "images": ["a.png"]} | more


def write(path: Path, data: Any) -> Path:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """As lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def wrote(folder: Path, rows: list[Any], name: str = "data.json") -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    path.write_text(
        json.dumps(rows, ensure_ascii=False, indent=1) if name.endswith(".json") else lines, encoding="utf-8"
    )
    return path


def one(folder: Path, row: Any) -> Source:
    return open_source(wrote(folder, [row], "one.jsonl"), format="llava")


def shown(sample: Sample) -> list[tuple[str, list[str]]]:
    """Turns in short: text as it is, a picture as its name in brackets, a region as its numbers."""

    def short(part: Part) -> str:
        match part:
            case Text(text=text):
                return text
            case Media(ref=ref):
                return f"[{ref.name}]"
            case Region(points=points):
                return str(points)

    return [(turn.role, [short(part) for part in turn.parts]) for turn in sample.turns()]


def faults(source: Source, index: int = 0) -> list[tuple[str, str | None]]:
    return [(error.fault, error.field) for error in source.read(index).faults]


ASKED = [("user", ["[a.png]", "What is it?"]), ("assistant", ["A cat."])]
