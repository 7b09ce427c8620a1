"""Configs of mixers, besides those in `configs/`."""
