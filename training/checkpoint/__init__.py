"""Checkpoints: they are written atomically, sealed by a manifest of hashes, found and restored."""
