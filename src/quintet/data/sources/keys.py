"""Which keys of a row are read, which are only notes, and which are refused. No key is passed over in silence."""

from typing import Any

from quintet.data.sources.base import Faults
from quintet.data.sources.root import is_text
from quintet.errors import nearest

__all__ = ["METADATA", "REFUSED", "unread"]

METADATA = frozenset(
    {
        *("key", "index", "idx", "question_id", "image_id", "caption_id", "sha256", "width", "height", "url"),
        *("source", "dataset", "data_source", "split", "model", "metadata", "meta", "license", "comment"),
        *("category", "task", "type", "topic", "tags", "difficulty", "language", "lang", "score"),
    }
)
"""Keys that say something about a row and nothing that is learnt. They are left unread, and counted."""

REFUSED = frozenset(
    {
        *("video", "videos", "audio", "audios", "tools", "tool_calls", "functions", "function_call", "objects"),
        *("bbox", "rejected", "chosen", "rejected_response", "prompt", "completion", "label"),
    }
)
"""Keys that change what is learnt, and which this version does not read."""


def unread(
    value: dict[str, Any],
    faults: Faults,
    *,
    known: frozenset[str],
    extra: frozenset[str] = frozenset(),
    where: str = "",
) -> tuple[str, ...]:
    """The keys that are left unread on purpose; those that are not understood go to `faults`."""
    ignored = []
    for key in sorted(value.keys() - known):
        at = f"{where}.{key}" if where else key
        if key in METADATA or key in extra or key.startswith("_"):
            ignored.append(key)
        elif key in REFUSED:
            faults.add("unsupported-key", f"{key!r} is not read by this version; leave such rows out", field=at)
        else:
            hint = f"; if it is only a note, call it '_{key}' or declare it as extra" if is_text(key) else ""
            faults.add("unknown-key", f"{key!a} is not understood{nearest(key, known)}{hint}", field=at)
    return tuple(ignored)
