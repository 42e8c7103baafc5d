"""How the starter parts are made: a vision encoder that learns from pictures, an LLM that learns from text alone."""
