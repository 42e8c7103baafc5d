"""Imports go down: what stands lower knows nothing of what stands on it (under a second)."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "quintet"

GROUND = ("values", "answers", "errors", "dist", "log", "pace", "sizes")
FLOORS = (
    "config",
    "components",
    "model",
    "data",
    "training",
    "evaluation",
    "serving",
    "recipes",
    "lab",
    "cli",
    "__main__",
)
RANK = dict.fromkeys(GROUND, 0) | {name: floor for floor, name in enumerate(FLOORS, start=1)}
ASSETS = "starter"
"""A folder of files that ship with the package; it holds no code."""


def imports(path: Path, *, deep: bool = False) -> Iterator[str]:
    """Modules that a file imports when it is loaded; with `deep` also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if deep else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            # `from quintet import dist` names a module, not a value.
            top = node.module == SOURCE.name
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if top else [node.module or ""]


def floor(module: str) -> int | None:
    """The floor of a module of ours; None for others, and for names that the package itself defines."""
    package, _, rest = module.partition(".")
    return RANK.get(rest.split(".")[0]) if package == SOURCE.name else None


def climbing(root: Path) -> Iterator[str]:
    """Imports that go up a floor, as 'file -> module'; those inside functions count too."""
    for path in sorted(root.rglob("*.py")):
        here = RANK.get(path.relative_to(root).parts[0].removesuffix(".py"))
        for module in imports(path, deep=True):
            there = floor(module)
            if here is not None and there is not None and there > here:
                yield f"{path.relative_to(root)} -> {module}"


def test_imports_go_down() -> None:
    assert list(climbing(SOURCE)) == []


def test_a_climbing_import_is_found(tmp_path: Path) -> None:
    """The check can fail: a model that imports the loop, an encoder that imports data inside a function."""
    for folder in ("model", "components"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "a.py").write_text("from quintet.training.loop import train_stage\n")
    (tmp_path / "components" / "b.py").write_text("def f():\n    from quintet import data\n")
    assert list(climbing(tmp_path)) == ["components/b.py -> quintet.data", "model/a.py -> quintet.training.loop"]


def test_every_part_of_the_package_has_a_floor() -> None:
    parts = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__", ASSETS, "py.typed"} == set(RANK)


def test_the_starter_folder_holds_no_code() -> None:
    code = [path for path in (SOURCE / ASSETS).rglob("*.py") if path.read_text(encoding="utf-8").strip(' "\n')]
    assert code == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """When they are loaded; lazy imports of a lower floor are free."""
    names = {_name(path): path for path in SOURCE.rglob("*.py")}
    graph = {name: {m for i in imports(path) for m in _targets(i, path, names)} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for below in sorted(graph[name]):
                visit(below, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def _name(path: Path) -> str:
    steps = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(steps[:-1] if steps[-1] == "__init__" else steps)


def _targets(module: str, path: Path, names: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that an import loads; a package's own members are no circle with it."""
    if module not in names:
        return
    if names[module].name != "__init__.py" or not _name(path).startswith(f"{module}."):
        yield module
