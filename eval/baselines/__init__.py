"""Baselines and data sets that evaluation tasks compare a model with."""
