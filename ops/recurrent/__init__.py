"""Recurrences along the tokens: state space models, delta rules, LSTMs and short convolutions."""
