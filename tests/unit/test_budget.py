"""Files, functions and signatures stay small enough to be read, tests too; what does not is listed with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "quintet"
TESTS = Path(__file__).parents[1]

LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8

LONG_FILES: dict[str, str] = {}
"""File → why it may have more than `LINES` lines."""

LONG_FUNCTIONS: dict[str, str] = {
    "components/encoders/vision.py:_transformers_parts": "one case for each family of towers: where its modules are",
}
"""file:function → why it may have more than `FUNCTION_LINES` lines."""

MANY_PARAMETERS: dict[str, str] = {}
"""file:function → why it may have more than `PARAMETERS` parameters."""

COMMANDS = "cli"
"""A command's parameters are its options: typer makes the command line of the signature, one line of help each.
So functions of this package are free in their number of parameters, and their signature counts as no lines."""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters besides self and cls."""
    args = function.args
    named = [a for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg not in ("self", "cls")]
    return len(named)


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, *, command: bool) -> int:
    """Lines from `def` to the end; of a command, those of its body."""
    first = function.body[0].lineno if command else function.lineno
    return (function.end_lineno or first) - first + 1


def too_long(root: Path) -> Iterator[str]:
    """Files over their budget and not listed."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES and name not in LONG_FILES:
            yield f"{name}: {lines} lines"


def too_big(root: Path) -> Iterator[str]:
    """Functions and signatures over a budget and not listed."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        command = name.split("/")[0] == COMMANDS
        for function in functions(path):
            where = f"{name}:{function.name}"
            if (n := num_lines(function, command=command)) > FUNCTION_LINES and where not in LONG_FUNCTIONS:
                yield f"{where}: {n} lines"
            if not command and (n := num_parameters(function)) > PARAMETERS and where not in MANY_PARAMETERS:
                yield f"{where}: {n} parameters"


def test_nothing_is_over_its_budget() -> None:
    assert [*too_long(SOURCE), *too_big(SOURCE)] == []


def test_no_file_of_tests_is_over_its_budget() -> None:
    """They are split by subject; what several need is in `systems.py`, or in a `*_fixtures.py` beside them."""
    assert list(too_long(TESTS)) == []


def test_what_is_over_a_budget_is_found(tmp_path: Path) -> None:
    """The check can fail: one line too many, one parameter too many."""
    (tmp_path / "long.py").write_text("\n" * LINES + "x = 1\n")
    (tmp_path / "wide.py").write_text("def f(self, a, b, c, d, e, *, g, h, i, j):\n    pass\n")
    (tmp_path / "deep.py").write_text("def f():\n" + "    x = 1\n" * FUNCTION_LINES)
    assert list(too_long(tmp_path)) == ["long.py: 401 lines"]
    assert list(too_big(tmp_path)) == ["deep.py:f: 61 lines", "wide.py:f: 9 parameters"]


def test_every_exception_is_still_needed() -> None:
    """A reason whose file or function is gone, or small again, goes too."""
    for name in LONG_FILES:
        assert len((SOURCE / name).read_text(encoding="utf-8").splitlines()) > LINES, name
    for listed, size, most in (
        (LONG_FUNCTIONS, num_lines, FUNCTION_LINES),
        (MANY_PARAMETERS, num_parameters, PARAMETERS),
    ):
        for where in listed:
            name, _, function = where.partition(":")
            sizes = [
                num_lines(f, command=False) if size is num_lines else num_parameters(f)
                for f in functions(SOURCE / name)
                if f.name == function
            ]
            assert sizes, where
            assert max(sizes) > most, where
