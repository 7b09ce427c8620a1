"""Experts of a Mixture of Experts: dispatch, products by expert, and the exchange over a mesh."""
