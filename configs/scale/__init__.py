"""Provides models of published sizes for meshes of hundreds of chips.

preflight.py compiles them anywhere; training them needs such machines.
"""
