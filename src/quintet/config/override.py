"""`stages.instruct.batch=64`: one setting of a nested config, replaced with a typed value.

A step of the path is a field, a key of a mapping (which may hold dots itself), or the `name` (or the index) of a member
of a tuple.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from quintet.config.base import Config, decode, hints
from quintet.errors import ConfigError, nearest

__all__ = ["override"]

C = TypeVar("C", bound=Config)


def override(config: C, assignment: str) -> C:
    """`config` with one setting replaced.

    Raises:
        ConfigError: no `=`, no such setting (the nearest name is given), or a value of the wrong type.
    """
    path, sign, text = assignment.partition("=")
    if not sign:
        raise ConfigError(f"{assignment!r} sets nothing; write name=value, for example stages.instruct.batch=64")
    return _set(config, type(config), path.strip().split("."), _parse(text.strip()), path.strip())


def _parse(text: str) -> Any:
    """JSON if it is JSON, else the text itself; so 1e-5, true, [1, 2] and plain words all work."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _set(value: Any, hint: Any, steps: list[str], new: Any, path: str) -> Any:
    if not steps:
        return decode(new, hint, where=path)
    step, rest = steps[0], steps[1:]
    if isinstance(value, Config):
        known = hints(type(value))
        if step not in known:
            raise ConfigError(f"{path}: no setting {step!r} in {type(value).__qualname__}{nearest(step, known)}")
        inner = _set(getattr(value, step), known[step], rest, new, path)
        return dataclasses.replace(value, **{step: inner})
    if isinstance(value, Mapping):
        # A key may hold dots itself: stages.align.train.connectors.image.lr
        taken = next((n for n in range(len(steps), 1, -1) if ".".join(steps[:n]) in value), 1)
        step, rest = ".".join(steps[:taken]), steps[taken:]
        if step not in value and rest:
            raise ConfigError(f"{path}: no key {step!r}{nearest(step, value)}")
        arguments = typing.get_args(hint)
        hint = type(value[step]) if rest else arguments[1] if len(arguments) == 2 else Any
        inner = _set(value.get(step), hint, rest, new, path)
        return {**value, step: inner}
    if isinstance(value, tuple):
        names = [str(getattr(v, "name", i)) for i, v in enumerate(value)]
        at = names.index(step) if step in names else int(step) if step.isdigit() and int(step) < len(value) else None
        if at is None:
            raise ConfigError(f"{path}: no member {step!r}{nearest(step, names)}")
        inner = _set(value[at], type(value[at]), rest, new, path)
        return (*value[:at], inner, *value[at + 1 :])
    raise ConfigError(f"{path}: {step!r} goes below a plain value, {value!r}")
