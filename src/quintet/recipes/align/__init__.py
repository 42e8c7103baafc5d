"""Alignment methods, one file each, with `method(template) -> Method`: `quintet align NAME --from RUN`."""
