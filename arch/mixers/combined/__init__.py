"""Mixers that run other mixers: in both directions, or side by side."""
