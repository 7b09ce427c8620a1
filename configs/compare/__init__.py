"""Provides studies for compare.py: the candidates, their cost, and the claims to test."""
