"""The tasks, by where their data comes from, and `catalogue.py` to find one by its name."""
