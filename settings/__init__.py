"""Settings as frozen dataclasses: their types, the tree, and the command line that edits it."""
