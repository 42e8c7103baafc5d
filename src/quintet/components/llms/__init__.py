"""LLMs: our own decoder, and models of transformers behind the same contract."""
