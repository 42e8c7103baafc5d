"""Documents that cannot rot: marked code runs, quoted code is cut from tests, tables are generated, paths exist.

A block is run when its first line says so: ```sh run (commands of quintet, in one folder per document, in order) or
```python run. A block with file=PATH is compared with the marked part of that file. About half a minute.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.lab import methods
from quintet.lab.listing import listing, markdown

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)  # fmt: skip
EXAMPLES = Path(__file__).parent


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands after the backticks, and the code."""

    info: str
    code: str


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(info.strip(), code)
        for info, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


RUNNABLE = [name for name in DOCUMENTS if any(block.info.endswith(" run") for block in blocks(name))]


@pytest.mark.parametrize("document", RUNNABLE)
def test_marked_code_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES.glob("*.py"):
        if not example.name.startswith("test_"):
            (tmp_path / example.name).write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    for block in blocks(document):
        if block.info == "python run":
            exec(compile(block.code, document, "exec"), {})
        elif block.info == "sh run":
            for line in block.code.splitlines():
                program, *args = shlex.split(line)
                assert program == "quintet", line
                result = CliRunner().invoke(app, args)
                assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def test_some_documents_have_code_that_runs() -> None:
    assert {"README.md", "docs/architecture.md", "docs/new-system.md"} <= set(RUNNABLE)


def test_the_table_of_systems_is_the_one_that_the_command_prints() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- recipes: start.*?-->\n(.*?)\n<!-- recipes: end -->", text, re.DOTALL)
    assert found, "README.md has lost its markers"
    assert found[1] == markdown(listing()), "put in the output of `quintet recipes --markdown`"


def test_the_table_of_methods_is_the_one_that_the_command_prints() -> None:
    text = (ROOT / "docs" / "alignment.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- methods: start.*?-->\n(.*?)\n<!-- methods: end -->", text, re.DOTALL)
    assert found, "docs/alignment.md has lost its markers"
    assert found[1] == methods.markdown(methods.methods()), (
        "put in the output of `quintet recipes --methods --markdown`"
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_quoted_code_is_that_of_the_file(document: str) -> None:
    for block in blocks(document):
        if found := re.search(r"file=(\S+)", block.info):
            text = (ROOT / found[1]).read_text(encoding="utf-8")
            marked = text.split("# docs: start\n")[1].split("# docs: end")[0]
            assert block.code.strip() == marked.strip(), f"{document} quotes {found[1]} wrongly"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def options(command: str) -> set[str]:
    """The options of a command such as `data mix`."""
    found = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]  # pyright: ignore[reportAttributeAccessIssue]
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_are_commands_with_those_options(document: str) -> None:
    """Also in blocks that are not run; what stands behind a # or two spaces is a remark."""
    groups = {"data", "starter"}
    text = (ROOT / document).read_text(encoding="utf-8")
    for line in re.findall(r"^(?:    )?(quintet [a-z].*)$|`(quintet [a-z][^`]*)`", text, re.MULTILINE):
        words = re.split(r"\s{2,}|#| … |\||;", "".join(line))[0].split()[1:]
        taken = 2 if words[0] in groups and len(words) > 1 else 1
        if words[:1] == ["data"] and taken == 1:
            continue
        known = options(" ".join(words[:taken]))
        for word in words[taken:]:
            if word.startswith("-"):
                assert word.split("=")[0] in known | {"--help"}, f"{document}: {' '.join(words)}: no {word}"
