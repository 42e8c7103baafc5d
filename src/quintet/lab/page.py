"""A web page in one file: styles inside, pictures as data URIs, nothing that is loaded from anywhere."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from quintet import __version__
from quintet.data.media import decode_image
from quintet.errors import ConfigError, DataError
from quintet.values import Ref

__all__ = ["Picture", "page", "picture", "table", "write_page"]

_LARGEST = 96 * 1024
"""Bytes of a picture file beyond which it is made smaller for the page."""
_SIDE = 512
"""Pixels of the longer side of such a picture."""
_SMALL = 160
"""Pixels below which a picture is enlarged without smoothing, so that its pixels can be counted."""


def write_page(path: Path, text: str) -> Path:
    """Writes a page, whole or not at all; returns where.

    Raises:
        ConfigError: the folder does not exist, or what stands there is no page.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it, or name another file")
    if path.is_dir() or (path.exists() and not path.read_bytes()[:15].lower().startswith(b"<!doctype html")):
        raise ConfigError(f"{path} exists and is no page that could be written anew; name another file")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    return aside.replace(path)


@dataclass(frozen=True)
class Picture:
    """A picture as a page holds it. `size` is (width, height) in pixels; an empty `uri` stands for one that is lost."""

    uri: str
    size: tuple[int, int]
    lost: str = ""

    def html(self, overlay: str = "") -> str:
        """The picture, or why it is not there; `overlay` is SVG in shares of width and height."""
        if not self.uri:
            return f'<div class="picture"><div class="none">{escape(self.lost)}</div></div>'
        width, height = self.size
        small = ' class="small"' if max(self.size) <= _SMALL else ""
        drawn = f'<svg viewBox="0 0 {width} {height}"><g transform="scale({width} {height})">{overlay}</g></svg>'
        return f'<div class="picture"><img{small} src="{self.uri}" alt="">{drawn if overlay else ""}</div>'


def picture(ref: Ref) -> Picture:
    """A picture for a page; one that cannot be read says so in its place."""
    try:
        image = decode_image(ref)
        data = ref.read()
    except (DataError, OSError) as error:
        return Picture("", (0, 0), f"{ref.name}: {error}")
    size = image.size
    kind = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}.get(data[:4], {b"\xff\xd8\xff": "jpeg"}.get(data[:3], ""))
    if not kind or len(data) > _LARGEST:
        image.thumbnail((_SIDE, _SIDE))
        kind, buffer = "jpeg", io.BytesIO()
        image.save(buffer, "jpeg", quality=88)
        data = buffer.getvalue()
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", size)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of HTML cells; the columns in `numbers` are set to the right."""

    def cells(row: Sequence[str], kind: str) -> str:
        return "".join(f"<{kind}{' class=n' if i in numbers else ''}>{cell}</{kind}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, body: str, *, broad: bool = False) -> str:
    """The whole document; `broad` where tables have many columns."""
    css = (files("quintet.lab") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{css}</style></head>\n"
        f"<body><main{' class=broad' if broad else ''}>\n{body}\n"
        f"<footer>Made by Quintet {__version__}. This page is one file and loads nothing.</footer>"
        "</main></body></html>\n"
    )
