"""Files only: the trained small parts and their card."""
