"""Answers to be compared, made: `quintet data pairs METHOD`, and what a method's stage learns from without a file."""

from quintet.lab.pairs.build import BUILDERS, JUDGED, build, unheld, unread
from quintet.lab.pairs.work import FRAMES, Work

__all__ = ["BUILDERS", "FRAMES", "JUDGED", "Work", "build", "unheld", "unread"]
