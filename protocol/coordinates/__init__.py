"""Sizes of a model's vectors over widths and steps: `python -m protocol.coordinates`."""
