"""The composition, its generation, its files."""
