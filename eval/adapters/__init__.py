"""Adapters to external evaluation libraries: lm-evaluation-harness and mteb."""
