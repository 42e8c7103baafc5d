"""Settings as frozen dataclasses, and how they are read, written and overridden."""
