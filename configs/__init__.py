"""Experiments as lab notes: claim, command, expected number; only differences from the defaults."""
