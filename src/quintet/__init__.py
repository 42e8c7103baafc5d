"""Quintet: the survey of multimodal large language models, made runnable."""

__version__ = "0.1.0"
