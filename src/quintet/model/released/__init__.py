"""Released checkpoints of systems that transformers has no class for: a table of names each.

`quintet import FOLDER --as RECIPE` reads them (`quintet.lab.released`). A new table is a function from the recipe's
composition to a `Layout` (`table.py`), named in `systems.py`; docs/released.md lists where each comes from.
"""
