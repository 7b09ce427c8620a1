"""Functions that keep only their inputs for the backward pass, and compute the rest again.

JAX keeps every intermediate value that a derivative reads. In cheap functions, such as norms and
activations, writing and reading these values takes longer than computing them again.
"""

import functools

import jax

# A decorator; `functools.partial(recompute, static_argnums=...)` for arguments that are no arrays.
recompute = functools.partial(jax.checkpoint, prevent_cse=False)
