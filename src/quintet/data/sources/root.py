"""Names of media in a file → `Ref`, and never to anything outside the data root.

Nothing is opened here: a name is a relative path, a `data:` URI, or (parquet) the bytes themselves. A path is joined
to the root and resolved, links included, and must still be under it.
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

from quintet.errors import DataError
from quintet.values import Ref

__all__ = ["Root", "is_text", "visible"]

_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")
_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]+;base64,", re.ASCII)


def visible(value: str) -> str:
    r"""What can be seen of a text: without control and format characters, with single blanks.

    >>> visible("a\u200b  b\n"), visible("\ufeff")
    ('a b', '')
    """
    kept = (c for c in normalize("NFC", value) if c.isspace() or category(c) not in ("Cc", "Cf"))
    return " ".join("".join(kept).split())


def is_text(value: str) -> bool:
    r"""Whether the string can be written: JSON lets half a surrogate pair through, which no tokenizer takes.

    >>> is_text("π"), is_text("\ud83d")
    (True, False)
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Root:
    """The folder that all media of a source must be in."""

    folder: Path
    """Absolute and resolved."""

    @staticmethod
    def at(folder: Path | str) -> "Root":
        """The root for a folder given by the user, who may come to it through links."""
        return Root(Path(os.path.realpath(folder)))

    def ref(self, value: Any) -> Ref:
        """Where the bytes are that a row names: a path, a `data:` URI, or a mapping of `bytes` or `path`.

        Raises:
            DataError: `wrong-type`, `bad-path`, `bad-data-uri`, `remote-media` or `outside-root`.
        """
        if isinstance(value, dict):
            return self._packed(value)
        if not isinstance(value, str):
            raise DataError("wrong-type", f"a medium is named by text, not by {type(value).__name__}: {_short(value)}")
        if value.startswith("data:"):
            return _inline(value)
        if scheme := _URI.match(value):
            raise DataError(
                "remote-media",
                f"{_short(value)}: {scheme[1]} addresses are not allowed; download the file and name it by path",
            )
        return Ref(value, self.path(value))

    def path(self, name: str) -> Path:
        """The file that a relative name stands for. It need not exist.

        Raises:
            DataError: `bad-path` or `outside-root`.
        """
        if not name.strip() or "\0" in name or not is_text(name) or len(name.encode()) > 4096:
            raise DataError("bad-path", f"{_short(name)} cannot be a path")
        # By hand: pathlib's resolve raises on a loop of links, and pathlib's joining is several times slower.
        path = os.path.realpath(os.path.join(self.folder, name))
        if os.path.isabs(name) or not path.startswith(os.path.join(self.folder, "")):
            raise DataError(
                "outside-root",
                f"{_short(name)} leaves the data root {self.folder}; use a relative path under it, or another root",
            )
        return Path(path)

    def _packed(self, value: dict[str, Any]) -> Ref:
        """The struct of a parquet image column."""
        unknown = value.keys() - {"bytes", "path"}
        data, path = value.get("bytes"), value.get("path")
        if unknown or not (data is None or isinstance(data, bytes)) or not (path is None or isinstance(path, str)):
            raise DataError("wrong-type", f"a packed medium is a mapping of `bytes` and `path`, not {_short(value)}")
        if data is not None:
            return Ref(path or "<bytes>", data=data)
        if path is None:
            raise DataError("missing-key", "a packed medium has neither bytes nor a path")
        return Ref(path, self.path(path))


def _inline(value: str) -> Ref:
    head = _DATA_URI.match(value)
    if not head:
        raise DataError("bad-data-uri", f"{_short(value)}: expected data:image/…;base64,…")
    try:
        data = base64.b64decode(value[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("bad-data-uri", f"{_short(value)}: {error}") from None
    return Ref(f"{head[0]}…", data=data)


def _short(value: object) -> str:
    """At most 80 characters of it, in a form that can be printed."""
    text = ascii(value) if not isinstance(value, str) or not is_text(value) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
