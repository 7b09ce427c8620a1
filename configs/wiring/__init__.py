"""Configs of what stands around the parts of a block, or above them."""
