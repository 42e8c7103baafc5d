"""One loop, its stages, its checkpoints."""
