"""From rows of files to batches: sources, templates, media, packing."""
