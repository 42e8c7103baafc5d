"""A trained model as a folder: `config.json`, one safetensors file per part. No pickle is written or read.

Files are written beside their place and renamed, so a folder is either the old or the new one, never half of each.
Equal weights give equal files.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from quintet.errors import CheckpointError, ConfigError
from quintet.model.mllm import MLLM

__all__ = [
    "CAPTIONS",
    "TRAINED",
    "ends_digest",
    "load_model",
    "load_part",
    "read_json",
    "replace_folder",
    "save_model",
    "write_json",
]

FORMAT = 1
CAPTIONS = "captions"
"""In a model's folder: what spells captions, where pictures can be found by them (a tokenizer and processor.json)."""
TRAINED = "trained.safetensors"
"""What a stage trained; in `CAPTIONS`, that of the stage which matched, if others came after it."""


def ends_digest(path: Path, *, most: int = 1 << 20) -> str:
    """What tells a file from another without reading all of it: its size, its first and its last MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(str(size).encode() + file.read(most))
        file.seek(max(0, size - most))
        digest.update(file.read(most))
    return digest.hexdigest()[:16]


def write_json(path: Path, data: Any) -> None:
    """Writes JSON whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read_json(path: Path) -> Any:
    """Reads JSON; a missing or broken file is a CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None


def replace_folder(aside: Path, place: Path) -> None:
    """Puts a finished folder in its place; an older one goes away only after the new one is whole."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    aside.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def save_model(model: MLLM, folder: Path) -> None:
    """Writes the model."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = model.parts()
    for part, module in parts.items():
        state, tied = module.state_dict(), _tied(module)
        tensors = {n: t.detach().to("cpu").contiguous() for n, t in sorted(state.items()) if n not in tied}
        aside = folder / f".{part}.{os.getpid()}"
        save_file(tensors, aside, metadata={"format": "pt"})
        aside.replace(folder / f"{part}.safetensors")
    config = {"format": FORMAT, "model": model.config.to_json(), "vocab": model.llm.vocab, "parts": list(parts)}
    write_json(folder / "config.json", config)


def load_model(folder: Path) -> MLLM:
    """The model of a folder, on the CPU, in the numbers it was saved in.

    Raises:
        CheckpointError: a missing file or key, an unknown format, a shape that does not fit; the message names it.
    """
    data = read_json(folder / "config.json")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{folder / 'config.json'} is not a model of format {FORMAT}; was it written by Quintet?")
    try:
        config, vocab = MLLM.Config.from_json(data["model"]), int(data["vocab"])
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} has no {error}") from None
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    with torch.device("meta"):
        model = config.build(vocab=vocab)
    for part, module in model.parts().items():
        load_part(module, folder / f"{part}.safetensors", part=part)
    return model


def load_part(module: torch.nn.Module, path: Path, *, part: str) -> None:
    """Gives a part the tensors of its file, key by key; the module may be on the meta device."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; the part {part!r} needs it") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    tied = _tied(module)
    own = {n: t for n, t in module.state_dict().items() if n not in tied}
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(f"{path} does not fit {part!r}: missing {missing[:4]}, unexpected {extra[:4]}")
    wrong = [f"{n}: {list(tensors[n].shape)} for {list(own[n].shape)}" for n in own if tensors[n].shape != own[n].shape]
    if wrong:
        raise CheckpointError(f"{path} does not fit {part!r}: {'; '.join(wrong[:4])}")
    # Behind a tensor of an odd size the next ones are not on 16 bytes, where kernels sum in another order: the model
    # would not give the numbers that it was saved with.
    placed = {n: t if t.data_ptr() % 16 == 0 else t.clone() for n, t in tensors.items()}
    module.load_state_dict(placed | {n: placed[first] for n, first in tied.items()}, strict=True, assign=True)
    for name, first in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(first))


def _tied(module: torch.nn.Module) -> dict[str, str]:
    """Further names of a parameter → its first: transformers ties OPT's head and T5's embeddings. A file has one."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {n: first[id(p)] for n, p in named if first.setdefault(id(p), n) != n}
