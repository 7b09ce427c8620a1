"""Evaluates trained models: tasks yield scores, and the harness runs them and records results."""
