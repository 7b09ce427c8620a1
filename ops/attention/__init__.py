"""Softmax attention: the naive form, the chunked form, kernels of the platforms, and its masks."""
