"""The folder of a comparison: whose it is, under which conditions, and who may write now."""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quintet.components.starter import asset
from quintet.errors import CheckpointError, ConfigError
from quintet.model.checkpoint import read_json, write_json

__all__ = ["alone", "check_folder", "fingerprint", "hold", "starter_fingerprint"]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: what the second needs (pictures, conditions, plans), the first has made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_folder(out: Path) -> None:
    """Before anything is written into it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder as --out")
    if out.is_dir() and not (out / "comparison.json").exists() and any(p.name[0] != "." for p in out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no comparison; name another --out")


def hold(out: Path, facts: Mapping[str, Any]) -> None:
    """Writes the conditions, or compares them with those that are there; without a run yet they may still change."""
    place = out / "comparison.json"
    if place.exists():
        old = read_json(place)
        changed = [key for key, value in facts.items() if old.get(key) != value]
        if not changed:
            return
        if any(not path.parent.name.startswith(".") for path in out.glob("*/recipe.json")):
            key = changed[0]
            raise CheckpointError(
                f"{out} holds a comparison whose {key} is {old.get(key)!r}, this one's is {facts[key]!r}; "
                "a table is of equal conditions, so name another --out"
            )
        (out / "plans.json").unlink(missing_ok=True)
    write_json(place, dict(facts))


def starter_fingerprint() -> str:
    """Of the small trained parts that all recipes start from."""
    digest = hashlib.sha256()
    for part in ("llm", "vision"):
        digest.update(hashlib.sha256((asset(part) / "model.safetensors").read_bytes()).digest())
    return digest.hexdigest()[:16]


def fingerprint(scenes: Path) -> str:
    """Of what is learnt and asked."""
    digest = hashlib.sha256()
    for name in (
        "scenes.json", "train_captions.json", "train.json", "train_regions.json", "train_interleaved.jsonl",
        "train_ocr.json", "train_text.json", "test.truth.jsonl", "test_fewshot.json",
    ):  # fmt: skip
        if not (path := scenes / name).is_file():
            raise ConfigError(f"{scenes} holds no {name}; make Scenes with `quintet data make scenes --out FOLDER`")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
