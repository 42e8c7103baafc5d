"""Logging: facts of a run through the standard library, one place to get a logger."""

import logging

__all__ = ["logger"]


def logger(name: str) -> logging.Logger:
    """The logger of a module; the command line decides where its lines go."""
    return logging.getLogger(name)
