"""The tokenizer of a folder as transformers reads it: one place, so that a damaged file is one clear error everywhere."""

from pathlib import Path
from typing import Any

from quintet.errors import CheckpointError

__all__ = ["READER", "has_tokenizer", "read_tokenizer"]

READER = "qformer_tokenizer"
"""Folder of a connector's own tokenizer beside the LLM's, as transformers' InstructBLIP names it."""
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a file of a tokenizer."""
    return any((folder / name).is_file() for name in _FILES)


def read_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder; no code of the folder is run.

    Raises:
        CheckpointError: no such folder, no tokenizer in it, or a file of it that is damaged.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder with a tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    # transformers does not check what it parses, so a damaged file ends in a KeyError, an AttributeError, … and the
    # parser of tokenizer.json raises plain `Exception`s.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: no tokenizer can be read there ({type(error).__name__}: {reason}); copy the checkpoint's "
            f"{_FILES[0]} and {_FILES[2]} there anew"
        ) from None
