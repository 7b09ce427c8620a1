"""Experiments on text that has to be fetched."""
