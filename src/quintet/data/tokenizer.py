"""A tokenizer that never mistakes a user's text for a control token, and that says where its tokens stand.

Template strings may hold special tokens (`</s>`); a user's text that happens to contain one is spelt out. Text is
encoded run by run; `Tokenizer.encode` gives character offsets, so weights of spans reach tokens without any parsing
back of rendered text.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from quintet.components.tokenizer_folder import READER, read_tokenizer
from quintet.errors import CheckpointError, ConfigError

__all__ = ["Reader", "Tokenizer"]


class Reader:
    """The tokenizer of a connector that reads the instruction in tokens of its own (InstructBLIP's BERT)."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._backend = Backend.from_str(hf.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()

    def ids(self, text: str) -> list[int]:
        """What it reads of a text: with the tokens that it puts around one ([CLS] … [SEP])."""
        return self._backend.encode(text).ids

    def save(self, folder: Path) -> None:
        """Writes its files as transformers does."""
        self._hf.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> "Reader":
        """The tokenizer of a transformers folder; no code of the folder is run."""
        hf = read_tokenizer(folder)
        if not getattr(hf, "is_fast", False):
            raise CheckpointError(f"{folder}: the tokenizer has no tokenizers backend; save it as tokenizer.json")
        return cls(hf)


class Tokenizer:
    """A `tokenizers` backend with its control tokens."""

    def __init__(
        self, backend: Backend, *, bos: str | None, eos: str, pad: str | None = None, reader: Reader | None = None
    ) -> None:
        self.backend, self.reader = backend, reader
        added = backend.get_added_tokens_decoder()
        self.specials: dict[str, int] = {token.content: index for index, token in added.items() if token.special}
        for name in (bos, eos, pad):
            if name and name not in self.specials:
                self.specials[name] = _added(backend, name)
        # Special tokens in running text are then ordinary characters; ours are inserted by id.
        backend.encode_special_tokens = True
        self.bos, self.eos = bos, eos
        self.pad_id = self.specials[pad] if pad else self.specials[eos]
        self._split = self._splitter()
        # SentencePiece models put a space before every run; then a run's own leading space must go.
        self.adds_space = (
            backend.encode("a", add_special_tokens=False).ids == backend.encode(" a", add_special_tokens=False).ids
        )

    def _splitter(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(re.escape(s) for s in sorted(self.specials, key=len, reverse=True)) + ")")

    @property
    def vocab(self) -> int:
        """Ids are below this."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def add(self, *tokens: str) -> None:
        """Adds special tokens that are not there yet."""
        for token in tokens:
            if token not in self.specials:
                self.specials[token] = _added(self.backend, token)
        self._split = self._splitter()

    def call(self, names: Mapping[str, str | None]) -> None:
        """Gives special tokens a second name, by which templates may spell them."""
        self.specials |= {name: self.id(token) for name, token in names.items() if token and name not in self.specials}
        self._split = self._splitter()

    def id(self, special: str) -> int:
        """The id of a special token."""
        if special not in self.specials:
            raise ConfigError(
                f"the tokenizer has no special token {special!r}; it has {', '.join(sorted(self.specials))}"
            )
        return self.specials[special]

    def split(self, text: str) -> list[str]:
        """A template's string, cut at its special tokens, which stay as members of their own."""
        return [piece for piece in self._split.split(text) if piece]

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a run of ordinary text and the characters [start, end) that each stands for."""
        skip = 1 if self.adds_space and text.startswith(" ") else 0
        encoding = self.backend.encode(text[skip:], add_special_tokens=False)
        return encoding.ids, [(a + skip, b + skip) for a, b in encoding.offsets]

    def decode(self, ids: list[int], *, keep_special: bool = False) -> str:
        """Text of ids."""
        return self.backend.decode(ids, skip_special_tokens=not keep_special)

    @property
    def fingerprint(self) -> str:
        """Changes when any id or merge does. What is put around a whole text is not part of it: we never ask for it."""
        content = json.loads(self.backend.to_str())
        told = {n: value for n, value in content.items() if n not in ("post_processor", "padding", "truncation")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers reads too."""
        hf = self.to_transformers()
        hf.save_pretrained(folder)
        if self.reader is not None:
            self.reader.save(folder / READER)

    def to_transformers(self) -> Any:
        """The same tokenizer as transformers' class."""
        from transformers import PreTrainedTokenizerFast

        copy = Backend.from_str(self.backend.to_str())
        names = {i: s for s, i in self.specials.items()}
        return PreTrainedTokenizerFast(
            tokenizer_object=copy, bos_token=self.bos, eos_token=self.eos, pad_token=names[self.pad_id]
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a transformers folder; no code of the folder is run."""
        hf = read_tokenizer(folder)
        # BERT encloses a text in [CLS] and [SEP]; templates call what encloses one <s> and </s>.
        bos, eos = (hf.bos_token, hf.eos_token) if hf.eos_token else (hf.cls_token, hf.sep_token)
        if not getattr(hf, "is_fast", False) or eos is None:
            raise CheckpointError(f"{folder}: the tokenizer has no tokenizers backend, or no end token")
        reader = Reader.load(folder / READER) if (folder / READER).is_dir() else None
        made = cls(Backend.from_str(hf.backend_tokenizer.to_str()), bos=bos, eos=eos, pad=hf.pad_token, reader=reader)
        if hf.eos_token is None:
            made.call({"<s>": bos, "</s>": eos})
        return made


def _added(backend: Backend, token: str) -> int:
    """The id of a special token that is new to the backend."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    index = backend.token_to_id(token)
    assert index is not None, f"{token!r} was just added"
    return index
