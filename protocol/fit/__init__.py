"""Fits of scaling laws to run folders or to tables of points: `python -m protocol.fit`."""
