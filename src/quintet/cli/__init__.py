"""The command line: `quintet COMMAND`. Commands import what they need when they run, so that `--help` is quick."""

from quintet.cli.app import main

__all__ = ["main"]
