"""Recipes by name or by file: those of the package, and files of yours."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from quintet import recipes
from quintet.errors import ConfigError, QuintetError, nearest
from quintet.recipes._recipe import Recipe

__all__ = ["load_recipe", "recipe_names", "recipe_notes", "trains_as"]


def recipe_names() -> list[str]:
    """The recipes of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(recipes.__path__) if not (m.ispkg or m.name[0] == "_"))


def load_recipe(name: str) -> tuple[str, Recipe]:
    """A recipe of the package by its name, or of a file of yours by its path; the name and the recipe.

    Behind a colon stands another of its functions: `blip2:flan_t5`, whose name is then blip2_flan_t5.

    Raises:
        ConfigError: there is none, or the file has no function `recipe`, or is broken.
    """
    whole, (name, _, variant) = name, name.partition(":")
    made = getattr(_module(name), variant or "recipe", None)
    with _placed(Path(name)):
        found = made() if isinstance(made, FunctionType) else None
    if not isinstance(found, Recipe):
        raise ConfigError(f"{whole} has no function `{variant or 'recipe'}() -> Recipe`")
    return Path(name).stem + (f"_{variant}" if variant else ""), found


def recipe_notes(name: str) -> str:
    """What the file of a recipe says of it below its title, as it stands there; empty if it says nothing.

    Raises:
        ConfigError: there is no such file.
    """
    return (inspect.getdoc(_module(name.partition(":")[0])) or "").partition("\n")[2].strip()


def trains_as(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a recipe's JSON says how it trains.

    That is all but its paper, whose figures may be mended without harm, and its amounts and rates at a scale, which its
    stages have taken already. A setting that was not there yet when the JSON was written has its default.
    """
    try:
        whole = Recipe.from_json(recipe).to_json()
    except ConfigError:  # of a version that we cannot read, or with parts of a file that is not there
        whole = dict(recipe or {})
    return {key: value for key, value in whole.items() if key != "paper" and not key.startswith("starter")}


def _module(name: str) -> ModuleType:
    """The file of a recipe of the package, or one of yours."""
    if name.endswith(".py"):
        return _own_module(Path(name))
    if name in recipe_names():
        return importlib.import_module(f"quintet.recipes.{name}")
    if Path(name).suffix or "/" in name:
        raise ConfigError(f"there is no file {name}, and no recipe of that name")
    raise ConfigError(
        f"no recipe {name!r}{nearest(name, recipe_names())}; a recipe of yours is named by its path, ./mine.py"
    )


def _own_module(path: Path) -> ModuleType:
    """A file of yours as a module of its name, run once: the configs of its parts are written by that name."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    path, written = path.resolve(), path.stat().st_mtime_ns
    known = sys.modules.get(path.stem)
    if known is not None and not hasattr(known, "_written"):
        raise ConfigError(f"{path.name} has the name of a Python module, {path.stem!r}; give the file another")
    if known is not None and known._written == (path, written):
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    module._written = (path, written)  # type: ignore[attr-defined]
    sys.modules[path.stem] = module
    try:
        with _placed(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


@contextmanager
def _placed(path: Path) -> Iterator[None]:
    """What a file of yours raises, with the line of it: `mine.py, line 2: SyntaxError: invalid syntax`.

    Any error, because any may stand in it; where it was raised stays behind it for `--traceback`. Recipes of the
    package have no such line: what they raise is ours.
    """
    try:
        yield
    except QuintetError:
        raise
    except Exception as error:
        own = str(path.resolve())
        if isinstance(error, SyntaxError) and error.filename:
            place, what = f"{Path(error.filename).name}, line {error.lineno}", error.msg
        elif lines := [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == own]:
            place, what = f"{path.name}, line {lines[-1]}", str(error)
        else:
            raise
        raise ConfigError(f"{place}: {type(error).__name__}: {what}".removesuffix(": ")) from error
