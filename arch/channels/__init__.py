"""Channels: the parts of a block that process each token by itself."""
