"""Connectors: from the width of an encoder to that of a language model."""
