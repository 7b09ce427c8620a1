"""Models of published sizes for meshes of hundreds of chips: to be compiled by preflight.py, and
trained where there are such machines."""
