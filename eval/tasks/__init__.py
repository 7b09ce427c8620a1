"""Evaluation tasks: each task has its own file and is registered in `eval/harness.py`."""
