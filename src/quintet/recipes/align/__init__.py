"""Alignment methods, one file each, with a function `method(base) -> Method`: `quintet align NAME --from RUN`."""
