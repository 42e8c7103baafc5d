"""The tokenizer of a folder as transformers reads it: in one place, so that a damaged file is one clear error."""

from pathlib import Path
from typing import Any

from quintet.errors import CheckpointError

__all__ = ["READER", "TOKENIZER_FILES", "has_tokenizer", "read_tokenizer"]

READER = "qformer_tokenizer"
"""Folder of a connector's own tokenizer beside the LLM's, as transformers' InstructBLIP names it."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer is made of, in the layouts that transformers reads."""


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a file of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES[:3])


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, of transformers' class; no code of the folder is run.

    Raises:
        CheckpointError: no such folder, no tokenizer in it, or a file of it that is damaged.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder with a tokenizer")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    # transformers does not check what it parses, so a damaged file ends in a KeyError, an AttributeError, … and the
    # parser of tokenizer.json raises plain `Exception`s.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: no tokenizer can be read there ({type(error).__name__}: {reason}); copy the checkpoint's "
            "tokenizer.json and tokenizer_config.json there anew"
        ) from None
