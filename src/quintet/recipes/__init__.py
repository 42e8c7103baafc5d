"""One file a system of the surveys."""
