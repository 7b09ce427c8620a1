"""Families whose layers mix recurrent mixers with attention."""
