"""Settings: frozen dataclasses that write themselves as JSON and read themselves back, checked field by field.

A part's settings are its nested `Config`; what depends on neighbours (widths, vocabulary) is given to `build`. In JSON
a config carries its class as `type`, and only subclasses of `Config` that are importable from this package, or were
imported by the caller already, are ever looked up: reading a file imports nothing else and runs nothing.
"""

import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from quintet.errors import ConfigError, nearest

__all__ = ["Config", "coerce", "decode", "encode", "hints"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The base of every settings class. Subclasses are frozen, keyword-only dataclasses of plain data and configs."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` turns back into an equal config."""
        return encode(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The config that `data` describes.

        Raises:
            ConfigError: an unknown type or field, or a value of the wrong type; the message names it.
        """
        value = decode(data, Config if cls is Config else cls, where=cls.__qualname__)
        if not isinstance(value, cls):
            raise ConfigError(f"expected a {cls.__qualname__}, found a {type(value).__qualname__}")
        return value


def encode(value: Any) -> Any:
    """`value` as JSON data; configs carry their type."""
    if isinstance(value, Config):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"type": kind} | {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(
        f"a config holds {value!r}, a {type(value).__qualname__}; only plain data and configs can be written"
    )


def decode(data: Any, hint: Any, *, where: str) -> Any:
    """`data` as the type `hint`; the inverse of `encode`. Where one class is expected, `type` may be left out."""
    expected = hint if isinstance(hint, type) and issubclass(hint, Config) else None
    if not isinstance(data, Mapping) or not ("type" in data or expected not in (None, Config)):
        return coerce(data, hint, where=where)
    kind = _find(str(data["type"]), where) if "type" in data else expected
    assert kind is not None
    if expected and not issubclass(kind, expected):
        raise ConfigError(f"{where} is a {kind.__qualname__}; expected a {expected.__qualname__}")
    known = hints(kind)
    for name in data:
        if name != "type" and name not in known:
            raise ConfigError(f"{where}: {kind.__qualname__} has no setting {name!r}{nearest(name, known)}")
    values = {n: decode(v, known[n], where=f"{where}.{n}") for n, v in data.items() if n != "type"}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def coerce(data: Any, hint: Any, *, where: str) -> Any:
    """Checks plain data against a type hint; ints become floats and lists tuples where the hint says so.

    >>> coerce([1, 2], tuple[float, ...], where="sizes")
    (1.0, 2.0)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return data
    if origin is typing.Literal:
        if data not in args:
            raise ConfigError(f"{where} is {data!r}; expected one of {', '.join(map(repr, args))}")
        return data
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(data, args, where)
    if origin is tuple:
        return _coerce_tuple(data, args, where)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} is {data!r}; expected a mapping")
        return {k: decode(v, args[1], where=f"{where}.{k}") for k, v in data.items()}
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    wanted = hint if isinstance(hint, type) else object
    if not isinstance(data, wanted) or (isinstance(data, bool) and wanted in (int, float)):
        raise ConfigError(f"{where} is {data!r}; expected {getattr(hint, '__name__', hint)}")
    return data


def _coerce_union(data: Any, args: tuple[Any, ...], where: str) -> Any:
    problems: list[str] = []
    # An exact type first: 1 is an int before it is a float.
    for option in sorted(args, key=lambda a: a is not type(data)):
        if option is type(None):
            if data is None:
                return None
            continue
        try:
            return decode(data, option, where=where)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(problems[0] if len(problems) == 1 else f"{where} is {data!r}; no allowed type fits it")


def _coerce_tuple(data: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise ConfigError(f"{where} is {data!r}; expected a list")
    if len(args) == 2 and args[1] is ...:
        return tuple(decode(v, args[0], where=f"{where}[{i}]") for i, v in enumerate(data))
    if len(data) != len(args):
        raise ConfigError(f"{where} has {len(data)} values; expected {len(args)}")
    return tuple(decode(v, a, where=f"{where}[{i}]") for i, (v, a) in enumerate(zip(data, args, strict=True)))


@cache
def hints(kind: type) -> dict[str, Any]:
    """Field name → type of a config class."""
    resolved = typing.get_type_hints(kind)
    return {f.name: resolved[f.name] for f in dataclasses.fields(kind) if f.init}


def _find(name: str, where: str) -> type[Config]:
    module_name, _, path = name.partition(":")
    if module_name.split(".")[0] == "quintet" and module_name not in sys.modules:
        try:
            importlib.import_module(module_name)
        except ImportError:
            raise ConfigError(f"{where}: this version has no module {module_name!r} (for type {name!r})") from None
    found: Any = sys.modules.get(module_name)
    for step in path.split("."):
        found = getattr(found, step, None)
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise ConfigError(
            f"{where}: type {name!r} is not a known config; if it is of a recipe of yours, name its file: --recipe"
        )
    return found
