"""Mixers: the parts in which tokens exchange information, one file each (see `arch/config.py`)."""
