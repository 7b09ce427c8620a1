"""Provides experiments on text that has to be downloaded."""
