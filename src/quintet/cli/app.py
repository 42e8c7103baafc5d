"""The `quintet` command: global options, and what an error looks like.

Exit codes: 0 done, 1 a fault in what was asked, 2 wrong usage, 130 interrupted. A fault is one line on stderr that
says what was found and what to do; `--traceback` shows where it was raised.
"""

import errno
import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from quintet import __version__
from quintet.cli import aligning, compare, convert, data, describe, runs, training
from quintet.errors import QuintetError

__all__ = ["app", "main"]

INTERRUPTED = 130


class Commands(TyperGroup):
    """Runs a command, and turns what is the user's to mend into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.secho("interrupted", fg="yellow", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (QuintetError, OSError) as error:
            # A reader that went away (`| head`) is typer's to handle.
            if ctx.params.get("traceback") or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(" ".join(str(error).split()), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"quintet {__version__}")
        raise typer.Exit


@app.callback()
def quintet(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done, on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The survey of multimodal LLMs, made runnable: every system is a recipe over the same parts."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], format="%(message)s")


describe.register(app)
training.register(app)
aligning.register(app)
runs.register(app)
compare.register(app)
data.register(app)
convert.register(app)


def main() -> None:
    """The entry point of the `quintet` script."""
    app(prog_name="quintet")
