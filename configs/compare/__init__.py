"""Studies for compare.py: what is compared, at which cost, and what will be claimed."""
