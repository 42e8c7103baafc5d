"""Fusion: how features enter a language model."""
