"""Families published since 2024, at their published sizes, and at a size that trains anywhere."""
