"""Judging a trained model: tasks that yield scores, the harness that runs and records them."""
