"""Compile a run for a machine that need not be here: memory, communication, and whether it fits."""
