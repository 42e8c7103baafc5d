"""Which parts exist: the table role → part → who uses it, for whoever builds a system from them.

Nothing is registered: a part is a class under `quintet.components` with a nested `Config` of a role, and the recipes
that use it are those whose model holds that config, also inside another's.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from quintet import components
from quintet.components.experts.expert import ExpertConfig
from quintet.components.roles import (
    ConnectorConfig,
    EncoderConfig,
    FusionConfig,
    LLMConfig,
    RegionConfig,
)
from quintet.config.base import Config
from quintet.lab.recipe import load_recipe, recipe_names

__all__ = ["ROLES", "PartEntry", "parts"]

ROLES: Mapping[str, type[Config]] = {
    "encoder": EncoderConfig,
    "connector": ConnectorConfig,
    "fusion": FusionConfig,
    "LLM": LLMConfig,
    "regions": RegionConfig,
    "expert": ExpertConfig,
}
"""Role → what the `Config` of its parts is."""


@dataclass(frozen=True)
class PartEntry:
    """A part: `from module import name`."""

    role: str
    name: str
    module: str
    what: str
    """The first line of its docstring."""
    used_by: tuple[str, ...]
    """Recipes of the package."""

    def to_json(self) -> dict[str, Any]:
        """As `recipes --parts --json` has it."""
        return asdict(self)


def parts() -> list[PartEntry]:
    """All parts of the package, role by role."""
    users: dict[type[Config], list[str]] = {}
    for name in recipe_names():
        for kind in {type(config) for config in _configs(load_recipe(name)[1].model)}:
            users.setdefault(kind, []).append(name)
    found = [
        PartEntry(role, part.__name__, part.__module__, _first_line(part), tuple(users.get(part.Config, ())))
        for role, config in ROLES.items()
        for part in _classes()
        if issubclass(part.Config, config)
    ]
    return sorted(found, key=lambda entry: (list(ROLES).index(entry.role), entry.module, entry.name))


def _classes() -> Iterator[Any]:
    """Classes under `quintet.components` that have a `Config` of their own which can be built."""
    for info in pkgutil.walk_packages(components.__path__, f"{components.__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                own = vars(value).get("Config")
                if inspect.isclass(own) and issubclass(own, Config):
                    yield value


def _configs(value: Any) -> Iterator[Config]:
    """A config and all that it holds."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _configs(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _configs(each)
    elif is_dataclass(value) and isinstance(value, Config):
        yield value
        for each in fields(value):
            yield from _configs(getattr(value, each.name))


def _first_line(part: type) -> str:
    return (inspect.getdoc(part) or "").partition("\n")[0]
